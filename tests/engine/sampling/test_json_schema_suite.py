"""The JSON Schema Test Suite: a schema is enforced completely, or rejected by keyword."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.engine.llama import Model
from app.engine.sampling.grammar import Grammar, GrammarCompiler, GrammarError

FILE = Path(__file__).parent / "json_schema_test_suite" / "cases.jsonl.gz"
CASES = [json.loads(line) for line in gzip.decompress(FILE.read_bytes()).splitlines()]
MOST_TEXTS = 48  # of an instance
# Grammars enforce formats. The required tests of formats state that validators may ignore them.
ENFORCED = {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"}
# Valid texts that no grammar writes: quoted mailboxes, IPv4 in IPv6, leap seconds outside UTC.
UNWRITTEN = re.compile(r'^"|@\[IPv6:|^[0-9a-f:]+:\d+\.\d+\.\d+\.\d+$|:60(\.\d+)?[+-](?!00:00)')
# Reasons other than a keyword.
IMPOSSIBLE = re.compile("nsatisfiable|no JSON text satisfies")
REMOTE_META_SCHEMA = re.compile("Resource .*/metaschema-")


@pytest.fixture(scope="module")
def grammars(model: Model) -> GrammarCompiler:
    return GrammarCompiler(model.vocab)


def is_case(case: dict[str, Any]) -> bool:
    schema = case["schema"]
    return case["file"] != "format" or schema.get("format") not in ENFORCED


def written(value: Any) -> Iterator[Any]:
    """The value with all orders of keys, and with integers instead of numbers such as 1.0."""
    if isinstance(value, dict):
        for keys in itertools.permutations(value):
            for values in itertools.product(*(list(written(value[key])) for key in keys)):
                yield dict(zip(keys, values, strict=True))
    elif isinstance(value, list):
        yield from map(list, itertools.product(*map(written, value)))
    elif isinstance(value, float) and value.is_integer():
        yield int(value)
    else:
        yield value


def admits(grammar: Grammar, model: Model, value: Any) -> bool:
    for one in itertools.islice(written(value), MOST_TEXTS):
        text = json.dumps(one, ensure_ascii=False)
        tokens = [*model.vocab.tokenize(text, parse_special=False), model.vocab.eos]
        if grammar.matcher()._native.validate_tokens(tokens) == len(tokens):
            return True
    return False


def is_written(value: Any) -> bool:
    return not (isinstance(value, str) and UNWRITTEN.search(value))


def compiled(grammars: GrammarCompiler, case: dict[str, Any], *, exact: bool) -> Grammar | None:
    """The grammar of a schema; None if it is rejected for a good reason."""
    try:
        return grammars.json_schema(case["schema"], exact=exact)
    except GrammarError as error:
        reason = str(error)
    is_impossible = IMPOSSIBLE.search(reason) and not case["valid"]
    is_unsupported = exact and reason.startswith("unsupported: ")
    assert is_impossible or is_unsupported or REMOTE_META_SCHEMA.search(reason), (case, reason)
    return None


def test_compiled_schemas_are_exact_and_others_are_rejected_by_keyword(
    grammars: GrammarCompiler, model: Model
) -> None:
    n_compiled: Counter[str] = Counter()
    for case in filter(is_case, CASES):
        grammar = compiled(grammars, case, exact=True)
        if grammar is None:
            continue
        n_compiled[case["draft"]] += not case["file"].startswith("optional")
        for value in filter(is_written, case["valid"]):
            assert admits(grammar, model, value), (case["description"], value)
        for value in case["invalid"]:
            assert not admits(grammar, model, value), (case["description"], value)
    assert n_compiled["2020-12"] >= 238  # of 358
    assert n_compiled["7"] >= 196  # of 246


def test_looser_schemas_admit_all_valid_instances(grammars: GrammarCompiler, model: Model) -> None:
    for case in filter(is_case, CASES):
        grammar = compiled(grammars, case, exact=False)
        for value in filter(is_written, case["valid"]) if grammar is not None else ():
            assert admits(grammar, model, value), (case["description"], value)
