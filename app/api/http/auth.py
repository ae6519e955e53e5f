"""Authentication with API_KEY and API_KEYS, and the client of a request."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.dialect import Problem
from app.api.http.errors import respond
from app.config.keys import Keys
from app.service import Client, client_of_key
from app.telemetry.request import current


def client_of(connection: HTTPConnection) -> Client:
    """The client of a request: its key of API_KEYS, otherwise its address. API_KEY has many clients."""
    client: Client | None = getattr(connection.state, "client", None)
    if client is not None:
        return client
    address = connection.client
    return Client(address.host if address else "unknown")


def key_name_of(connection: HTTPConnection) -> str | None:
    """Name of the key of API_KEYS. None: the request has none of them."""
    client: Client | None = getattr(connection.state, "client", None)
    return None if client is None else client.name


class RequireKey:
    """Middleware that rejects requests without a key (401).

    Clients send it as a Bearer token, or in the header x-api-key.
    """

    def __init__(
        self, app: ASGIApp, key: str | None, keys: Keys, is_open: Callable[[str, str], bool]
    ) -> None:
        """Prepare the check.

        Args:
            app: The next application.
            key: API_KEY.
            keys: API_KEYS.
            is_open: Whether a request with this method and path needs no key.
        """
        self._app = app
        self._key = key.encode() if key else None
        self._keys = keys
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._may_pass(HTTPConnection(scope)):
            message = "Authorization: should be Bearer and a key of this server (API_KEY, API_KEYS)"
            await respond(scope, Problem(401, "unauthorized", message))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _may_pass(self, connection: HTTPConnection) -> bool:
        if self._is_open(connection.scope["method"], connection.scope["path"]):
            return True
        key = _sent_key(connection)
        if self._key is not None and secrets.compare_digest(key, self._key):
            return True
        if found := self._keys.find(key):
            connection.state.client = client_of_key(*found)
            current().key = found[0]
            return True
        return False


def _sent_key(connection: HTTPConnection) -> bytes:
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = connection.headers.get("x-api-key", "")
    return key.strip().encode("latin-1")
