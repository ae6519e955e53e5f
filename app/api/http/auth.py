"""Authentication with API_KEY, and the client of a request."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.dialect import Problem
from app.api.http.errors import respond
from app.service import Client


def client_of(connection: HTTPConnection) -> Client:
    """The client of a request: its address, because all requests have the same key."""
    address = connection.client
    return Client(address.host if address else "unknown")


class RequireKey:
    """Middleware that rejects requests without the key (401).

    Clients send the key as a Bearer token, or in ``x-api-key``.
    """

    def __init__(self, app: ASGIApp, key: str, is_open: Callable[[str, str], bool]) -> None:
        """``is_open``: whether a request with this method and path needs no key."""
        self._app = app
        self._key = key.encode()
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._may_pass(HTTPConnection(scope)):
            problem = Problem(401, "unauthorized", "Authorization: should be Bearer and the key (API_KEY)")
            await respond(scope, problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _may_pass(self, connection: HTTPConnection) -> bool:
        if self._is_open(connection.scope["method"], connection.scope["path"]):
            return True
        scheme, _, key = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":  # Anthropic's clients send it in a header of its own
            key = connection.headers.get("x-api-key", "")
        return secrets.compare_digest(key.strip().encode("latin-1"), self._key)
