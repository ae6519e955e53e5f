"""Whether TGI would take a request, in the order in which TGI looks and the words with which it refuses.

Its own are in ``router/src/validation.rs`` of huggingface/text-generation-inference.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from app.api.http.problems import ApiError, Problem
from app.api.tgi.requests import GenerateParameters, GenerateRequest, Grammar
from app.config.settings import Settings
from app.service import Constraint, JSONSchema, Regex, TextPrompt
from app.service.preparation import TokenLimits


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that TGI would take.

    Attributes:
        prompt: What the model goes on with.
        overrides: The SamplingParams fields.
        constraint: What the answer has to keep to.
        n: How many answers are made, of which the best is given.
        seed: By which the tokens of the first are drawn; None where none are.
    """

    prompt: TextPrompt
    overrides: dict[str, Any]
    constraint: Constraint | None
    n: int
    seed: int | None

    def seed_of(self, index: int) -> int | None:
        """The seed that makes answer ``index`` again; of several, each has its own."""
        return (self.seed + index) % 2**32 if self.seed is not None and index else self.seed


def refusal(cause: str) -> ApiError:
    """A request that TGI would not take."""
    return ApiError(Problem(422, "validation", cause))


def validated(request: GenerateRequest, settings: Settings, limits: TokenLimits, *, is_stream: bool) -> Asked:
    """Check a request as TGI does.

    Raises:
        ApiError: TGI would refuse it.
    """
    for cause in _causes(request, settings, limits, is_stream=is_stream):
        raise refusal(cause)
    given = request.parameters
    prompt = TextPrompt(request.inputs, truncate=given.truncate, field="inputs")
    draws = _draws(given)
    n = given.best_of or 1
    seed = (secrets.randbits(32) if given.seed is None else given.seed) if draws else None
    return Asked(prompt, _overrides(given, seed, draws=draws), _constraint(given.grammar), n, seed)


def too_long(given: GenerateParameters, n_tokens: int, limits: TokenLimits) -> ApiError:
    """The refusal of a prompt that does not fit, alone or with its answer."""
    n_new = given.max_new_tokens or 0  # what is not named takes the room that is left
    if n_tokens + n_new > limits.total:
        return refusal(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.total}. "
            f"Given: {n_tokens} `inputs` tokens and {n_new} `max_new_tokens`"
        )
    return refusal(f"`inputs` must have less than {limits.input} tokens. Given: {n_tokens}")


def _overrides(given: GenerateParameters, seed: int | None, *, draws: bool) -> dict[str, Any]:
    overrides: dict[str, Any] = {
        "temperature": (1.0 if given.temperature is None else given.temperature) if draws else 0.0,
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


def _draws(given: GenerateParameters) -> bool:
    """Whether tokens are drawn; as TGI has it, whatever bends the distribution says so too."""
    return (
        given.do_sample
        or given.temperature not in (None, 1.0)
        or any(value is not None for value in (given.top_k, given.top_p, given.typical_p))
    )


def _causes(
    request: GenerateRequest, settings: Settings, limits: TokenLimits, *, is_stream: bool
) -> Iterator[str]:
    """Why TGI would refuse the request, in the order in which it looks."""
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
    if given.adapter_id is not None:
        yield "`adapter_id` is not supported: no adapters are loaded"


def _causes_in_best_of(given: GenerateParameters, most: int) -> Iterator[str]:
    n = 1 if given.best_of is None else given.best_of
    if n != 1 and most == 1:
        yield "`best_of` != 1 is not allowed for this endpoint"
    if not 0 < n <= most:
        yield f"`best_of` must be > 0 and <= {most}. Given: {n}"
    if n > 1 and not _draws(given) and given.temperature is None:
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
            raise refusal("grammar is not valid: value should be a regular expression")
        return Regex(grammar.value, "grammar")
    return JSONSchema(_schema(grammar), "grammar")


def _schema(grammar: Grammar) -> dict[str, Any] | bool:
    value = grammar.value
    if grammar.type == "json_schema":
        value = value.get("schema") if isinstance(value, dict) else None
    elif isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise refusal(f"grammar is not valid: {error}") from None
    if not isinstance(value, (dict, bool)):
        raise refusal("grammar is not valid: value should be a JSON Schema")
    return value
