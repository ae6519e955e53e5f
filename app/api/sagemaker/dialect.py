"""``POST /invocations``, SageMaker's route: the body selects OpenAI or TGI, as in TGI."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from app.api.dialect import EVENTS, JSON, Dialect, Operation, Reply, causes
from app.api.http.body import read_ahead
from app.api.openai.chat import chat_completions
from app.api.openai.completions import completions
from app.api.openai.dialect import CHAT_EXAMPLES, COMPLETION_EXAMPLES
from app.api.openai.errors import OpenAIErrorResponse
from app.api.openai.replies import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from app.api.openai.requests import ChatRequest, CompletionRequest
from app.api.tgi.dialect import GENERATING, STREAM_EXAMPLE, TEXT_EXAMPLE
from app.api.tgi.embed import EmbedRequest, embed_or_generate
from app.api.tgi.errors import ERRORS, ErrorResponse
from app.api.tgi.replies import GenerateResponse, StreamResponse
from app.api.tgi.requests import CompatGenerateRequest


async def invocations(request: Request) -> Response:
    """Answer like the route with the fields of the body."""
    fields, again = await read_ahead(request)
    if isinstance(fields, dict) and "inputs" not in fields:
        if "messages" in fields:
            return await chat_completions(again)
        if "prompt" in fields:
            return await completions(again)
    return await embed_or_generate(again)


_INVOCATIONS = Operation(
    method="POST",
    path="/invocations",
    endpoint=invocations,
    summary="Answer in the dialect of the body",
    description=(
        "A body with `messages` is answered like `/v1/chat/completions`, with `prompt` like "
        "`/v1/completions`, any other like `POST /`. Errors before the first byte have TGI's format."
    ),
    body=ChatRequest | CompletionRequest | CompatGenerateRequest | EmbedRequest,
    examples={
        "A question": CHAT_EXAMPLES["A question"],
        "OpenAI's completion": COMPLETION_EXAMPLES["A text"],
        "TGI's request": TEXT_EXAMPLE,
        "TGI's request, streamed": STREAM_EXAMPLE,
    },
    replies={
        200: Reply(
            "The answer.",
            {
                JSON: ChatCompletion | Completion | list[GenerateResponse] | list[list[float]],
                EVENTS: (
                    ChatCompletionChunk
                    | CompletionChunk
                    | OpenAIErrorResponse
                    | StreamResponse
                    | ErrorResponse
                ),
            },
        )
    },
    errors=GENERATING | causes(404, 501),
)

DIALECT = Dialect(
    name="SageMaker",
    description="The route of SageMaker's endpoints.",
    error=ERRORS,
    operations=(_INVOCATIONS,),
)
