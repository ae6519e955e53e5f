"""Our ``/generate`` and ``/generate_stream`` beside TGI's, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from app.api.app import api_document
from app.config.settings import load

DOCUMENT = api_document(load(env_file=None))
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]

# The fields of TGI 3, each as `told` puts it: "!" behind the name of a field that is always there.
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

# What TGI's document says of a route: statuses, and the media types of the answer.
TGI_ROUTES = {
    "/generate": ({200, 422, 424, 429, 500}, {"application/json"}),
    "/generate_stream": ({200, 422, 424, 429, 500}, {"text/event-stream"}),
    "/": ({200, 422, 424, 429, 500}, {"application/json", "text/event-stream"}),
}

# Ours where it is another, and why.
DIFFERENCES: dict[tuple[str, str], tuple[str, str]] = {
    ("GenerateParameters", "details"): (
        "boolean = false",
        "TGI's document says true, but TGI answers without details unless they are asked for",
    ),
    ("GenerateParameters", "frequency_penalty"): (
        "number >=-2 <=2 | null = null",
        "the bounds that TGI checks, which its document has by half",
    ),
    ("GenerateParameters", "max_new_tokens"): (
        "integer >0 | null = null",
        "TGI refuses 0 too; without the field MODEL_MAX_TOKEN counts",
    ),
    ("GenerateParameters", "seed"): ("integer | null = null", "TGI takes 0 too"),
    ("GenerateParameters", "stop"): (
        "[string] = []",
        "how many there may be is a setting, MAX_STOP_SEQUENCES",
    ),
    ("GenerateParameters", "top_n_tokens"): ("integer | null = null", "TGI takes 0, for none, too"),
    ("GenerateParameters", "top_p"): ("number >0 <1 | null = null", "TGI refuses 1"),
    ("GenerateParameters", "truncate"): ("integer >0 | null = null", "TGI refuses 0"),
    ("GenerateParameters", "typical_p"): ("number >0 <1 | null = null", "TGI refuses 1"),
    ("Grammar", "type!"): (
        "json or json_object or json_schema or regex",
        "TGI takes json_object for json too",
    ),
}


def told(schema: dict[str, Any]) -> str:
    """A schema in words: types, bounds other than those of a number's width, and the default."""
    if "anyOf" in schema:
        beside = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
        kind = " | ".join(told({**beside, **one}) for one in schema["anyOf"])
        return kind + default(schema)
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return " or ".join(sorted(schema["enum"]))
    if schema.get("type") == "array":
        most = f" at most {schema['maxItems']}" if "maxItems" in schema else ""
        return f"[{told(schema['items'])}]{most}{default(schema)}"
    kind = schema.get("type", "anything")
    return kind + (bounds(schema) if kind in ("integer", "number") else "") + default(schema)


def default(schema: dict[str, Any]) -> str:
    words = {None: "null", True: "true", False: "false"}
    if schema.get("default", ...) is ...:
        return ""
    value = schema["default"]
    return f" = {words[value] if value is None or isinstance(value, bool) else value}"


def bounds(schema: dict[str, Any]) -> str:
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    if above is not None:
        least = None
    if least == 0 or least == -(2**31):  # the width of an integer
        least = None
    signs = {">": above, ">=": least, "<": schema.get("exclusiveMaximum"), "<=": schema.get("maximum")}
    return "".join(
        f" {sign}{bound}" for sign, bound in signs.items() if bound is not None and abs(bound) < 2**31
    )


def ours(name: str) -> dict[str, str]:
    schema = SCHEMAS[name]
    always = schema.get("required", ())
    return {
        field + ("!" if field in always else ""): told(one) for field, one in schema["properties"].items()
    }


@pytest.mark.parametrize("name", TGI)
def test_fields_are_those_of_tgi(name: str) -> None:
    expected = dict(TGI[name])
    for (schema, field), (instead, _why) in DIFFERENCES.items():
        if schema == name:
            assert expected[field] != instead, "no difference any more"
            expected[field] = instead
    is_answer = name in ("GenerateResponse", "Details", "BestOfSequence", "StreamResponse", "StreamDetails")
    got = ours(name)
    if is_answer:  # what a field that is missing stands for is no concern of who reads answers
        got = {field: one.removesuffix(" = null") for field, one in got.items()}
        expected = {field: one.removesuffix(" = null") for field, one in expected.items()}
    if name in ("GenerateRequest", "CompatGenerateRequest"):  # an object of defaults
        got["parameters"] = got["parameters"].partition(" = ")[0]
    assert got == expected


@pytest.mark.parametrize("path", TGI_ROUTES)
def test_statuses_and_media_types_are_those_of_tgi(path: str) -> None:
    statuses, media_types = TGI_ROUTES[path]
    responses = DOCUMENT["paths"][path]["post"]["responses"]
    assert set(responses["200"]["content"]) == media_types
    # Beyond TGI's: malformed JSON, a long body, another media type, a model that is still loading.
    beyond = {400, 413, 415, 503} | ({501} if path == "/" else set())  # there vectors may be asked for
    assert {int(status) for status in responses} == statuses | beyond
