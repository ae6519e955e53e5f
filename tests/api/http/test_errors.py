"""Errors of wrong methods on the routes of all dialects. The service is not loaded."""

from __future__ import annotations

import re

import httpx
import pytest
from starlette.routing import compile_path

from app.api.app import DIALECTS, create_app
from app.config.contexts import load_contexts
from app.config.settings import load
from app.service import Service
from app.telemetry.metrics import Metrics
from tests.conftest import ROOT

FILES = ("/ui/app.js", "/docs/swagger-ui.css")


def allowed_methods() -> dict[str, set[str]]:
    """The methods of each path, by the operations of all dialects."""
    operations = [operation for dialect in DIALECTS for operation in dialect.operations]
    methods: dict[str, set[str]] = {path: {"GET", "HEAD"} for path in FILES}
    for path in (re.sub(r"\{.*?\}", "name", operation.path) for operation in operations):
        matching = {one.method for one in operations if compile_path(one.path)[0].match(path)}
        methods[path] = matching | ({"HEAD"} if "GET" in matching else set())
    return methods


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["PUT", "OPTIONS"])
async def test_405_names_all_methods_of_the_path(method: str) -> None:
    service = Service(
        load(env_file=None, knowledge_uploads="on"),
        load_contexts(ROOT / "config" / "prompt_config.toml"),
        Metrics("test"),
    )
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for path, methods in allowed_methods().items():
            if method in methods:
                continue
            response = await client.request(method, path)
            assert response.status_code == 405, path
            assert set(response.headers["allow"].split(", ")) == methods, path
    assert allowed_methods()["/"] == {"GET", "HEAD", "POST"}
