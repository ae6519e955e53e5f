"""Routes for browsers: the page, Swagger UI, the OpenAPI document, and their static files."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope
from swagger_ui_bundle import swagger_ui_path

UI = Path(__file__).resolve().parents[2] / "ui"

# Without Swagger UI's index.html, which loads a document from another host.
_SWAGGER_FILES = ("swagger-ui.css", "swagger-ui-bundle.js")


def _headers(images: str, more: str = "") -> dict[str, str]:
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {images}; connect-src 'self'; "
            f"base-uri 'none'; form-action 'none'; frame-ancestors 'none'{more}"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


# Only DOMPurify converts text to HTML. Swagger UI does so itself.
_PAGE_HEADERS = _headers(
    images="'self'", more="; require-trusted-types-for 'script'; trusted-types dompurify"
)
_DOCS_HEADERS = _headers(images="'self' data:")  # Swagger UI's style sheet embeds its icons


class _PageFiles(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_PAGE_HEADERS)
        return response


class _SwaggerFiles(_PageFiles):
    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        return super().lookup_path(path) if path in _SWAGGER_FILES else ("", None)


FILES = {"/ui": _PageFiles(directory=UI), "/docs": _SwaggerFiles(directory=swagger_ui_path)}


async def page(_request: Request) -> Response:
    return FileResponse(UI / "index.html", headers=_PAGE_HEADERS)


async def stats(_request: Request) -> Response:
    return FileResponse(UI / "stats.html", headers=_PAGE_HEADERS)


async def swagger_ui(_request: Request) -> Response:
    return FileResponse(UI / "docs.html", headers=_DOCS_HEADERS)


async def openapi(request: Request) -> Response:
    """Respond with the OpenAPI document. The first request makes it, in 0.3 s of a thread."""
    document: bytes = await asyncio.to_thread(request.app.state.document)
    return Response(document, media_type="application/json", headers={"Cache-Control": "no-cache"})
