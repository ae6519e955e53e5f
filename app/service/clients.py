"""Clients with a key: their permissions and their token rate."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from app.config.keys import PRIORITIES, Key
from app.engine.client import Client
from app.service.errors import BadRequest, Forbidden, Overloaded
from app.service.preparing.prompts import ChatPrompt, Prompt


@dataclass(frozen=True, slots=True)
class KeyClient(Client):
    """The client of a key. ``key`` has the limits that the engine does not know."""

    key: Key | None = field(default=None, compare=False)  # it is not hashable


def client_of_key(name: str, key: Key) -> Client:
    return KeyClient(name, key.priority, key.max_running, key.max_waiting, key)


def with_priority(client: Client, priority: str) -> Client:
    """The client of a request with the header X-Priority. Everybody may choose a lower priority.

    Raises:
        BadRequest: ``priority`` is no integer in the range.
        Forbidden: It is higher than the client's key allows.
    """
    low, high = PRIORITIES[0], PRIORITIES[-1]
    if not re.fullmatch(r"[+-]?\d{1,3}", priority, re.ASCII) or int(priority) not in PRIORITIES:
        raise BadRequest(f"X-Priority: {priority} should be an integer from {low} to {high}")
    key = _key(client)
    most = client.priority if key is None or key.max_priority is None else key.max_priority
    most = max(most, client.priority)
    if int(priority) > most:
        raise Forbidden(
            f"X-Priority: {priority} is not allowed; at most {most}, by priority and max_priority of the key"
        )
    return replace(client, priority=int(priority))


def check_model(client: Client, model: str) -> None:
    """Check that a client may use a model.

    Raises:
        Forbidden: Its key has ``models`` without this one.
    """
    key = _key(client)
    if key and key.models is not None and not any(fnmatchcase(model, name) for name in key.models):
        allowed = ", ".join(key.models) or "none"
        raise Forbidden(f"key {client.name} does not allow model {model}; allowed: {allowed}", field="model")


def allows_context(client: Client, name: str) -> bool:
    """Whether a client may use a context."""
    key = _key(client)
    return key is None or key.contexts is None or name in key.contexts


def allows_uploads(client: Client) -> bool:
    """Whether a client may store documents: without a key of API_KEYS, or with ``uploads``."""
    key = _key(client)
    return key is None or key.uploads


def check_upload(client: Client) -> None:
    """Check that a client may store documents.

    Raises:
        Forbidden: Its key has no ``uploads``.
    """
    if not allows_uploads(client):
        raise Forbidden(f"key {client.name} does not allow uploads; set uploads = true in its table")


def check_prompt(client: Client, prompt: Prompt, default_context: str) -> None:
    """Check that a client may use the context of a prompt.

    Raises:
        Forbidden: Its key has ``contexts``, and the prompt has another context or replaces it.
    """
    key = _key(client)
    if key is None or key.contexts is None:
        return
    allowed = f"key {client.name} allows the contexts {', '.join(key.contexts) or '(none)'}"
    if not isinstance(prompt, ChatPrompt):
        raise Forbidden(f"{allowed}, and this request has no context", field=prompt.field)
    context = default_context if prompt.context is None else prompt.context
    if not allows_context(client, context):
        raise Forbidden(f"{allowed}, not {context!r}", field="context")
    if any(message.role == "system" for message in prompt.messages):
        raise Forbidden(f"{allowed}, and a system message would replace the context", field=prompt.field)


class TokenRates:
    """Tokens per minute of keys. A client may use one minute's tokens at once.

    A request is accepted while its client has tokens left. Then its balance may become negative, and the next
    request waits until it is positive. So the mean rate is the limit. Used on the event loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds since any moment."""
        self._clock = clock
        self._balances: dict[str, tuple[float, float]] = {}  # tokens, and the time when they were counted

    def check(self, client: Client) -> None:
        """Check that a client has tokens left.

        Raises:
            Overloaded: It has used its tokens.
        """
        rate = _tokens_per_minute(client)
        if rate is None or (balance := self._balance(client, rate)) > 0:
            return
        seconds = math.ceil((1 - balance) * 60 / rate)
        raise Overloaded(
            f"key {client.name} has used its {rate} tokens per minute; try again in {seconds} s",
            retry_after=seconds,
        )

    def spend(self, client: Client, n_tokens: int) -> None:
        """Count prompt tokens or generated tokens."""
        if (rate := _tokens_per_minute(client)) is not None:
            self._balances[client.name] = self._balance(client, rate) - n_tokens, self._clock()

    def _balance(self, client: Client, rate: int) -> float:
        balance, counted_at = self._balances.get(client.name, (float(rate), self._clock()))
        return min(float(rate), balance + (self._clock() - counted_at) * rate / 60)


def _key(client: Client) -> Key | None:
    return client.key if isinstance(client, KeyClient) else None


def _tokens_per_minute(client: Client) -> int | None:
    key = _key(client)
    return key.tokens_per_minute if key else None
