"""``POST /embed`` as in Text Embeddings Inference, also for bodies at ``/``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from app.api.dialect import JSON, Problem
from app.api.http.body import read_ahead, read_json
from app.api.http.problems import ApiError
from app.api.http.vectors import MOST_INPUTS, Dimensions, vectors
from app.api.tgi.errors import TOO_LONG
from app.api.tgi.generate import compat_generate
from app.api.tgi.requests import TgiFields
from app.api.tgi.validation import rejection
from app.service import Embeddings, Service, TooLong

_OF_GENERATION = {"parameters", "stream"}
_OF_EMBEDDING = {"normalize", "truncate", "truncation_direction", "prompt_name", "dimensions"}


_LENGTH: dict[str, Any] = {"minItems": 1, "maxItems": MOST_INPUTS}
_Tokens = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]], Field(json_schema_extra={"minItems": 1, "maxItems": 2**20})
]


class EmbedRequest(TgiFields):
    """The body of ``POST /embed``, as in Text Embeddings Inference."""

    inputs: Annotated[
        str | _Tokens | Annotated[list[str | _Tokens], Field(json_schema_extra=_LENGTH)],
        Field(
            description="A text or its tokens, or a list of both. Tokens of the embedding model, including "
            "its begin and end tokens."
        ),
    ]
    normalize: Annotated[bool | None, Field(description="Scale vectors to length 1 (default).")] = None
    truncate: Annotated[
        bool | None,
        Field(description="Truncate texts longer than the maximum input of the model. Default: reject them."),
    ] = None
    truncation_direction: Annotated[
        Literal["left", "right", "Left", "Right"] | None,
        Field(description="Side to truncate. Default: right."),
    ] = None
    prompt_name: Annotated[
        Literal["query", "passage", "document"] | None,
        Field(
            description="Prefix of each text: EMBEDDING_QUERY_PREFIX or EMBEDDING_PASSAGE_PREFIX. "
            "Default: none."
        ),
    ] = None
    dimensions: Dimensions = None
    encoding_format: Annotated[Literal["float"] | None, Field(description="Ignored.")] = None

    @property
    def all_inputs(self) -> Sequence[str | list[int]]:
        """The texts and token lists."""
        if isinstance(self.inputs, str):
            return [self.inputs]
        if self.inputs and isinstance(self.inputs[0], int):
            return [self.inputs]
        return cast("list[str | list[int]]", self.inputs)

    @property
    def direction(self) -> Literal["left", "right"] | None:
        """Side at which long texts are truncated. None: reject them."""
        if not self.truncate:
            return None
        return "left" if self.truncation_direction in ("left", "Left") else "right"


async def embed(request: Request) -> Response:
    body = await read_json(request, EmbedRequest)
    prefix = _prefix(body.prompt_name, request.app.state.service)
    inputs = body.all_inputs
    if not inputs or "" in inputs or [] in inputs:
        raise rejection("`inputs` cannot be empty")
    if len(inputs) > MOST_INPUTS:
        raise _too_long(f"batch size {len(inputs)} > maximum allowed batch size {MOST_INPUTS}")
    try:
        made = await vectors(
            request,
            [prefix + text if isinstance(text, str) else text for text in inputs],
            field="inputs",
            dimensions=body.dimensions,
            truncate=body.direction,
            normalize=body.normalize is not False,
        )
    except TooLong as error:
        raise _too_long(f"{error.field}: {error}") from None
    return Response(await asyncio.to_thread(_encoded, made), media_type=JSON)


def _too_long(cause: str) -> ApiError:
    return ApiError(Problem(TOO_LONG, "too_long", cause))


async def embed_or_generate(request: Request) -> Response:
    """Embed or generate, by the body: huggingface_hub uses one address for both tasks."""
    fields, again = await read_ahead(request)
    if requests_vectors(fields, request.headers):
        return await embed(again)
    return await compat_generate(again)


def requests_vectors(fields: Any, headers: Mapping[str, str]) -> bool:
    """Whether a body with ``inputs`` requests vectors.

    A single text is continued, as in TGI. From huggingface_hub it is embedded, because that client sends
    ``parameters`` with a text to continue.
    """
    if not isinstance(fields, dict) or "inputs" not in fields or fields.keys() & _OF_GENERATION:
        return False
    if isinstance(fields["inputs"], list) or fields.keys() & _OF_EMBEDDING:
        return True
    return "hf_hub/" in headers.get("user-agent", "")


def _prefix(prompt_name: str | None, service: Service) -> str:
    """The prefix of texts of this kind (a prompt in sentence-transformers)."""
    settings = service.settings
    if prompt_name is None:
        return ""
    return settings.embedding_query_prefix if prompt_name == "query" else settings.embedding_passage_prefix


def _encoded(made: Embeddings) -> bytes:
    return to_json(vector.tolist() for vector in made.vectors)
