"""Common parts of chat and completions: envelope, usage, log-probabilities."""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import Sequence

from app.api.openai.replies import (
    ChatLogprobs,
    CompletionFinishReason,
    CompletionLogprobs,
    Envelope,
    TokenLogprob,
    Usage,
)
from app.service import (
    FinishReason,
    Generation,
    Logprobs,
    Model,
    Output,
    Vocab,
    shown,
    token_bytes,
)

_LETTERS = string.ascii_letters + string.digits
_FINISH_REASONS: dict[FinishReason, CompletionFinishReason] = {
    FinishReason.EOS: "stop",
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
}


def envelope(model: Model, id_prefix: str) -> Envelope:
    """The envelope of a new response."""
    return {
        "id": id_prefix + "".join(secrets.choice(_LETTERS) for _ in range(29)),
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": model.fingerprint,
    }


def finish_reason(generation: Generation) -> CompletionFinishReason:
    """``length`` if no token was requested."""
    return _FINISH_REASONS[generation.finish_reason or FinishReason.LENGTH]


def usage(generations: Sequence[Generation], *, n_prompts: int = 1) -> Usage:
    """Tokens of a request. Each prompt counts once, independent of its number of answers."""
    firsts = generations[:: max(1, len(generations) // n_prompts)]
    n_prompt = sum(generation.n_prompt for generation in firsts)
    n_generated = sum(generation.n_generated for generation in generations)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": sum(generation.n_cached for generation in firsts)},
        "completion_tokens_details": {
            "reasoning_tokens": sum(generation.n_thought for generation in generations)
        },
    }


# --- log-probabilities


def chat_logprobs(vocab: Vocab, outputs: Sequence[Output]) -> ChatLogprobs:
    def entry(token: int, logprob: float) -> TokenLogprob:
        data = token_bytes(vocab, token)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    return {
        "content": [
            {
                **entry(output.token, output.logprobs.chosen),
                "top_logprobs": [entry(token, logprob) for token, logprob in output.logprobs.top],
            }
            for output in shown(vocab, outputs)
            if output.logprobs is not None
        ],
        "refusal": None,
    }


class CompletionLogprobsWriter:
    """Log-probabilities of one text in parts. Offsets continue from part to part."""

    def __init__(self, vocab: Vocab, n_top: int) -> None:
        self._vocab = vocab
        self._n_top = n_top
        self._offset = 0

    def of_prompt(self, generation: Generation) -> CompletionLogprobs:
        """Log-probabilities of the prompt. The first token has none."""
        known: list[Logprobs | None] = [None, *generation.prompt_logprobs]
        return self._lists(list(zip(generation.prompt, known, strict=True)))

    def of_answer(self, outputs: Sequence[Output]) -> CompletionLogprobs:
        """Log-probabilities of the next tokens of the answer."""
        return self._lists([(output.token, output.logprobs) for output in shown(self._vocab, outputs)])

    def _lists(self, entries: Sequence[tuple[int, Logprobs | None]]) -> CompletionLogprobs:
        tops: list[dict[str, float] | None] = []
        lists: CompletionLogprobs = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": tops if self._n_top else None,
            "text_offset": [],
        }
        for token, logprobs in entries:
            lists["tokens"].append(self._text(token))
            lists["token_logprobs"].append(logprobs.chosen if logprobs else None)
            tops.append({self._text(other): value for other, value in logprobs.top} if logprobs else None)
            lists["text_offset"].append(self._offset)
            self._offset += len(self._vocab.piece(token).decode("utf-8", "replace"))
        return lists

    def _text(self, token: int) -> str:
        data = token_bytes(self._vocab, token)
        try:
            return data.decode()
        except UnicodeDecodeError:  # part of a character, in OpenAI's notation
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def joined(first: CompletionLogprobs | None, second: CompletionLogprobs | None) -> CompletionLogprobs | None:
    """Join the log-probabilities of two consecutive parts."""
    if first is None or second is None:
        return first or second
    tops, more = first["top_logprobs"], second["top_logprobs"]
    return {
        "tokens": first["tokens"] + second["tokens"],
        "token_logprobs": first["token_logprobs"] + second["token_logprobs"],
        "top_logprobs": None if tops is None or more is None else tops + more,
        "text_offset": first["text_offset"] + second["text_offset"],
    }
