"""Who may ask: whoever knows API_KEY, where one is set."""

from __future__ import annotations

import secrets

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.http.errors import respond
from app.api.http.problems import Problem

# Open to all that only read: the pages (which ask for the key themselves), the document of the API, and what
# tells whether the server is well. POST / is TGI's, and not open.
_OPEN = (
    "/",
    "/docs",
    "/swagger-ui",
    "/openapi.json",
    "/api-docs/openapi.json",
    "/health",
    "/ready",
)
_OPEN_FOLDERS = ("/ui/", "/docs/", "/swagger-ui/")


class RequireKey:
    """Answers 401 to requests without the key, which clients of OpenAI and TGI send as a Bearer token."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http" and not self._may_pass(HTTPConnection(scope)):
            problem = Problem(401, "unauthorized", "Authorization: should be Bearer and the key (API_KEY)")
            await respond(scope, problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _may_pass(self, connection: HTTPConnection) -> bool:
        path = connection.scope["path"]
        if connection.scope["method"] in ("GET", "HEAD") and (
            path in _OPEN or path.startswith(_OPEN_FOLDERS)
        ):
            return True
        scheme, _, key = connection.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(key.strip().encode("latin-1"), self._key)
