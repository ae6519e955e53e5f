"""Places of requests, taken at their arrival before any work."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from app.engine.client import Client
from app.service.errors import Overloaded

if TYPE_CHECKING:
    from app.service.model.model import Model
    from app.service.models.entries import Entry

# An estimate for a body that is not tokenized yet.
_BYTES_PER_TOKEN = 4
# A client holds at most all places but one of this many.
_RESERVED_SHARE = 8
# Weight of the newest interval in the moving average.
_WEIGHT = 0.2
_MAX_RETRY_AFTER = 120  # seconds


class Admission:
    """Bounds the requests of a queue and the prompt tokens that wait in it.

    An eighth of the places is closed to a client that holds all others. So a client with many requests does
    not exclude the other clients. Used on the event loop.
    """

    def __init__(
        self, most: int, max_waiting_tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Create an empty queue.

        Args:
            most: Maximum places.
            max_waiting_tokens: Maximum prompt tokens of all requests without a first token. A single
                request may exceed it.
            clock: Seconds since any moment.
        """
        self._most = most
        self._max_waiting_tokens = max_waiting_tokens
        self._clock = clock
        self._held: Counter[str] = Counter()  # places by name of the client
        self._n_held = 0
        self._n_waiting_tokens = 0
        # For Retry-After: the mean time until a place is free, and rejections since then.
        self._seconds_per_place = 0.0
        self._freed_at = 0.0
        self._n_rejected = 0

    def enter(self, client: Client, n_bytes: int) -> Place:
        """Take a place for a request whose body has ``n_bytes``.

        Raises:
            Overloaded: All places are taken, or too many tokens wait.
        """
        place = Place(self, client)
        place.read(n_bytes)
        try:
            place.reserve(1)
        except BaseException:
            place.leave()
            raise
        return place

    def take(self, client: Client, n: int) -> None:
        """Take ``n`` places.

        Raises:
            Overloaded: They are not free.
        """
        if self._n_held + n > self._most:
            raise self._overloaded(
                f"{self._n_held} requests run or wait (MAX_CONCURRENT_REQUESTS={self._most})"
            )
        of_client = self._most - self._most // _RESERVED_SHARE
        if self._held[client.name] + n > of_client:
            raise self._overloaded(
                f"{self._held[client.name]} requests of this client run or wait; it may have {of_client} of "
                f"the {self._most} of all (MAX_CONCURRENT_REQUESTS)"
            )
        if not self._n_held:
            self._freed_at = self._clock()
        self._held[client.name] += n
        self._n_held += n

    def free(self, client: Client, n: int) -> None:
        """Give ``n`` places back."""
        self._held[client.name] -= n
        if not self._held[client.name]:
            del self._held[client.name]
        self._n_held -= n
        now = self._clock()
        seconds = (now - self._freed_at) / n
        if self._seconds_per_place:
            seconds = self._seconds_per_place + _WEIGHT * (seconds - self._seconds_per_place)
        self._seconds_per_place, self._freed_at = seconds, now
        self._n_rejected = max(0, self._n_rejected - n)

    def weigh(self, n_more: int, n_own: int) -> None:
        """Count ``n_more`` tokens of a request that already counts ``n_own``.

        Raises:
            Overloaded: Too many tokens wait.
        """
        n_others = self._n_waiting_tokens - n_own
        if n_more > 0 and n_others and self._n_waiting_tokens + n_more > self._max_waiting_tokens:
            raise self._overloaded(
                f"{n_others} prompt tokens wait, and {n_own + n_more} more exceed the limit of "
                f"{self._max_waiting_tokens} (MAX_WAITING_TOKENS)"
            )
        self._n_waiting_tokens += n_more

    def _overloaded(self, reason: str) -> Overloaded:
        self._n_rejected += 1
        seconds = math.ceil(self._seconds_per_place * self._n_rejected)
        retry_after = min(max(1, seconds), _MAX_RETRY_AFTER)
        return Overloaded(
            f"the server is busy: {reason}; try again in {retry_after} s", retry_after=retry_after
        )


class Place:
    """Places of one request, and its prompt tokens that wait. Leave it at the end of the response.

    Attributes:
        client: Origin of the request.
        models: The models that the request uses. They stay loaded until the end of the response.
    """

    def __init__(self, admission: Admission, client: Client) -> None:
        self._admission = admission
        self.client = client
        self.models: dict[Entry, Model] = {}
        self._releases: list[Callable[[], None]] = []
        self._n_places = 0
        self._n_bytes = 0
        self._n_tokens = 0
        self._is_estimate = True
        self._is_waiting = True

    def reserve(self, n: int) -> None:
        """Hold ``n`` places, one per answer.

        Raises:
            Overloaded: They are not free.
        """
        if n > self._n_places:
            self._admission.take(self.client, n - self._n_places)
            self._n_places = n

    def wait(self, n_tokens: int) -> None:
        """Count estimated tokens of a body that arrives.

        Raises:
            Overloaded: Too many tokens wait.
        """
        self._admission.weigh(n_tokens, self._n_tokens)
        self._n_tokens += n_tokens

    def read(self, n_bytes: int) -> None:
        """Count a part of a body.

        Raises:
            Overloaded: Too many tokens wait.
        """
        n_bytes += self._n_bytes
        self.wait(n_bytes // _BYTES_PER_TOKEN - self._n_tokens)
        self._n_bytes = n_bytes

    def prepared(self, n_tokens: int) -> None:
        """Count the tokens of a prompt. The first prompt replaces the estimate.

        Raises:
            Overloaded: Too many tokens wait.
        """
        self.wait(n_tokens - (self._n_tokens if self._is_estimate else 0))
        self._is_estimate = False

    def begin(self) -> None:
        """The response begins: its prompt does not wait any more."""
        self._admission.weigh(-self._n_tokens, self._n_tokens)
        self._n_tokens = 0

    def hold(self, entry: Entry, model: Model, release: Callable[[], None]) -> None:
        """Use a model until the end of the response, which calls ``release``."""
        self.models[entry] = model
        self._releases.append(release)

    def leave(self) -> None:
        """Give all places and models back."""
        self.begin()
        while self._releases:
            self._releases.pop()()
        self.models.clear()
        if self._n_places:
            self._admission.free(self.client, self._n_places)
            self._n_places = 0

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
