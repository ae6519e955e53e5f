"""What browsers open: the page, the documentation of the API, and their files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope
from swagger_ui_bundle import swagger_ui_path

UI = Path(__file__).resolve().parents[2] / "ui"

# Its own index.html would open another host's document.
_SWAGGER_FILES = ("swagger-ui.css", "swagger-ui-bundle.js")


def _headers(images: str) -> dict[str, str]:
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {images}; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


_PAGE_HEADERS = _headers(images="'self'")
_DOCS_HEADERS = _headers(images="'self' data:")  # the icons of Swagger UI are in its style sheet


class _PageFiles(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_PAGE_HEADERS)
        return response


class _SwaggerFiles(_PageFiles):
    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        return super().lookup_path(path) if path in _SWAGGER_FILES else ("", None)


async def _page(_request: Request) -> Response:
    return FileResponse(UI / "index.html", headers=_PAGE_HEADERS)


async def _docs(_request: Request) -> Response:
    return FileResponse(UI / "docs.html", headers=_DOCS_HEADERS)


def page_routes(document: dict[str, Any]) -> list[BaseRoute]:
    """The routes of the pages, and of the document that describes all routes there are."""
    body = json.dumps(document, ensure_ascii=False).encode()

    async def openapi(_request: Request) -> Response:
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-cache"})

    return [
        Route("/", _page),
        Mount("/ui", _PageFiles(directory=UI)),
        *(Route(path, _docs) for path in ("/docs", "/swagger-ui", "/swagger-ui/")),
        Mount("/docs", _SwaggerFiles(directory=swagger_ui_path)),
        *(Route(path, openapi) for path in ("/openapi.json", "/api-docs/openapi.json")),
    ]
