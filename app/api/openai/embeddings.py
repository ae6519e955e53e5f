"""``POST /v1/embeddings``."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from app.api.dialect import JSON
from app.api.http.body import read_json
from app.api.http.ignored import ignore
from app.api.http.vectors import MOST_INPUTS, Dimensions, vectors
from app.api.openai.requests import ROUTE
from app.service import Embeddings, Service

_Text = Annotated[str, Field(min_length=1)]
_Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=MOST_INPUTS)]
_Input = _Text | _Tokens | Annotated[list[_Text | _Tokens], Field(min_length=1, max_length=MOST_INPUTS)]


def _checked(given: Any) -> Any:
    """Report one error. Pydantic would report one for each member of the union."""
    entries = given if isinstance(given, list) else [given]
    if len(entries) > MOST_INPUTS:
        raise ValueError(f"should have at most {MOST_INPUTS} entries, not {len(entries)}")
    if not entries or given == "":
        raise ValueError("should not be empty")
    kinds = {type(entry) for entry in entries}
    is_tokens = kinds == {int} and entries is given
    if not is_tokens and not kinds <= {str, list}:
        raise ValueError("should be a text, its tokens, or a list of texts and lists of tokens")
    empty = next((index for index, entry in enumerate(entries) if entry in ("", [])), None)
    if empty is not None:
        raise ValueError(f"entry {empty} should not be empty")
    if kinds != {str}:
        lists = [entries] if is_tokens else [entry for entry in entries if isinstance(entry, list)]
        tokens = [token for tokens in lists for token in tokens]
        wrong = [token for token in tokens if type(token) is not int or not 0 <= token < 2**31]
        if wrong:
            raise ValueError(f"tokens should be integers from 0, not {json.dumps(wrong[0])[:60]}")
    return given


class EmbeddingsRequest(BaseModel):
    """The body of ``POST /v1/embeddings``."""

    model_config = ConfigDict(extra="allow", strict=True)

    input: Annotated[
        _Input,
        BeforeValidator(_checked, json_schema_input_type=_Input),
        Field(
            description="A text or its tokens, or a list of either. Tokens of the embedding model, including "
            "its begin and end tokens."
        ),
    ]
    model: Annotated[
        str | None, Field(description="Any name. The embedding model of the server answers.")
    ] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Field(description="`base64` encodes little-endian 32-bit floats."),
    ] = None
    dimensions: Dimensions = None

    @model_validator(mode="after")
    def _ignore_unknown(self) -> EmbeddingsRequest:
        ignore(ROUTE, self.model_extra or ())
        return self

    @property
    def inputs(self) -> Sequence[str | list[int]]:
        """The texts or token lists."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input


class Embedding(TypedDict):
    """The vector of one text."""

    object: Literal["embedding"]
    index: Annotated[int, Field(description="Index of the text, from 0.")]
    embedding: Annotated[list[float] | str, Field(description="Vector of length 1; a text with `base64`.")]


class EmbeddingUsage(TypedDict):
    """Tokens of the request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    """The vectors of all texts, in order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


async def embeddings(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_json(request, EmbeddingsRequest)
    made = await vectors(request, body.inputs, field="input", dimensions=body.dimensions)
    is_base64 = body.encoding_format == "base64"
    # On a thread: encoding a million numbers would delay streams.
    content = await asyncio.to_thread(_encoded, made, service.embedding_name or "", is_base64=is_base64)
    return Response(content, media_type=JSON)


def _encoded(made: Embeddings, model: str, *, is_base64: bool) -> bytes:
    """Encode an ``EmbeddingList`` vector by vector: lists of all numbers would need much memory."""
    data: Iterator[Embedding] = (
        {"object": "embedding", "index": index, "embedding": _vector(vector, is_base64=is_base64)}
        for index, vector in enumerate(made.vectors)
    )
    usage: EmbeddingUsage = {"prompt_tokens": made.n_tokens, "total_tokens": made.n_tokens}
    return to_json({"object": "list", "data": data, "model": model, "usage": usage})


def _vector(vector: NDArray[np.float32], *, is_base64: bool) -> str | list[float]:
    if is_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
