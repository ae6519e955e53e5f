"""TGI's validation of a request, in TGI's order and with its messages.

Source: ``router/src/validation.rs`` of huggingface/text-generation-inference.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from app.api.dialect import Problem
from app.api.http.problems import ApiError
from app.api.tgi.requests import GenerateParameters, GenerateRequest, Grammar
from app.config.settings import Settings
from app.service import Constraint, JSONSchema, Regex, TextPrompt, TokenLimits


@dataclass(frozen=True, slots=True)
class ValidRequest:
    """A valid request.

    Attributes:
        prompt: The text to continue.
        overrides: Fields of SamplingParams.
        constraint: Format of the answer.
        n: Number of generated answers; the best is returned.
        seed: Seed of the first answer; None for greedy sampling.
    """

    prompt: TextPrompt
    overrides: dict[str, Any]
    constraint: Constraint | None
    n: int
    seed: int | None

    def seed_of(self, index: int) -> int | None:
        """The seed that reproduces an answer. Several answers have different seeds."""
        return (self.seed + index) % 2**32 if self.seed is not None and index else self.seed


def rejection(cause: str) -> ApiError:
    return ApiError(Problem(422, "validation", cause))


def validated(
    request: GenerateRequest,
    model_name: str | None,
    settings: Settings,
    limits: TokenLimits,
    *,
    is_stream: bool,
) -> ValidRequest:
    """Validate a request as in TGI.

    Raises:
        ApiError: The request is invalid.
    """
    for cause in _causes(request, settings, limits, is_stream=is_stream):
        raise rejection(cause)
    given = request.parameters
    prompt = TextPrompt(
        request.inputs,
        truncate=given.truncate,
        field="inputs",
        reduces_max_tokens=False,
        model=model_name,
        adapter=given.adapter_id,
    )
    samples = _samples(given)
    n = given.best_of or 1
    seed = (secrets.randbits(32) if given.seed is None else given.seed) if samples else None
    return ValidRequest(prompt, _overrides(given, seed, samples=samples), _constraint(given.grammar), n, seed)


def too_long(given: GenerateParameters, n_tokens: int, limits: TokenLimits) -> ApiError:
    """The error for a prompt that exceeds a limit, with or without its answer."""
    n_new = given.max_new_tokens or 0  # the default is reduced to fit
    if n_tokens + n_new > limits.total:
        return rejection(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.total}. "
            f"Given: {n_tokens} `inputs` tokens and {n_new} `max_new_tokens`"
        )
    return rejection(f"`inputs` must have less than {limits.input} tokens. Given: {n_tokens}")


def _overrides(given: GenerateParameters, seed: int | None, *, samples: bool) -> dict[str, Any]:
    overrides: dict[str, Any] = {
        "temperature": (1.0 if given.temperature is None else given.temperature) if samples else 0.0,
        "top_p": 1.0 if given.top_p is None else given.top_p,
        "top_k": given.top_k or 0,
        "typical_p": 1.0 if given.typical_p is None else given.typical_p,
        "repetition_penalty": 1.0 if given.repetition_penalty is None else given.repetition_penalty,
        "repeat_last_n": -1,
        "frequency_penalty": given.frequency_penalty or 0.0,
        "seed": None if seed is None else seed % 2**32,
        "stop": tuple(given.stop),
        "keeps_stop": True,
        "logprobs": given.top_n_tokens or 0,
        "watermark": given.watermark,
    }
    if given.max_new_tokens is not None:
        overrides["max_tokens"] = given.max_new_tokens
    if given.decoder_input_details:
        overrides["prompt_logprobs"] = 0
    return overrides


def _samples(given: GenerateParameters) -> bool:
    """Whether to sample. As in TGI, any parameter that changes the distribution implies it."""
    return (
        given.do_sample
        or given.temperature not in (None, 1.0)
        or any(value is not None for value in (given.top_k, given.top_p, given.typical_p))
    )


def _causes(
    request: GenerateRequest, settings: Settings, limits: TokenLimits, *, is_stream: bool
) -> Iterator[str]:
    """TGI's error messages for the request, in TGI's order."""
    given = request.parameters
    if is_stream:
        if given.best_of not in (None, 1):
            yield "`best_of` != 1 is not supported when streaming tokens"
        if given.decoder_input_details:
            yield "`decoder_input_details` == true is not supported when streaming tokens"
    yield from _causes_in_best_of(given, settings.max_best_of)
    yield from _causes_in_numbers(given)
    if len(given.stop) > settings.max_stop_sequences:
        yield (
            f"`stop` supports up to {settings.max_stop_sequences} stop sequences. Given: {len(given.stop)}"
        )
    if given.seed is not None and (given.best_of or 1) > 1:
        yield "`seed` must not be set when `best_of` > 1"
    if (given.top_n_tokens or 0) > settings.max_top_n_tokens:
        most = settings.max_top_n_tokens
        yield f"`top_n_tokens` must be >= 0 and <= {most}. Given: {given.top_n_tokens}"
    if not request.inputs:
        yield "`inputs` cannot be empty"
    if given.truncate is not None and not 0 < given.truncate <= limits.input:
        yield f"`truncate` must be strictly positive and less than {limits.input}. Given: {given.truncate}"


def _causes_in_best_of(given: GenerateParameters, most: int) -> Iterator[str]:
    n = 1 if given.best_of is None else given.best_of
    if n != 1 and most == 1:
        yield "`best_of` != 1 is not allowed for this endpoint"
    if not 0 < n <= most:
        yield f"`best_of` must be > 0 and <= {most}. Given: {n}"
    if n > 1 and not _samples(given) and given.temperature is None:
        yield "you must use sampling when `best_of` is > 1"


def _causes_in_numbers(given: GenerateParameters) -> Iterator[str]:
    def is_positive(name: str) -> bool:
        value = getattr(given, name)
        return value is None or value > 0

    for name in ("temperature", "repetition_penalty"):
        if not is_positive(name):
            yield f"`{name}` must be strictly positive"
    if given.frequency_penalty is not None and not -2 <= given.frequency_penalty <= 2:
        yield "`frequency_penalty` must be >= -2.0 and <= 2.0"
    for name in ("top_p", "typical_p"):
        value = getattr(given, name)
        if value is not None and not 0 < value < 1:
            yield f"`{name}` must be > 0.0 and < 1.0"
    for name in ("top_k", "max_new_tokens"):
        if not is_positive(name):
            yield f"`{name}` must be strictly positive"


# --- grammars


def _constraint(grammar: Grammar | None) -> Constraint | None:
    if grammar is None:
        return None
    if grammar.type == "regex":
        if not isinstance(grammar.value, str):
            raise rejection("grammar is not valid: value should be a regular expression")
        return Regex(grammar.value, "grammar")
    return JSONSchema(_schema(grammar), "grammar", strict=True)


def _schema(grammar: Grammar) -> dict[str, Any] | bool:
    value = grammar.value
    if grammar.type == "json_schema":
        value = value.get("schema") if isinstance(value, dict) else None
    elif isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise rejection(f"grammar is not valid: {error}") from None
    if not isinstance(value, (dict, bool)):
        raise rejection("grammar is not valid: value should be a JSON Schema")
    return value
