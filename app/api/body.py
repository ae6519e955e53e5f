"""Reading and validating request bodies."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from app.api.errors import ApiError, complaint

T = TypeVar("T", bound=BaseModel)


async def read_json(request: Request, model: type[T]) -> T:
    """Read a JSON body into ``model``.

    Raises:
        ApiError: 413 too long, 415 another media type, 400 malformed JSON, 422 a bad field.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "unsupported_media_type", f"content-type: should be application/json, not {kind}")
    limit: int = request.app.state.settings.max_body_bytes
    too_long = ApiError(413, "body_too_large", f"the body is longer than {limit} bytes (MAX_BODY_BYTES)")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_long
    try:
        return model.model_validate_json(bytes(body))
    except ValidationError as error:
        raise complaint(error) from None
