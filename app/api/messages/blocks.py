"""Blocks of messages: text, documents and search results as text, thoughts, calls and their results."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from app.api.http.ignored import warn_once

ROUTE = "/v1/messages"
TEXTUAL = ("text", "document", "search_result")
_BLOCKS = (*TEXTUAL, "thinking", "redacted_thinking", "tool_use", "tool_result")
_REQUIRED = {
    "text": ("text",),
    "document": ("source",),
    "search_result": ("source", "title", "content"),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",),
}


class Fields(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class PartOfText(Fields):
    """A block of text within another block."""

    type: str
    text: str = ""


class Source(Fields):
    """The contents of a document. Only text is supported."""

    type: Annotated[str, Field(description="`text`, `content`, or `base64` of the media type `text/plain`.")]
    media_type: str | None = None
    data: str | None = None
    content: str | list[PartOfText] | None = None

    def read(self) -> str:
        """The text.

        Raises:
            ValueError: The contents are not text.
        """
        if self.type == "content" and self.content is not None:
            return _joined(self.content)
        if self.data is not None and self.media_type in (None, "text/plain"):
            if self.type == "text":
                return self.data
            if self.type == "base64" and self.media_type is not None:
                return _decoded(self.data)
        kind = self.type if self.media_type is None else f"{self.type} of {self.media_type}"
        raise ValueError(
            f"source: {kind} is not supported; should be of type text, content, or base64 of text/plain"
        )


def _decoded(data: str) -> str:
    try:
        return base64.b64decode(data).decode()
    except ValueError:
        raise ValueError("source.data: should be UTF-8 text in base64") from None


def _joined(content: str | list[PartOfText]) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if part.type != "text":
            raise ValueError(f"type {part.type!r} is not supported; should be text")
    return "\n".join(part.text for part in content)


_CONTENT: TypeAdapter[str | list[PartOfText]] = TypeAdapter(str | list[PartOfText])


class _TextualBlock(Fields):
    """Fields of blocks that are text for the model."""

    type: str
    text: str | None = None
    title: str | None = None
    context: Annotated[str | None, Field(description="About a document.")] = None
    source: Annotated[
        Source | str | None, Field(description="Of a document, or the name of a search result's source.")
    ] = None

    def read(self, content: str | list[PartOfText] | None) -> str:
        """The text. ``content``: of a search result.

        Raises:
            ValueError: The contents are not text.
        """
        if self.type == "text":
            return self.text or ""
        if self.type == "search_result":
            named = self.source if isinstance(self.source, str) else None
            return _with_head((self.title, named), _joined(content or ""))
        if not isinstance(self.source, Source):
            raise ValueError("source: should be an object with the contents of the document")
        return _with_head((self.title, self.context), self.source.read())


def _with_head(head: tuple[str | None, ...], text: str) -> str:
    return "\n\n".join(filter(None, ("\n".join(filter(None, head)), text)))


class ResultBlock(_TextualBlock):
    """A block of a tool's result. An image or a PDF file does not end the conversation of an agent."""

    type: Annotated[
        str, Field(description="The model is told that blocks of other types than text are missing.")
    ]
    content: Any = None  # blocks of other types have contents of any form

    @property
    def shown(self) -> str:
        """The text for the model."""
        if self.type in TEXTUAL:
            try:
                return self.read(_CONTENT.validate_python(self.content or ""))
            except ValueError:
                pass  # the note below
        warn_once(ROUTE, f"a block of type {self.type!r} in the result of a tool")
        return f"[{self.type} is missing: the model reads only text]"


class ContentBlock(_TextualBlock):
    """A block of a message: text, a thought, a call, or the result of a call."""

    thinking: str = ""
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[ResultBlock] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> ContentBlock:
        if self.type not in _BLOCKS:
            raise ValueError(f"type {self.type!r}: should be one of {', '.join(_BLOCKS)}")
        for field in _REQUIRED.get(self.type, ()):
            if getattr(self, field) is None:
                raise ValueError(f"{field} is required with type {self.type!r}")
        if self.type in TEXTUAL:
            _ = self.shown  # raises
        return self

    @property
    def shown(self) -> str:
        """The text of a text, a document or a search result."""
        parts = self.content
        if isinstance(parts, list):
            return self.read([PartOfText(type=part.type, text=part.text or "") for part in parts])
        return self.read(parts)

    @property
    def result(self) -> str:
        """The text of a tool's result."""
        if isinstance(self.content, list):
            return "\n".join(block.shown for block in self.content)
        return self.content or ""
