"""TOKENIZER_REPO: template, special tokens, and rejection of another model's vocabulary."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.config import settings
from app.engine.llama import Model
from app.weights import model as hub
from app.weights.tokenizer import TokenizerRepo, check_vocabulary, load_tokenizer_repo
from tests.weights.hub_driver import environment
from tests.weights.hub_server import FakeHub, closed_port

REPO = "someone/tiny"
CONFIG = {
    "chat_template": "from the config",
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False},
    "pad_token": None,
}
BPE = {
    "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġc": 2}, "merges": []},
}
UNIGRAM = {
    "added_tokens": [],
    "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -1.5]]},
}


def as_files(**files: Any) -> dict[str, bytes]:
    """Write tokenizer_config, chat_template and tokenizer as files of a repository."""
    names = {
        "config": "tokenizer_config.json",
        "template": "chat_template.jinja",
        "tokenizer": "tokenizer.json",
    }
    return {
        names[key]: (value if isinstance(value, str) else json.dumps(value)).encode()
        for key, value in files.items()
    }


def write(folder: Path, **files: Any) -> Path:
    for name, content in as_files(**files).items():
        (folder / name).write_bytes(content)
    return folder


def load(repo: object) -> TokenizerRepo:
    loaded = load_tokenizer_repo(settings.load(None, tokenizer_repo=str(repo)))
    assert loaded
    return loaded


def error_of(repo: object) -> str:
    with pytest.raises(hub.ModelError) as error:
        load(repo)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- a folder


def test_tokenizer_repo_is_optional() -> None:
    assert load_tokenizer_repo(settings.load(None)) is None


def test_template_special_tokens_and_vocabulary_are_read(tmp_path: Path) -> None:
    repo = load(write(tmp_path, config=CONFIG, tokenizer=BPE))
    assert repo.chat_template == "from the config"
    assert (repo.bos_token, repo.eos_token, repo.pad_token, repo.unk_token) == ("<s>", "</s>", None, None)
    assert repo.vocab == {0: "a", 1: "b", 2: "Ġc", 3: "<s>"}
    assert repo.n_vocab == 4


def test_the_jinja_file_takes_precedence_over_the_config(tmp_path: Path) -> None:
    assert load(write(tmp_path, config=CONFIG, template="from the file")).chat_template == "from the file"


def test_one_of_several_templates_is_the_default(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    repo = load(write(tmp_path, config={"chat_template": named}))
    assert repo.chat_template == "plain"
    assert repo.templates == {"tool_use": "tools"}


def test_a_unigram_vocabulary_is_read(tmp_path: Path) -> None:
    assert load(write(tmp_path, tokenizer=UNIGRAM)).vocab == {0: "<unk>", 1: "▁a"}


def test_without_tokenizer_json_the_template_is_used_with_a_warning(tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert load(write(tmp_path, template="t")).chat_template == "t"
    assert "has no tokenizer.json" in caplog.text


def test_a_folder_without_tokenizer_files_is_rejected(tmp_path: Path) -> None:
    assert f"TOKENIZER_REPO={tmp_path} contains none of chat_template.jinja, " in error_of(tmp_path)


def test_a_path_of_a_file_is_rejected(tmp_path: Path) -> None:
    file = write(tmp_path, config=CONFIG) / "tokenizer_config.json"
    for path in (file, tmp_path / "missing"):
        assert error_of(path).startswith(f"TOKENIZER_REPO={path} is not a folder")


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"model": {"vocab": [1]}}', '{"model": {"vocab": {"a": "x"}}}']
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    message = error_of(write(tmp_path, tokenizer=content))
    assert message.startswith(f"TOKENIZER_REPO={tmp_path}: ")
    assert "tokenizer.json" in message


# --- a repository

Run = Callable[..., subprocess.CompletedProcess[str]]

DRIVER = """
import sys
from app.weights import model as hub
from app.config import settings
from app.weights import tokenizer as tokenizer_repo
try:
    print(tokenizer_repo.load_tokenizer_repo(settings.load()).chat_template)
