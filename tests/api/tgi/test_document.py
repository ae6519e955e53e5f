"""The schemas of ``/generate`` and ``/generate_stream`` equal those of TGI 3, except DIFFERENCES."""

from __future__ import annotations

from typing import Any

import pytest

from app.api.app import api_document
from app.config.settings import load

DOCUMENT = api_document(load(env_file=None))
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]

# Fields of TGI 3 in the notation of `notation`. "!" marks required fields.
TGI: dict[str, dict[str, str]] = {
    "GenerateRequest": {"inputs!": "string", "parameters": "GenerateParameters"},
    "CompatGenerateRequest": {
        "inputs!": "string",
        "parameters": "GenerateParameters",
        "stream": "boolean = false",
    },
    "GenerateParameters": {
        "adapter_id": "string | null = null",
        "best_of": "integer >0 | null = null",
        "decoder_input_details": "boolean = false",
        "details": "boolean = true",
        "do_sample": "boolean = false",
        "frequency_penalty": "number >-2 | null = null",
        "grammar": "Grammar | null = null",
        "max_new_tokens": "integer | null = 1024",
        "repetition_penalty": "number >0 | null = null",
        "return_full_text": "boolean | null = null",
        "seed": "integer >0 | null = null",
        "stop": "[string] at most 4",
        "temperature": "number >0 | null = null",
        "top_k": "integer >0 | null = null",
        "top_n_tokens": "integer >0 | null = null",
        "top_p": "number >0 <=1 | null = null",
        "truncate": "integer | null = null",
        "typical_p": "number >0 <=1 | null = null",
        "watermark": "boolean = false",
    },
    "Grammar": {"type!": "json or json_schema or regex", "value!": "anything"},
    "GenerateResponse": {"generated_text!": "string", "details": "Details | null"},
    "Details": {
        "finish_reason!": "eos_token or length or stop_sequence",
        "generated_tokens!": "integer",
        "seed": "integer | null",
        "prefill!": "[PrefillToken]",
        "tokens!": "[Token]",
        "top_tokens": "[[Token]]",
        "best_of_sequences": "[BestOfSequence] | null",
    },
    "BestOfSequence": {
        "generated_text!": "string",
        "finish_reason!": "eos_token or length or stop_sequence",
        "generated_tokens!": "integer",
        "seed": "integer | null",
        "prefill!": "[PrefillToken]",
        "tokens!": "[Token]",
        "top_tokens": "[[Token]]",
    },
    "StreamResponse": {
        "index!": "integer",
        "token!": "Token",
        "top_tokens": "[Token]",
        "generated_text": "string | null = null",
        "details": "StreamDetails | null = null",
    },
    "StreamDetails": {
        "finish_reason!": "eos_token or length or stop_sequence",
        "generated_tokens!": "integer",
        "input_length!": "integer",
        "seed": "integer | null",
    },
    "Token": {"id!": "integer", "text!": "string", "logprob!": "number | null", "special!": "boolean"},
    "PrefillToken": {"id!": "integer", "text!": "string", "logprob!": "number | null"},
    "ErrorResponse": {"error!": "string", "error_type!": "string"},
}

# Statuses and media types in TGI's document.
TGI_ROUTES = {
    "/generate": ({200, 422, 424, 429, 500}, {"application/json"}),
    "/generate_stream": ({200, 422, 424, 429, 500}, {"text/event-stream"}),
    "/": ({200, 422, 424, 429, 500}, {"application/json", "text/event-stream"}),
}

