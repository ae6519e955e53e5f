"""The OpenAPI document is valid and complete, and responses match it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import httpx
import pytest
from jsonschema_rs import ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from app.api.app import api_document, create_app
from app.config.contexts import load_contexts
from app.config.settings import load
from app.service import Service
from app.telemetry.metrics import Metrics
from tests.api.api_document import Checker, operations
from tests.conftest import KEY, ROOT, Server, free_port

DOCUMENT = api_document(load(env_file=None))
CHECKER = Checker(DOCUMENT)
ALL = [pytest.param(*operation, id=f"{operation[0]} {operation[1]}") for operation in operations(DOCUMENT)]
WITH_BODY = [item for item in ALL if "requestBody" in item.values[2]]
EXAMPLES = [
    pytest.param(method, path, operation, example["value"], id=f"{method} {path} {name}")
    for method, path, operation in operations(DOCUMENT)
    if "requestBody" in operation
    for name, example in operation["requestBody"]["content"]["application/json"]["examples"].items()
]


@pytest.fixture(scope="module")
def server_url(knowledge_url: str) -> str:
    """A server with every described operation."""
    return knowledge_url


@lru_cache
def model_name(url: str) -> str:
    return str(httpx.get(f"{url}/v1/models").json()["data"][0]["id"])


@lru_cache
def response_id(url: str) -> str:
    """The id of a stored response."""
    body = {"input": "Hello", "max_output_tokens": 1}
    return str(httpx.post(f"{url}/v1/responses", json=body, timeout=60).json()["id"])


def send(url: str, method: str, path: str, **request: Any) -> httpx.Response:
    """Send a request to the path of an operation."""
    name = model_name(url) if "{name}" in path and "headers" not in request else "any"
    path = path.replace("{name}", name)
    if "{response_id}" in path:
        path = path.replace("{response_id}", response_id(url))
    return httpx.request(method, url + path, timeout=60, **request)


def app_without_model(**settings: Any) -> Any:
    contexts = load_contexts(ROOT / "config/prompt_config.toml")
    return create_app(Service(load(env_file=None, **settings), contexts, Metrics("test")))


# --- the document itself


@pytest.mark.parametrize("metrics_address", [None, "127.0.0.1:9"])
@pytest.mark.parametrize("key", [None, "s3cret"])
@pytest.mark.slow
def test_the_document_is_valid(metrics_address: str | None, key: str | None) -> None:
    settings = load(env_file=None, prometheus_http_address=metrics_address, api_key=key)
    OpenAPIV31SpecValidator(api_document(settings)).validate()


@pytest.mark.parametrize("metrics_address", [None, "127.0.0.1:9"])
def test_the_document_describes_exactly_the_routes(metrics_address: str | None) -> None:
    routes = [
        route
        for route in app_without_model(prometheus_http_address=metrics_address).routes
        if isinstance(route, Route)  # static files are mounts
    ]
    served = {
        (method, route.path_format) for route in routes for method in (route.methods or set()) - {"HEAD"}
    }
    document = api_document(load(env_file=None, prometheus_http_address=metrics_address))
    assert {(method, path) for method, path, _ in operations(document)} == served


def test_every_operation_has_its_own_id_a_tag_a_summary_and_status_500() -> None:
    described = [operation for _, _, operation in operations(DOCUMENT)]
    assert len({operation["operationId"] for operation in described}) == len(described)
    assert {operation["tags"][0] for operation in described} == {tag["name"] for tag in DOCUMENT["tags"]}
    for operation in described:
        assert operation["summary"]
        assert "500" in operation["responses"]


def test_every_field_of_a_generation_has_a_description() -> None:
    for name in ("GenerateParameters", "TokenStreamRequest"):
        fields = DOCUMENT["components"]["schemas"][name]["properties"]
        assert [field for field, schema in fields.items() if "description" not in schema] == []


def test_examples_match_the_schemas() -> None:
    assert len(EXAMPLES) > 20
    for example in EXAMPLES:
        _, _, operation, value = example.values
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        CHECKER.validate(schema, value)


def test_stop_can_be_a_string_or_a_list() -> None:
    stop = DOCUMENT["components"]["schemas"]["TokenStreamRequest"]["properties"]["stop"]
    CHECKER.validate(stop, "\n")
    CHECKER.validate(stop, ["\n", "."])
    with pytest.raises(ValidationError):
        CHECKER.validate(stop, 5)


# --- the server


def test_the_document_is_served_at_both_paths(server_url: str) -> None:
    for path in ("/openapi.json", "/api-docs/openapi.json"):
        response = httpx.get(server_url + path)
        assert response.headers["content-type"] == "application/json"
        assert response.json() == DOCUMENT


@pytest.mark.parametrize(("method", "path", "operation", "example"), EXAMPLES)
def test_responses_to_examples_match_the_document(
    server_url: str, method: str, path: str, operation: dict[str, Any], example: Any
) -> None:
    response = send(server_url, method, path, json=example)
    assert response.status_code == 200, response.text
    is_stream = (isinstance(example, dict) and bool(example.get("stream"))) or path == "/generate_stream"
    media_type = response.headers["content-type"].partition(";")[0]
    assert (media_type in ("text/event-stream", "application/x-ndjson")) == is_stream
    CHECKER.check(operation, response)


@pytest.mark.parametrize(("method", "path", "operation"), [item for item in ALL if item.values[0] == "GET"])
def test_responses_to_get_match_the_document(
    server_url: str, method: str, path: str, operation: dict[str, Any]
) -> None:
    response = send(server_url, method, path)
    assert response.status_code == 200
    CHECKER.check(operation, response)


@pytest.mark.parametrize(("method", "path", "operation"), WITH_BODY)
def test_responses_to_invalid_bodies_match_the_document(
    server_url: str, method: str, path: str, operation: dict[str, Any]
) -> None:
    malformed = send(server_url, method, path, content=b"{", headers={"Content-Type": "application/json"})
    csv = send(server_url, method, path, content=b"a=1", headers={"Content-Type": "text/csv"})
    mistyped = send(server_url, method, path, json={"inputs": 1, "query": 1, "prompt": 1.5, "messages": 1})
    headers = {"Content-Type": "application/json"}
    too_long = send(server_url, method, path, content=b" " * (1 << 20) + b"  ", headers=headers)
    assert [r.status_code for r in (malformed, csv, too_long)] == [400, 415, 413]
    assert mistyped.status_code in (400, 422)
    for response in (malformed, csv, mistyped, too_long):
        CHECKER.check(operation, response)


def test_the_response_for_an_unknown_model_matches_the_document(server_url: str) -> None:
    response = httpx.get(f"{server_url}/v1/models/none-such")
    assert response.status_code == 404
    CHECKER.check(DOCUMENT["paths"]["/v1/models/{name}"]["get"], response)


@pytest.mark.anyio
async def test_responses_before_the_model_is_loaded_match_the_document() -> None:
    transport = httpx.ASGITransport(app_without_model())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        statuses = {}
        for method, path, operation in operations(DOCUMENT):
            body = operation.get("requestBody")
            example = body and next(iter(body["content"]["application/json"]["examples"].values()))["value"]
            response = await client.request(method, path.replace("{name}", "x"), json=example)
            CHECKER.check(operation, response)
            statuses[method, path] = response.status_code
    assert {status for (method, _), status in statuses.items() if method == "POST"} == {503}
    assert statuses["GET", "/ready"] == statuses["GET", "/v1/models"] == statuses["GET", "/info"] == 503
    assert statuses["GET", "/health"] == statuses["GET", "/docs"] == 200


# --- with a key


def test_the_document_marks_operations_that_need_the_key(locked_server: Server) -> None:
    document = httpx.get(f"{locked_server.url}/openapi.json").json()
    assert document == api_document(load(env_file=None, api_key=KEY))
    checker = Checker(document)
    locked = 0
    for method, path, operation in operations(document):
        response = httpx.request(method, locked_server.url + path.replace("{name}", "x"))
        checker.check(operation, response)
        assert (response.status_code == 401) == ("security" in operation)
        locked += response.status_code == 401
    assert locked >= len(WITH_BODY)
    assert "securitySchemes" not in DOCUMENT["components"]


def test_metrics_on_another_address_are_not_in_the_document(start_server: Callable[..., Server]) -> None:
    address = f"127.0.0.1:{free_port()}"
    url = start_server(PROMETHEUS_HTTP_ADDRESS=address).wait_until("/health").url
    assert "/metrics" not in httpx.get(f"{url}/openapi.json").json()["paths"]
