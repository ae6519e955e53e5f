"""The route table of all dialects: error formats, open paths, and docs/api.md."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from app.api.app import DIALECTS, route_table
from app.api.dialect import Dialect, ErrorFormat, Operation, Problem, Reply, RouteTable
from app.api.http.errors import ERRORS as OWN
from app.api.openai.errors import ERRORS as OPENAI
from app.api.tgi.errors import ERRORS as TGI
from app.config.settings import load
from tests.conftest import ROOT

SETTINGS = load(env_file=None, knowledge_uploads="on")
TABLE = route_table(SETTINGS)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/token_stream", OWN),
        ("POST", "/v1/chat/completions", OPENAI),
        ("POST", "/chat/completions", OPENAI),
        ("POST", "/v1/knowledge/search", OPENAI),
        ("GET", "/v1/models/a/b", OPENAI),
        ("POST", "/", TGI),
        ("GET", "/", OWN),
        ("POST", "/model/a/b/", TGI),
        ("POST", "/invocations", TGI),
        ("GET", "/health", OWN),
    ],
)
def test_an_operation_has_the_error_format_of_its_dialect(
    method: str, path: str, expected: ErrorFormat
) -> None:
    assert TABLE.error_format(method, path) is expected


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/generate", TGI),
        ("DELETE", "/v1/models", OPENAI),
        ("PUT", "/token_stream", OWN),
        ("PUT", "/", OWN),  # of two dialects
        ("GET", "/v1/nothing", OPENAI),
        ("POST", "/generate/nothing", TGI),
        ("GET", "/nothing", OWN),
        ("GET", "/ui/nothing.js", OWN),
    ],
)
def test_unknown_paths_and_methods_have_the_error_format_of_their_prefix(
    method: str, path: str, expected: ErrorFormat
) -> None:
    assert TABLE.error_format(method, path) is expected


def test_open_operations_and_files_need_no_key() -> None:
    for path in ("/", "/docs", "/docs/swagger-ui.css", "/ui/app.js", "/openapi.json", "/health", "/ready"):
        assert TABLE.is_open("GET", path)
        assert TABLE.is_open("HEAD", path)
        assert not TABLE.is_open("POST", path)
    for path in ("/metrics", "/contexts", "/v1/models", "/info", "/uix", "/nothing"):
        assert not TABLE.is_open("GET", path)


def test_metrics_on_another_address_are_no_route() -> None:
    elsewhere = route_table(
        load(env_file=None, knowledge_uploads="on", prometheus_http_address="127.0.0.1:9")
    )
    paths = {route.path for route in TABLE.routes} - {route.path for route in elsewhere.routes}
    assert paths == {"/metrics", "/stats", "/stats/events"}


async def answer(_request: Request) -> Response:
    return Response()


def dialect(name: str, *paths: str, error: ErrorFormat) -> Dialect:
    operations = [
        Operation(
            method="POST",
            path=path,
            endpoint=answer,
            summary=name,
            replies={200: Reply("Nothing.", {})},
            errors={},
        )
        for path in paths
    ]
    return Dialect(name, name, error, operations)


def test_dialects_with_the_same_first_segment_have_separate_error_formats() -> None:
    def body(problem: Problem) -> dict[str, Any]:
        return {"type": "error", "message": problem.message}

    other = ErrorFormat(dict[str, Any], body)
    new = dialect("New", "/v1/elsewhere", "/new/chat", error=other)
    table = RouteTable((*DIALECTS, new), SETTINGS, default=OWN)
    assert table.error_format("POST", "/v1/elsewhere") is other
    assert table.error_format("GET", "/v1/elsewhere") is other
    assert table.error_format("GET", "/new/tags") is other
    assert table.error_format("GET", "/v1/nothing") is OPENAI  # the earlier dialect


def test_every_route_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    named = set(re.findall(r"`([A-Z]+ /[^`\s]*)`", page))
    routes = {
        f"{operation.method} {re.sub(r':path}', '}', operation.path)}"
        for _, operations in TABLE.dialects
        for operation in operations
    }
    assert named == routes
