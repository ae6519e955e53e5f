"""Output items of a response, and the events that create them."""

from __future__ import annotations

import copy
import secrets
from typing import Any, cast

from app.api.responses.replies import (
    CallItem,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ResponseEvent,
    Status,
)
from app.service import ArgumentsDelta, CallDelta, ContentDelta, Part


class Output:
    """The items of one response.

    Attributes:
        items: Complete items, and the current one.
    """

    def __init__(self) -> None:
        self.items: list[OutputItem] = []
        self._events: list[ResponseEvent] = []
        self._n_events = 0
        self._is_open = False

    def emit(self, type_: str, **fields: Any) -> None:
        """Add an event with the next sequence number."""
        event = {"type": type_, "sequence_number": self._n_events, **fields}
        self._events.append(cast(ResponseEvent, event))
        self._n_events += 1

    def take_events(self) -> list[ResponseEvent]:
        """Return and clear the events since the last call."""
        events, self._events = self._events, []
        return events

    def add(self, part: Part) -> None:
        """Add a part of the answer."""
        if isinstance(part, CallDelta):
            self._open(_call(part))
            return
        if isinstance(part, ArgumentsDelta):
            call = cast(CallItem, self.items[-1])
            call["arguments"] += part.text
            self._emit("response.function_call_arguments.delta", delta=part.text)
            return
        is_answer = isinstance(part, ContentDelta)
        if not self._is_open or self.items[-1]["type"] != ("message" if is_answer else "reasoning"):
            self._open(_message() if is_answer else _reasoning())
            self._open_part(_output_text() if is_answer else _reasoning_text())
        item = cast("MessageItem | ReasoningItem", self.items[-1])
        item["content"][0]["text"] += part.text
        more: dict[str, Any] = {"logprobs": []} if is_answer else {}
        kind = "output_text" if is_answer else "reasoning_text"
        self._emit(f"response.{kind}.delta", content_index=0, delta=part.text, **more)

    def close(self, status: Status = "completed") -> None:
        """Complete the current item."""
        if not self._is_open:
            return
        self._is_open = False
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            arguments, name = item["arguments"], item["name"]
            self._emit("response.function_call_arguments.done", name=name, arguments=arguments)
        else:
            part = item["content"][0]
            more: dict[str, Any] = {"logprobs": []} if part["type"] == "output_text" else {}
            self._emit(f"response.{part['type']}.done", content_index=0, text=part["text"], **more)
            self._emit("response.content_part.done", content_index=0, part=copy.deepcopy(part))
        self.emit("response.output_item.done", output_index=len(self.items) - 1, item=copy.deepcopy(item))

    def _open(self, item: OutputItem) -> None:
        self.close()
        self._is_open = True
        self.items.append(item)
        self.emit("response.output_item.added", output_index=len(self.items) - 1, item=copy.deepcopy(item))

    def _open_part(self, part: OutputText | ReasoningText) -> None:
        content = cast("list[OutputText | ReasoningText]", cast(Any, self.items[-1])["content"])
        content.append(part)
        self._emit("response.content_part.added", content_index=0, part=copy.deepcopy(part))

    def _emit(self, type_: str, **fields: Any) -> None:
        """Add an event of the current item."""
        self.emit(type_, item_id=self.items[-1]["id"], output_index=len(self.items) - 1, **fields)


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(24)}"


def _message() -> MessageItem:
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "status": "in_progress",
        "content": [],
    }


def _reasoning() -> ReasoningItem:
    return {"id": new_id("rs"), "type": "reasoning", "status": "in_progress", "summary": [], "content": []}


def _call(part: CallDelta) -> CallItem:
    return {
        "id": new_id("fc"),
        "type": "function_call",
        "call_id": part.id,
        "name": part.name,
        "arguments": "",
        "status": "in_progress",
    }


def _output_text() -> OutputText:
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def _reasoning_text() -> ReasoningText:
    return {"type": "reasoning_text", "text": ""}