# Field -> our schema, and the reason.
DIFFERENCES: dict[tuple[str, str], tuple[str, str]] = {
    ("GenerateParameters", "details"): (
        "boolean = false",
        "TGI's document has true, but TGI answers without details by default",
    ),
    ("GenerateParameters", "frequency_penalty"): (
        "number >=-2 <=2 | null = null",
        "TGI checks these bounds; its document has only one of them",
    ),
    ("GenerateParameters", "max_new_tokens"): (
        "integer >0 | null = null",
        "TGI rejects 0; the default is MODEL_MAX_TOKEN",
    ),
    ("GenerateParameters", "seed"): ("integer | null = null", "TGI accepts 0"),
    ("GenerateParameters", "stop"): (
        "[string] = []",
        "MAX_STOP_SEQUENCES sets the limit",
    ),
    ("GenerateParameters", "top_n_tokens"): ("integer | null = null", "TGI accepts 0"),
    ("GenerateParameters", "top_p"): ("number >0 <1 | null = null", "TGI rejects 1"),
    ("GenerateParameters", "truncate"): ("integer >0 | null = null", "TGI rejects 0"),
    ("GenerateParameters", "typical_p"): ("number >0 <1 | null = null", "TGI rejects 1"),
    ("Grammar", "type!"): (
        "json or json_object or json_schema or regex",
        "TGI accepts json_object for json",
    ),
}


def notation(schema: dict[str, Any]) -> str:
    """A schema as text: type, bounds and default. Bounds of integer types are left out."""
    if "anyOf" in schema:
        siblings = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
        kind = " | ".join(notation({**siblings, **one}) for one in schema["anyOf"])
        return kind + default(schema)
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return " or ".join(sorted(schema["enum"]))
    if schema.get("type") == "array":
        most = f" at most {schema['maxItems']}" if "maxItems" in schema else ""
        return f"[{notation(schema['items'])}]{most}{default(schema)}"
    kind = schema.get("type", "anything")
    return kind + (bounds(schema) if kind in ("integer", "number") else "") + default(schema)


def default(schema: dict[str, Any]) -> str:
    names = {None: "null", True: "true", False: "false"}
    if schema.get("default", ...) is ...:
        return ""
    value = schema["default"]
    return f" = {names[value] if value is None or isinstance(value, bool) else value}"


def bounds(schema: dict[str, Any]) -> str:
    minimum, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    if above is not None:
        minimum = None
    if minimum == 0 or minimum == -(2**31):  # bound of an integer type
        minimum = None
    signs = {">": above, ">=": minimum, "<": schema.get("exclusiveMaximum"), "<=": schema.get("maximum")}
    return "".join(
        f" {sign}{bound}" for sign, bound in signs.items() if bound is not None and abs(bound) < 2**31
    )


def ours(name: str) -> dict[str, str]:
    schema = SCHEMAS[name]
    always = schema.get("required", ())
    return {
        field + ("!" if field in always else ""): notation(one) for field, one in schema["properties"].items()
    }


@pytest.mark.parametrize("name", TGI)
def test_fields_equal_those_of_tgi(name: str) -> None:
    expected = dict(TGI[name])
    for (schema, field), (replacement, _why) in DIFFERENCES.items():
        if schema == name:
            assert expected[field] != replacement, "not a difference"
            expected[field] = replacement
    is_response = name in ("GenerateResponse", "Details", "BestOfSequence", "StreamResponse", "StreamDetails")
    actual = ours(name)
    if is_response:  # defaults are for request fields
        actual = {field: one.removesuffix(" = null") for field, one in actual.items()}
        expected = {field: one.removesuffix(" = null") for field, one in expected.items()}
    if name in ("GenerateRequest", "CompatGenerateRequest"):  # its default is a whole object
        actual["parameters"] = actual["parameters"].partition(" = ")[0]
    assert actual == expected


@pytest.mark.parametrize("path", TGI_ROUTES)
def test_statuses_and_media_types_equal_those_of_tgi(path: str) -> None:
    statuses, media_types = TGI_ROUTES[path]
    responses = DOCUMENT["paths"][path]["post"]["responses"]
    assert set(responses["200"]["content"]) == media_types
    # More than TGI's: malformed JSON, long body, wrong media type, loading model.
    more = {400, 408, 413, 415, 503, 504} | ({501} if path == "/" else set())  # embeddings
    assert {int(status) for status in responses} == statuses | more
