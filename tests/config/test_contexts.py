"""CONTEXTS_FILE: contexts, their examples and sampling defaults, and error messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.config.contexts import ContextsError, Example, load_contexts
from tests.conftest import ROOT


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "contexts.toml"


def test_the_default_file_defines_four_contexts() -> None:
    contexts = load_contexts(ROOT / "config/prompt_config.toml")
    assert list(contexts) == ["general", "sql", "classifier", "math"]
    assert all(context.prompt for context in contexts.values())


def test_a_context_can_have_examples_and_sampling_defaults(file: Path) -> None:
    file.write_text(
        '[contexts.mine]\nprompt = "p"\nexamples = [{ query = "q", answer = "a" }]\n'
        "temperature = 0.5\nrepeat_penalty = 1.0\nmax_tokens = 9\n"
    )
    context = load_contexts(file)["mine"]
    assert context.examples == [Example(query="q", answer="a")]
    assert context.sampling() == {"temperature": 0.5, "repetition_penalty": 1.0, "max_tokens": 9}


def test_choices_are_names_or_names_with_descriptions(file: Path) -> None:
    file.write_text(
        '[contexts.list]\nprompt = "p"\nchoices = ["b", "a"]\n'
        '[contexts.table]\nprompt = "p"\nchoices = { b = "second", a = "" }\n'
    )
    contexts = load_contexts(file)
    assert contexts["list"].choices == {"b": "", "a": ""}
    assert contexts["table"].choices == {"b": "second", "a": ""}


def test_tables_take_precedence_over_the_short_form(file: Path) -> None:
    file.write_text(
        '[prompt_config]\ncontext_general = "one"\ncontext_sql = "two"\n[contexts.sql]\nprompt = "three"\n'
    )
    contexts = load_contexts(file)
    assert {name: context.prompt for name, context in contexts.items()} == {"general": "one", "sql": "three"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("contexts = ", "is not valid TOML"),
        (f"contexts = {'[' * 10_000}", "is not valid TOML: it is nested too deeply"),
        ("", "defines no context"),
        ("[context.x]\nprompt = ''", "unknown key 'context'"),
        ("contexts = 3", "contexts should be a table"),
        ("[contexts.x]\nprompt = 3", "contexts.x.prompt: Input should be a valid string"),
        ("[contexts.x]\ntemperature = 1.0", "contexts.x.prompt: Field required"),
        ("[contexts.x]\nprompt = ''\ntemprature = 1.0", "contexts.x.temprature: Extra inputs"),
        (
            "[contexts.x]\nprompt = ''\ntop_p = 2.0",
            "contexts.x.top_p: Input should be less",
        ),
        ("[contexts.x]\nprompt = ''\nexamples = [{ query = 'q' }]", "contexts.x.examples.0.answer"),
        (
            "[contexts.x]\nprompt = ''\nchoices = ['a']",
            "contexts.x.choices: Dictionary should",
        ),
        ("[contexts.x]\nprompt = ''\nchoices = ['a', 'b', 'a']", "contexts.x.choices: Value error, 'a' is"),
        ("[contexts.x]\nprompt = ''\nchoices = ['a', '']", "String should have at least 1 character"),
        (
            "[contexts.x]\nprompt = ''\nchoices = ['a', 'b']\nthinking = true",
            "contexts.x: Value error, choices cannot be combined with thinking = true",
        ),
        (
            "[contexts.x]\nprompt = ''\nregex = 'a'\ngrammar = 'start: \"a\"'",
            "contexts.x: Value error, regex and grammar cannot be combined",
        ),
        ("[prompt_config]\nsql = 'x'", 'prompt_config.sql should have the form context_NAME = "prompt"'),
        ("[prompt_config]\ncontext_sql = 1", "prompt_config.context_sql should have the form"),
    ],
)
def test_the_error_message_names_file_and_key(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ContextsError) as error:
        load_contexts(file)
    assert f"CONTEXTS_FILE={file}: " in str(error.value)
    assert message in str(error.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ContextsError, match=r"CONTEXTS_FILE=nowhere\.toml: cannot be read: No such file"):
        load_contexts(Path("nowhere.toml"))
