"""The OpenAPI 3.1 document of the dialects. Schemas come from the types that validate and encode bodies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from starlette.routing import compile_path

from app import __version__
from app.api.dialect import JSON, RETRY_AFTER, Dialect, ErrorFormat, Operation, Reply

_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: RETRY_AFTER, 503: RETRY_AFTER}

Dialects = Sequence[tuple[Dialect, Sequence[Operation]]]


def document(dialects: Dialects, *, needs_key: bool) -> dict[str, Any]:
    """Describe the operations of the dialects.

    Args:
        dialects: Each dialect with the operations that are served.
        needs_key: Whether operations require a key unless they are open.
    """
    schemas = _Schemas(_types(dialects))
    paths: dict[str, dict[str, Any]] = {}
    tags: dict[str, str] = {}
    for dialect, operations in dialects:
        tags |= {dialect.name: dialect.description, **dialect.groups}
        for operation in operations:
            path = compile_path(operation.path)[1]  # without the convertors of Starlette
            paths.setdefault(path, {})[operation.method.lower()] = {
                "tags": [operation.group or dialect.name],
                **_described(operation, dialect.error, schemas, needs_key=needs_key),
                "operationId": _operation_id(operation.method, path),
            }
    components: dict[str, Any] = {"schemas": schemas.components}
    if needs_key:
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "A key of this server."},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tokenstream",
            "version": __version__,
            "description": "A language model served on CPUs, in several dialects of HTTP.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": description} for name, description in tags.items()],
        "paths": paths,
        "components": components,
    }


def _types(dialects: Dialects) -> dict[Any, None]:
    """All types of bodies, without duplicates, in a stable order."""
    types: dict[Any, None] = {}
    for dialect, operations in dialects:
        types |= dict.fromkeys((dialect.error.schema, *dialect.schemas))
        for operation in operations:
            if operation.body is not None:
                types[operation.body] = None
            for reply in operation.replies.values():
                types |= dict.fromkeys(reply.content.values())
    return types


class _SchemaGenerator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        """Omit titles: they repeat the name of the field."""
        return False


class _Schemas:
    def __init__(self, types: Iterable[Any]) -> None:
        # Mode "validation": a field with a default may be missing, in requests and in responses.
        self._schemas, definitions = TypeAdapter.json_schemas(
            [(kind, "validation", TypeAdapter(kind)) for kind in types],
            ref_template="#/components/schemas/{model}",
            schema_generator=_SchemaGenerator,
        )
        self.components: dict[str, Any] = definitions["$defs"]

    def of(self, kind: Any) -> dict[str, Any]:
        return dict(self._schemas[kind, "validation"])


def _described(
    operation: Operation, error: ErrorFormat, schemas: _Schemas, *, needs_key: bool
) -> dict[str, Any]:
    described: dict[str, Any] = {"summary": operation.summary}
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
    if needs_key and not operation.is_open:
        errors[401] = "The request has no key of the server (API_KEY, API_KEYS)."
        if operation.body is not None:
            errors[403] = "The key does not allow the context or the model."
        described["security"] = [{"key": []}, {"header": []}]
    responses = {str(status): _response(reply, schemas) for status, reply in operation.replies.items()}
    for status, cause in sorted(errors.items()):
        reply = Reply(cause, {JSON: error.schema}, _HEADERS.get(status, {}))
        responses[str(status)] = _response(reply, schemas)
    described["responses"] = responses
    return described


def _response(reply: Reply, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": reply.description,
        "content": {media_type: {"schema": schemas.of(kind)} for media_type, kind in reply.content.items()},
    }
    headers = {**reply.headers, **reply.may_have}
    if headers:
        described["headers"] = {
            name: {"description": text, "required": name in reply.headers, "schema": {"type": "string"}}
            for name, text in headers.items()
        }
    return described


def _operation_id(method: str, path: str) -> str:
    return _key(f"{method} {path}") + ("_slash" if path.endswith("/") and path != "/" else "")


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
