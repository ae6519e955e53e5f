"""Responses to generated requests match the OpenAPI document."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import (
    ChecksConfig,
    CoveragePhaseConfig,
    GenerationConfig,
    PhasesConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.generation.feedback import FeedbackSources
from schemathesis.generation.hypothesis.builder import (
    InvalidHeadersExampleMark,
    MissingPathParameters,
    NonSerializableMark,
    UnserializablePayloadMark,
)
from schemathesis.pytest._test_builder import build_operation_test
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    status_code_conformance,
)

from app.api.app import api_document
from app.config.settings import load
from tests.api.api_document import Checker, operations

pytestmark = pytest.mark.slow

MAX_EXAMPLES = 15
MAX_TOKENS = 2
# Largest values that the schemas accept.
VALID = {
    "max_tokens": 2**63,
    "max_completion_tokens": 2**63,
    "max_new_tokens": 2**32 - 1,
    "n": 128,
    "best_of": 128,
    "num_predict": 2**63,
}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    negative_data_rejection,
]
# Statuses for bodies that the schemas reject. 413: some generated lists of tokens are too long.
REJECTED = [400, 404, 413, 415, 422]
# The same handlers at other paths.
ALIASES = [
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/responses",
    "/responses/input_tokens",
    "/responses/{response_id}",
    "/responses/{response_id}/input_items",
    "/model/{name}",
    "/model/{name}/",
    "/api-docs/openapi.json",
]
# Their bodies are those of other operations, so each value at its bounds is tested there.
SAME_BODIES = [
    "/",
    "/generate_stream",
    "/invocations",
    "/chat_tokenize",
    "/v1/responses/input_tokens",
    "/v1/messages/count_tokens",
    "/v2/rerank",
    "/rerank",
]

DOCUMENT = api_document(load(env_file=None))
CHECKER = Checker(DOCUMENT)
FEW = settings(
    max_examples=MAX_EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


OPERATIONS = [(method, path) for method, path, _ in operations(DOCUMENT) if path not in ALIASES]
# Set by schemathesis if it cannot generate some of the requests.
INCOMPLETE = (
    InvalidHeadersExampleMark,
    MissingPathParameters,
    NonSerializableMark,
    UnserializablePayloadMark,
)


def schema(*, at_the_bounds: bool) -> BaseSchema:
    """Random requests to all routes. With ``at_the_bounds`` also each value at and beyond its bounds."""
    # Methods outside the document are not tested here.
    coverage = CoveragePhaseConfig(enabled=at_the_bounds, unexpected_methods=set())
    project = ProjectConfig(
        generation=GenerationConfig(deterministic=True),
        phases=PhasesConfig(coverage=coverage),
        checks=ChecksConfig.from_dict({"negative_data_rejection": {"expected-statuses": REJECTED}}),
    )
    config = SchemathesisConfig(projects=ProjectsConfig(default=project))
    return schemathesis.openapi.from_dict(DOCUMENT, config=config)


def keep_short(path: str, fields: dict[str, Any]) -> None:
    """Limit the tokens and choices of a valid body. An invalid body stays invalid."""
    if path.startswith("/api/"):
        fields, limit = fields.setdefault("options", {}), "num_predict"
    elif "inputs" in fields:
        fields, limit = fields.setdefault("parameters", {}), "max_new_tokens"
    else:
        limit = "max_tokens"
    if not isinstance(fields, dict):
        return
    if fields.get(limit) is None:
        fields[limit] = MAX_TOKENS
    for name in (limit, "max_completion_tokens", "n", "best_of"):
        highest = MAX_TOKENS if name.startswith("max") else 2
        if type(value := fields.get(name)) is int and highest < value <= VALID[name]:
            fields[name] = highest


@pytest.fixture(scope="module")
def server_url(knowledge_url: str) -> str:
    """A server with every described operation."""
    return knowledge_url


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def send(case: schemathesis.Case, url: str, session: requests.Session) -> None:
    """Send a request and validate the response against the document."""
    if isinstance(case.body, dict):
        case.body = copy.deepcopy(case.body)  # the body can be an example in the document
        keep_short(case.operation.path, case.body)
    response = case.call(base_url=url, session=session, timeout=60)
    case.validate_response(response, checks=CHECKS)
    headers = {name: values[0] for name, values in response.headers.items()}
    copied = httpx.Response(response.status_code, headers=headers, content=response.content)
    CHECKER.check(DOCUMENT["paths"][case.operation.path][case.method.lower()], copied)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_responses_match_the_document(
    method: str, path: str, server_url: str, session: requests.Session
) -> None:
    """schema.parametrize() would generate all requests at collection: 7 s in each process of a run."""

    @FEW
    def check(case: schemathesis.Case) -> None:
        send(case, server_url, session)

    described = schema(at_the_bounds=path not in SAME_BODIES)
    generated = build_operation_test(
        config=described.config,
        operation=described[path][method],
        test_func=check,
        given_kwargs={},
        feedback=FeedbackSources(),
    )
    assert not [mark for mark in INCOMPLETE if mark.is_set(generated)]
    generated()
