"""Routes described as OpenAPI 3.1: what an operation is, and the document that a table of them makes.

The dialects describe their operations with the pydantic models that validate their requests; the schemas
are drawn from those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from app import __version__

JSON = "application/json"
EVENTS = "text/event-stream"

# What the statuses of errors say in every dialect.
CAUSES = {
    400: "The body is not valid JSON.",
    404: "There is no context of that name.",
    413: "The body is longer than MAX_BODY_BYTES.",
    415: "The body is announced as another media type than application/json.",
    422: "A field is missing, unknown or has a value that is not allowed; or there are too many tokens.",
    424: "The model failed.",
    429: "Too many requests run and wait (MAX_CONCURRENT_REQUESTS).",
    500: "The server failed.",
    501: "The server was started without an embedding model or knowledge base.",
    503: "The model is still loading.",
}

_RETRY_AFTER = {"Retry-After": "Seconds after which trying again makes sense."}
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: _RETRY_AFTER, 503: _RETRY_AFTER}


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that is no error.

    Attributes:
        description: What it is.
        content: By media type, the type of a body; of ``text/event-stream``, the type of each event's data.
        headers: By name, what they say.
        may_have: The same of headers that may be missing.
    """

    description: str
    content: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    may_have: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What a route does for one method.

    Attributes:
        tag: The group in which it is shown.
        summary: One line.
        description: The rest, in Markdown.
        body: The type of the request's body; None where there is none.
        examples: Bodies by what they show. Each is one that the server answers.
        answers: Responses by status.
        error: The type of the body of errors.
        errors: Why it answers with each status of an error.
        parameters: What the parts of the path say, by name.
        is_open: Whether it is answered without the key.
    """

    tag: str
    summary: str
    description: str = ""
    body: Any = None
    examples: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[int, Answer]
    error: Any = None
    errors: Mapping[int, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    is_open: bool = False


Operations = Mapping[tuple[str, str], Operation]
"""By method and path, as in ``("GET", "/v1/models/{name}")``."""


def causes(*statuses: int) -> dict[int, str]:
    """The common causes of some statuses."""
    return {status: CAUSES[status] for status in statuses}


def document(
    operations: Operations, tags: Mapping[str, str], *, needs_key: bool, also: Sequence[type] = ()
) -> dict[str, Any]:
    """The OpenAPI document of some operations.

    Args:
        operations: What there is.
        tags: The groups in their order, and what they are.
        needs_key: Whether a key is asked for where an operation is not open.
        also: Types that no body is of, but that a description names.
    """
    schemas = _Schemas(operations.values(), also)
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in operations.items():
        described = _described(operation, schemas, needs_key=needs_key)
        described["operationId"] = _operation_id(method, path)
        paths.setdefault(path, {})[method.lower()] = described
    components: dict[str, Any] = {"schemas": schemas.components}
    if needs_key:
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "The key of this server (API_KEY)."}
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tokenstream",
            "version": __version__,
            "description": "One language model on plain CPUs, in several dialects.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": description} for name, description in tags.items()],
        "paths": paths,
        "components": components,
    }


class _SchemaGenerator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        """Leave out titles that only repeat a field's name."""
        return False


class _Schemas:
    """The schemas of all types of all operations."""

    def __init__(self, operations: Any, also: Sequence[type]) -> None:
        kinds: dict[Any, None] = dict.fromkeys(also)
        for operation in operations:
            kinds |= dict.fromkeys(kind for kind in (operation.body, operation.error) if kind is not None)
            for answer in operation.answers.values():
                kinds |= dict.fromkeys(answer.content.values())
        # As they are validated: what has a default may be missing, in requests and in answers.
        self._schemas, definitions = TypeAdapter.json_schemas(
            [(kind, "validation", TypeAdapter(kind)) for kind in kinds],
            ref_template="#/components/schemas/{model}",
            schema_generator=_SchemaGenerator,
        )
        self.components: dict[str, Any] = definitions["$defs"]

    def of(self, kind: Any) -> dict[str, Any]:
        """The schema of a type that one of the operations has."""
        return dict(self._schemas[kind, "validation"])


def _described(operation: Operation, schemas: _Schemas, *, needs_key: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"tags": [operation.tag], "summary": operation.summary}
    if operation.description:
        described["description"] = operation.description
    if operation.parameters:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string"}}
            for name, text in operation.parameters.items()
        ]
    if operation.body is not None:
        content = {
            "schema": schemas.of(operation.body),
            "examples": {
                _key(summary): {"summary": summary, "value": value}
                for summary, value in operation.examples.items()
            },
        }
        described["requestBody"] = {"required": True, "content": {JSON: content}}
    errors = dict(operation.errors)
    asks_for_key = needs_key and not operation.is_open
    if asks_for_key:
        errors[401] = "The request does not name the key (API_KEY)."
        described["security"] = [{"key": []}]
    responses = {str(status): _answer(answer, schemas) for status, answer in operation.answers.items()}
    for status, cause in sorted(errors.items()):
        answer = Answer(cause, {JSON: operation.error}, _HEADERS.get(status, {}))
        responses[str(status)] = _answer(answer, schemas)
    described["responses"] = responses
    return described


def _answer(answer: Answer, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": answer.description,
        "content": {media_type: {"schema": schemas.of(kind)} for media_type, kind in answer.content.items()},
    }
    headers = {**answer.headers, **answer.may_have}
    if headers:
        described["headers"] = {
            name: {"description": text, "required": name in answer.headers, "schema": {"type": "string"}}
            for name, text in headers.items()
        }
    return described


def _operation_id(method: str, path: str) -> str:
    return _key(f"{method} {path}") + ("_slash" if path.endswith("/") and path != "/" else "")


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
