"""``POST /tokenize`` and ``/chat_tokenize``."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from app.api.http.admission import place_of
from app.api.http.body import read_json
from app.api.http.waiting import while_connected
from app.api.openai.chat import chat_prompt
from app.api.openai.requests import ChatRequest
from app.api.tgi.requests import TgiFields
from app.service import Prompt, Service, TextPrompt, Vocab, token_bytes


class TokenizeRequest(TgiFields):
    """The body of ``POST /tokenize``."""

    inputs: str


class SimpleToken(TypedDict):
    """A token and the range of its bytes in the text, in UTF-8."""

    id: int
    text: str
    start: int
    stop: int


class ChatTokenizeResponse(TypedDict):
    """The prompt of a conversation."""

    tokenize_response: list[SimpleToken]
    templated_text: str


async def tokenize(request: Request) -> Response:
    """List the tokens of a text."""
    service: Service = request.app.state.service
    body = await read_json(request, TokenizeRequest)
    prompt = TextPrompt(body.inputs, field="inputs")
    tokens = await while_connected(request, service.tokens(prompt, place_of(request)))
    return JSONResponse(located(vocab_of(request, prompt), tokens, body.inputs))


async def chat_tokenize(request: Request) -> Response:
    """List the tokens of a conversation and return its text from the chat template."""
    service: Service = request.app.state.service
    body = await read_json(request, ChatRequest)
    prompt = chat_prompt(body)
    tokens = await while_connected(request, service.tokens(prompt, place_of(request)))
    vocab = vocab_of(request, prompt)
    text = written(vocab, tokens)
    response: ChatTokenizeResponse = {
        "tokenize_response": located(vocab, tokens, text),
        "templated_text": text,
    }
    return JSONResponse(response)


def vocab_of(request: Request, prompt: Prompt) -> Vocab:
    """The vocabulary of the model that has tokenized a prompt."""
    service: Service = request.app.state.service
    return place_of(request).models[service.entry_of(prompt)].vocab


def located(vocab: Vocab, tokens: Sequence[int], text: str) -> list[SimpleToken]:
    """The tokens of a text and their ranges of bytes.

    The bytes of an emoji may belong to several tokens; each of them has the whole character. The range of an
    added token, such as BOS, is empty.
    """
    data = text.encode("utf-8", "replace")
    found: list[SimpleToken] = []
    at = 0
    for token in tokens:
        begin, at = at, at + _length(token_bytes(vocab, token), data, at)
        start, stop = begin, at
        if start < stop:
            while _is_within_character(data, start):
                start -= 1
            while _is_within_character(data, stop):
                stop += 1
        shown = data[start:stop].decode("utf-8", "replace")
        found.append({"id": token, "text": shown, "start": start, "stop": stop})
    return found


def written(vocab: Vocab, tokens: Sequence[int]) -> str:
    """The text of tokens, including the names of control tokens."""
    # Some tokenizers add a space before a text, and after a control token.
    adds_space = b"".join(map(vocab.piece, vocab.tokenize("a", parse_special=False))).startswith(b" ")
    data, is_first = bytearray(), True
    for token in tokens:
        piece = token_bytes(vocab, token)
        data += piece.removeprefix(b" ") if adds_space and is_first else piece
        is_first = not vocab.piece(token)
    return data.decode("utf-8", "replace")


def _length(piece: bytes, data: bytes, at: int) -> int:
    """Number of bytes of the piece in ``data`` at ``at``, without an added space."""
    if data.startswith(piece, at):
        return len(piece)
    without_space = piece.removeprefix(b" ")
    return len(without_space) if data.startswith(without_space, at) else 0


def _is_within_character(data: bytes, at: int) -> bool:
    """Whether ``at`` is within the bytes of a character."""
    return at < len(data) and data[at] & 0xC0 == 0x80
