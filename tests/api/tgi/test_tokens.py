"""POST /tokenize and /chat_tokenize, and offsets of tokens in other vocabularies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from app.api.tgi.tokens import located, written
from app.chat.prompt import PromptTokenizer
from app.chat.template.template import wrapping_template
from app.engine.llama import Model, Vocab
from tests.conftest import Server
from tests.tiny_vocab import write_vocabulary

UNWRAPPED = {f"{role}_{side}": "" for role in ("user", "ass", "sys") for side in ("pre", "post")}


def tokenize(url: str, inputs: str) -> list[dict[str, Any]]:
    response = httpx.post(f"{url}/tokenize", json={"inputs": inputs, "parameters": None})
    assert response.status_code == 200, response.text
    tokens: list[dict[str, Any]] = response.json()
    return tokens


def test_tokens_cover_the_text(server_url: str) -> None:
    inputs = "Where is located Paris ?"
    tokens = tokenize(server_url, inputs)
    assert all(token.keys() == {"id", "text", "start", "stop"} for token in tokens)
    assert "".join(token["text"] for token in tokens) == inputs
    assert [token["start"] for token in tokens] == [0, *(token["stop"] for token in tokens[:-1])]
    assert tokens[-1]["stop"] == len(inputs)


def test_offsets_are_in_bytes_and_split_no_character(server_url: str) -> None:
    inputs = "naïve 🦔🦔 x"
    data = inputs.encode()
    tokens = tokenize(server_url, inputs)
    for token in tokens:
        assert data[token["start"] : token["stop"]].decode() == token["text"]
    hedgehogs = [token for token in tokens if "🦔" in token["text"]]
    assert len(hedgehogs) > 2, "each hedgehog is several tokens"
    assert {(token["start"], token["stop"]) for token in hedgehogs if token["text"] == "🦔"} <= {
        (7, 11),
        (11, 15),
    }
    assert (tokens[0]["start"], tokens[-1]["stop"]) == (0, len(data))


def test_control_tokens_in_a_prompt_are_single_tokens(server_url: str) -> None:
    first, *_, last = tokenize(server_url, "<|im_start|>Hi<|im_end|>")
    assert (first["text"], first["start"], first["stop"]) == ("<|im_start|>", 0, 12)
    assert (last["text"], last["stop"]) == ("<|im_end|>", 24)


def test_chat_tokenize_returns_the_templated_text_and_its_tokens(server_url: str) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Olá 🦔"}]
    response = httpx.post(f"{server_url}/chat_tokenize", json={"messages": messages})
    assert response.json().keys() == {"tokenize_response", "templated_text"}
    text, tokens = response.json()["templated_text"], response.json()["tokenize_response"]
    assert text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nOlá 🦔<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [token["id"] for token in tokens] == [token["id"] for token in tokenize(server_url, text)]
    assert tokens == tokenize(server_url, text)


def test_chat_tokenize_rejects_an_empty_conversation(server_url: str) -> None:
    response = httpx.post(f"{server_url}/chat_tokenize", json={"messages": []})
    assert (response.status_code, response.json()["error_type"]) == (422, "validation")


def test_tgichat_settings_replace_the_chat_template(start_server: Callable[..., Server]) -> None:
    server = start_server(
        TGICHAT_USER_PRE="<|im_start|>user\\n",
        TGICHAT_USER_POST="<|im_end|>\\n",
        TGICHAT_ASS_PRE="<|im_start|>assistant\\n",
        TGICHAT_ASS_POST="<|im_end|>\\n",
        TGICHAT_SYS_PRE="<|im_start|>system\\n",
        TGICHAT_SYS_POST="<|im_end|>\\n",
    ).wait_until()

    def chat_tokenize(query: str) -> dict[str, Any]:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": query}]
        return dict(httpx.post(f"{server.url}/chat_tokenize", json={"messages": messages}).json())

    answer = chat_tokenize("Name a colour.")
    assert answer["templated_text"] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a colour.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert sum(token["text"].startswith("<|im_") for token in answer["tokenize_response"]) == 5
    # A control token in a user's message is text.
    with_marker = chat_tokenize("<|im_end|>")["tokenize_response"]
    assert len(with_marker) > len(chat_tokenize("")["tokenize_response"]) + 1


# --- a SentencePiece vocabulary, which adds BOS and a space before each text


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocab]:
    model = Model(write_vocabulary(tmp_path_factory.mktemp("vocab") / "tiny.gguf"), vocab_only=True)
    yield model.vocab
    model.close()


@pytest.mark.parametrize("text", ["the thin", " the", "<turn>the<end> in", "é<turn>", "<s>the"])
def test_tokens_that_the_tokenizer_adds_have_no_text(text: str, vocab: Vocab) -> None:
    tokens = PromptTokenizer(vocab, wrapping_template(UNWRAPPED)).markup_tokens(text)
    assert tokens[0] == vocab.bos
    found = located(vocab, tokens, text)
    data = text.encode()
    bos = "<s>" if text.startswith("<s>") else ""
    assert (found[0]["text"], found[0]["start"], found[0]["stop"]) == (bos, 0, len(bos))
    assert all(data[token["start"] : token["stop"]].decode() == token["text"] for token in found)
    covered = {at for token in found for at in range(token["start"], token["stop"])}
    assert covered == set(range(len(data)))
    assert written(vocab, tokens) == (text if bos else f"<s>{text}")
