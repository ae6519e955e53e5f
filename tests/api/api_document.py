"""The OpenAPI document in tests, and validation of responses against it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
from jsonschema_rs import Draft202012Validator

JSON, EVENTS, NDJSON = "application/json", "text/event-stream", "application/x-ndjson"


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of all operations."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def closed(schema: Any) -> Any:
    """A copy of the schema without additional properties."""
    if isinstance(schema, list):
        return [closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {name: closed(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        copy["additionalProperties"] = False
    return copy


class Checker:
    """Validates responses against a document.

    The validator is compiled: jsonschema takes 0.1 s for the vectors of one response.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._components = closed(document["components"])
        self._validators: dict[int, tuple[Any, Draft202012Validator]] = {}  # by id() of the schema

    def check(self, operation: dict[str, Any], response: httpx.Response) -> None:
        """Fail unless status, headers, media type and body of a response are in the document."""
        described = operation["responses"][str(response.status_code)]
        for name, header in described.get("headers", {}).items():
            assert name in response.headers or not header["required"]
        media_type = response.headers["content-type"].partition(";")[0]
        schema = described["content"][media_type]["schema"]
        if media_type == JSON:
            self.validate(schema, response.json())
        elif media_type == EVENTS:
            events = data_of_events(response.text)
            assert events
            for data in events:
                self.validate(schema, data)
        elif media_type == NDJSON:
            lines = response.text.splitlines()
            assert lines
            for line in lines:
                self.validate(schema, json.loads(line))
        else:
            self.validate(schema, response.text)

    def validate(self, schema: dict[str, Any], data: Any) -> None:
        """Fail unless ``data`` matches a schema of the document."""
        if id(schema) not in self._validators:
            whole = {**closed(schema), "components": self._components}
            self._validators[id(schema)] = schema, Draft202012Validator(whole)
        self._validators[id(schema)][1].validate(data)


def data_of_events(text: str) -> list[Any]:
    """The data of server-sent events, without the final ``[DONE]``."""
    data = [
        line.removeprefix("data:").strip()
        for event in text.split("\n\n")
        for line in event.splitlines()
        if line.startswith("data:")
    ]
    return [json.loads(item) for item in data if item != "[DONE]"]
