"""Read and validate request bodies."""

from __future__ import annotations

from typing import Any, TypeVar

import anyio
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.types import Message

from app.api.dialect import JSON, Problem
from app.api.http.problems import ApiError, validation_problem
from app.config.settings import Settings

T = TypeVar("T", bound=BaseModel)


async def read_json(request: Request, model: type[T]) -> T:
    """Read a JSON body into ``model``.

    Raises:
        ApiError: 408 body too slow, 413 body too long, 415 missing or wrong media type, 400 malformed JSON,
            422 invalid field.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:  # browsers send other types to any site without a preflight
        message = f"content-type: should be {JSON}, not {kind}" if kind else f"content-type: should be {JSON}"
        raise ApiError(Problem(415, "unsupported_media_type", message))
    body = await read_body(request)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise ApiError(validation_problem(error, _parsed(body))) from None


def _parsed(body: bytes) -> Any:
    """The JSON value of a body. None if it is invalid."""
    try:
        return from_json(body)
    except ValueError:
        return None


async def read_ahead(request: Request) -> tuple[Any, Request]:
    """Parse a body before an endpoint reads it, to choose the endpoint.

    Returns:
        The JSON value, or None if it is invalid; and a request with an unread body.

    Raises:
        ApiError: 413 body too long.
    """
    body = await read_body(request)
    fields = _parsed(body)  # the endpoint reports an error
    is_read = False

    async def receive() -> Message:
        nonlocal is_read
        if is_read:
            return await request.receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return fields, Request(request.scope, receive)


async def read_body(request: Request) -> bytes:
    """Read a body of at most MAX_BODY_BYTES, in at most READ_TIMEOUT seconds.

    Raises:
        ApiError: 413 body too long, 408 body not complete in time.
        Overloaded: Too many tokens wait.
    """
    settings: Settings = request.app.state.service.settings
    limit = settings.max_body_bytes
    message = f"the body is longer than {limit} bytes (MAX_BODY_BYTES)"
    too_long = ApiError(Problem(413, "body_too_large", message))
    content_length = request.headers.get("content-length", "")
    if content_length.isdecimal() and int(content_length) > limit:
        raise too_long
    body = bytearray()
    with anyio.move_on_after(settings.read_timeout):
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_long
            if not content_length:
                request.state.place.read(len(chunk))
        request.state.is_body_read = True
        return bytes(body)
    message = f"{len(body)} bytes of the body arrived in {settings.read_timeout:g} s (READ_TIMEOUT)"
    raise ApiError(Problem(408, "read_timeout", message))