except hub.ModelError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def run(fake_hub: FakeHub, tmp_path: Path) -> Run:
    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        hub_here = {"HF_ENDPOINT": fake_hub.url, "HF_HOME": str(tmp_path / "home"), "TOKENIZER_REPO": REPO}
        return subprocess.run(
            [sys.executable, "-c", DRIVER],
            env=environment(**(hub_here | variables)),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run


def test_a_repository_is_downloaded_and_its_local_copy_is_used(run: Run, fake_hub: FakeHub) -> None:
    fake_hub.add(
        REPO, {"model.safetensors": bytes(10), **as_files(config=CONFIG, template="t", tokenizer=BPE)}
    )
    assert run().stdout == "t\n"
    assert not [request for request in fake_hub.gets() if "safetensors" in request.path]
    unreachable = run(HF_ENDPOINT=closed_port())
    assert unreachable.stdout == "t\n"
    assert (
        "cannot be reached (Connection refused); using the local copy of someone/tiny in "
        in unreachable.stderr
    )
    assert unreachable.stderr.count("\n") == 1


def test_unusable_repositories_are_reported_in_one_line(run: Run, fake_hub: FakeHub) -> None:
    fake_hub.add("someone/else", {"model.gguf": b""})
    wrong = run()
    assert wrong.returncode == 1
    assert wrong.stderr.startswith(f"TOKENIZER_REPO={REPO} is not a repository of {fake_hub.url}")
    empty = run(TOKENIZER_REPO="someone/else").stderr
    assert empty.startswith("TOKENIZER_REPO=someone/else contains none of chat_template.jinja, ")
    unreachable = run(HF_ENDPOINT=closed_port()).stderr
    assert "cannot be reached (Connection refused)" in unreachable
    assert [message.count("\n") for message in (wrong.stderr, empty, unreachable)] == [1, 1, 1]


# --- comparison with the GGUF file


def check(ours: dict[int, str], theirs: list[str], unused: frozenset[int] = frozenset()) -> None:
    repo = TokenizerRepo(name="r", vocab=ours)
    check_vocabulary(repo, len(theirs), theirs.__getitem__, unused.__contains__)


def mismatch(ours: dict[int, str], theirs: list[str]) -> str:
    with pytest.raises(hub.ModelError) as error:
        check(ours, theirs)
    assert "\n" not in str(error.value)
    return str(error.value)


TEXTS = [f"t{i}" for i in range(1000)]
OURS = dict(enumerate(TEXTS))


def test_an_equal_vocabulary_matches() -> None:
    check(OURS, TEXTS)
    check({}, TEXTS)  # a repository without tokenizer.json


def test_a_vocabulary_with_a_few_renamed_tokens_matches() -> None:
    check(OURS, ["renamed"] * 10 + TEXTS[10:])
    check({0: "▁▁"}, ["  "])


def test_a_mismatch_is_reported_with_an_example() -> None:
    message = mismatch(OURS, TEXTS[:-11] + ["renamed"] * 11)
    sizes = "its vocabulary has 1,000 tokens, the model's 1,000"
    assert message.startswith(f"TOKENIZER_REPO=r does not match the model: {sizes}, and 11 differ")
    assert "token 989 is 't989', the model's 'renamed'" in message


def test_a_larger_tokenizer_is_a_mismatch() -> None:
    assert "its vocabulary has 1,000 tokens, the model's 999" in mismatch(OURS, TEXTS[:-1])


def test_a_vocabulary_padded_in_the_gguf_matches() -> None:
    padded = [*TEXTS, "[PAD1000]", "<|dummy_id_1|>", "<unused1>", "whatever"]
    check(OURS, padded, unused=frozenset({1003}))
    check(OURS, ["renamed", *padded[1:]], unused=frozenset({1003}))


def test_additional_tokens_in_the_gguf_match_only_if_the_rest_is_equal() -> None:
    check(OURS, [*TEXTS, "<|im_start|>"])
    assert "1,000 tokens, the model's 1,001" in mismatch(OURS, ["renamed", *TEXTS[1:], "<|im_start|>"])


@pytest.fixture(scope="module")
def vocab() -> Iterator[Any]:
    model = Model(hub.resolve_model(settings.load(None)), vocab_only=True)
    yield model.vocab
    model.close()


def test_the_vocabulary_of_the_default_model_matches_unless_it_is_shifted(vocab: Any, tmp_path: Path) -> None:
    texts = {vocab.text(token): token for token in range(vocab.n_tokens)}
    repo = load(write(tmp_path, config=CONFIG, tokenizer={"model": {"vocab": texts}}))
    check_vocabulary(repo, vocab.n_tokens, vocab.text, vocab.is_unused)
    shifted = {text: (token + 1) % vocab.n_tokens for text, token in texts.items()}
    repo = load(write(tmp_path, config=CONFIG, tokenizer={"model": {"vocab": shifted}}))
    with pytest.raises(hub.ModelError, match="49,152 tokens, the model's 49,152, and"):
        check_vocabulary(repo, vocab.n_tokens, vocab.text, vocab.is_unused)
