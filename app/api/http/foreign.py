"""Rejects requests to foreign hosts, and requests that web pages of other sites make."""

from __future__ import annotations

import socket
from collections.abc import Collection, Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.dialect import Problem
from app.api.http.errors import respond


class AllowedHosts:
    """The hosts of which the server is addressed: this rules out DNS rebinding.

    These are loopback names, the bound address, the name of the machine and ALLOWED_HOSTS. A server on all
    interfaces also has every IP address and every name without a dot. Public DNS has no such names, so a
    foreign site cannot have one.
    """

    def __init__(self, bound: str, more: Collection[str]) -> None:
        """``bound``: host of HTTP_ADDRESS. ``more``: ALLOWED_HOSTS."""
        machine = socket.gethostname().lower()
        self._names = {"localhost", machine, f"{machine.partition('.')[0]}.local", bound.lower(), *more}
        self._suffixes = (".localhost", *(name[1:] for name in more if name.startswith("*.")))
        self._has_all_interfaces = _is_address(bound) and ip_address(bound).is_unspecified

    def __contains__(self, authority: str) -> bool:
        """Whether a Host header is allowed. Its port can be any, because ports are forwarded."""
        host = _host(authority)
        if "*" in self._names or host in self._names or host.endswith(self._suffixes):
            return True
        if _is_address(host) and ip_address(host).is_loopback:
            return True
        return self._has_all_interfaces and (_is_address(host) or "." not in host)


def _host(authority: str) -> str:
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower().removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class RejectForeign:
    """Middleware that rejects foreign hosts and foreign origins (403)."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts, origins: Sequence[str]) -> None:
        """``origins``: CORS_ALLOW_ORIGIN."""
        self._app = app
        self._hosts = hosts
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (problem := self._problem(scope)):
            await respond(scope, problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        # A request without Host (HTTP/1.0) does not come from a browser.
        for host in headers.getlist("host"):
            if host not in self._hosts:
                return Problem(403, "foreign_host", f"Host: {host} is not allowed; add it to ALLOWED_HOSTS")
        origin = headers.get("origin")
        if "*" in self._origins or origin in self._origins or not _is_foreign(scope["method"], headers):
            return None
        message = f"Origin: {origin or 'another site'} is not allowed; add it to CORS_ALLOW_ORIGIN"
        return Problem(403, "foreign_origin", message)


def _is_foreign(method: str, headers: Headers) -> bool:
    """Whether a web page of another origin makes the request. A link to a page of this server is not foreign.

    Browsers send Sec-Fetch-Site to servers with HTTPS or on loopback. To others they send Origin, at least
    with POST.
    """
    site = headers.get("sec-fetch-site")
    if site is None:
        origin = headers.get("origin")
        return origin is not None and _netloc(origin) != headers.get("host")
    is_link = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
    return site not in ("same-origin", "none") and not is_link


def _netloc(origin: str) -> str:
    """Host and port of an origin; empty if it is invalid."""
    try:
        return urlsplit(origin).netloc
    except ValueError:  # such as http://[
        return ""
