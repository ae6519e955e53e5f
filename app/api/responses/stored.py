"""``GET`` and ``DELETE /v1/responses/{response_id}``, and ``GET /v1/responses/{response_id}/input_items``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.dialect import JSON, Problem
from app.api.http.auth import key_name_of
from app.api.http.problems import ApiError, invalid, validation_problem
from app.api.responses.replies import Deleted, InputItems
from app.api.responses.store import ResponseStore, Stored
from app.chat.messages import Message


class ItemsQuery(BaseModel):
    """The part of a list to return."""

    model_config = ConfigDict(extra="ignore")

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None


async def retrieve(request: Request) -> Response:
    """A response as it was created."""
    if request.query_params.get("stream", "false") != "false":
        raise invalid("should be false: the events of a response are not kept", "stream")
    return Response(_stored(request).body, media_type=JSON)


async def delete(request: Request) -> Response:
    _stored(request)
    id_ = request.path_params["response_id"]
    store_of(request).drop(id_)
    body: Deleted = {"id": id_, "object": "response", "deleted": True}
    return JSONResponse(body)


async def input_items(request: Request) -> Response:
    """The items of the conversation before a response."""
    turns = _stored(request).conversation[:-1]
    try:
        query = ItemsQuery.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise ApiError(validation_problem(error)) from None
    suffix = request.path_params["response_id"].removeprefix("resp_")
    items = [
        {"id": f"{_PREFIXES[item['type']]}_{suffix}_{index}", "status": "completed", **item}
        for index, item in enumerate(item for turn in turns for item in _items(turn))
    ]
    if query.order == "desc":
        items.reverse()
    if query.after is not None:
        places = [index for index, item in enumerate(items) if item["id"] == query.after]
        if not places:
            raise invalid(f"{query.after!r} is no item of this response", "after")
        items = items[places[0] + 1 :]
    page = items[: query.limit]
    body: InputItems = {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(page) < len(items),
    }
    return JSONResponse(body)


def store_of(request: Request) -> ResponseStore:
    state = request.app.state
    if not hasattr(state, "responses"):
        state.responses = ResponseStore()
    store: ResponseStore = state.responses
    return store


def _stored(request: Request) -> Stored:
    id_ = request.path_params["response_id"]
    stored = store_of(request).get(id_, key_name_of(request))
    if stored is None:
        message = f"response_id: {id_!r} is not stored; responses are kept for an hour"
        raise ApiError(Problem(404, "not_found", message, "response_id"))
    return stored


_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}


def _items(turn: Message) -> Iterator[dict[str, Any]]:
    """The items of a turn."""
    if turn.role == "tool":
        yield {"type": "function_call_output", "call_id": turn.tool_call_id, "output": turn.content}
        return
    if turn.thoughts:
        parts = [{"type": "reasoning_text", "text": turn.thoughts}]
        yield {"type": "reasoning", "summary": [], "content": parts}
    if turn.role != "assistant":
        text = {"type": "input_text", "text": turn.content}
        yield {"type": "message", "role": turn.role, "content": [text]}
    elif turn.content:
        answer = {"type": "output_text", "text": turn.content, "annotations": [], "logprobs": []}
        yield {"type": "message", "role": "assistant", "content": [answer]}
    for call in turn.tool_calls:
        names = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
        yield {"type": "function_call", **names}
