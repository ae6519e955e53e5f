"""/v1/embeddings with OpenAI's client and with LangChain."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tiktoken
from langchain_openai import OpenAIEmbeddings
from pydantic import SecretStr

from tests.conftest import KEY, ROOT, Server
from tests.polling import wait_for

pytestmark = pytest.mark.slow

REFERENCE = {
    entry["name"]: entry
    for entry in json.loads((ROOT / "tests/weights/minilm_reference.json").read_text())["texts"]
}
TEXTS = ["When does the bridge open?", "The bridge opens at six.", "Mix flour and butter."]


@pytest.fixture(scope="module")
def embedding_client(embedding_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{embedding_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(url: str, path: str = "/v1/embeddings", **fields: Any) -> httpx.Response:
    return httpx.post(url + path, json=fields, timeout=60)


def error(url: str, **fields: Any) -> dict[str, Any]:
    response = post(url, **fields)
    assert response.status_code == 400, response.text
    return dict(response.json()["error"])


# --- OpenAI's client


def test_a_text_has_the_reference_vector(embedding_client: openai.OpenAI) -> None:
    entry = REFERENCE["paragraph"]
    answer = embedding_client.embeddings.create(model="any", input=entry["text"])
    [found] = answer.data
    assert (answer.model, found.index) == ("all-MiniLM-L6-v2", 0)
    assert np.array(entry["vector"]) @ found.embedding >= 0.999
    assert np.linalg.norm(found.embedding) == pytest.approx(1, abs=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == len(entry["tokens"])


def test_many_texts_keep_their_order(embedding_client: openai.OpenAI) -> None:
    names = ["short", "paragraph", "umlauts", "code", "one word"] * 30
    answer = embedding_client.embeddings.create(model="any", input=[REFERENCE[n]["text"] for n in names])
    assert [one.index for one in answer.data] == list(range(len(names)))
    for name, one in zip(names, answer.data, strict=True):
        assert np.array(REFERENCE[name]["vector"]) @ one.embedding >= 0.999, name
    assert answer.usage.prompt_tokens == sum(len(REFERENCE[name]["tokens"]) for name in names)


def test_floats_and_base64_are_equal(embedding_client: openai.OpenAI, embedding_url: str) -> None:
    floats = embedding_client.embeddings.create(model="any", input=TEXTS, encoding_format="float")
    raw = post(embedding_url, input=TEXTS, encoding_format="base64").json()
    for one, other in zip(floats.data, raw["data"], strict=True):
        assert np.frombuffer(base64.b64decode(other["embedding"]), "<f4").tolist() == one.embedding


def test_tokens_and_their_text_have_equal_vectors(embedding_client: openai.OpenAI) -> None:
    def vectors(given: Any) -> list[list[float]]:
        return [one.embedding for one in embedding_client.embeddings.create(model="any", input=given).data]

    entries = [REFERENCE["short"], REFERENCE["question"]]
    texts = vectors([entry["text"] for entry in entries])
    assert np.allclose(vectors([entry["tokens"] for entry in entries]), texts, atol=1e-5)
    assert np.allclose(vectors(entries[0]["tokens"]), texts[:1], atol=1e-5)


def test_texts_and_tokens_can_be_mixed(embedding_url: str) -> None:
    data = post(embedding_url, input=["hello world", [101, 7592, 2088, 102]], prompt="ignored").json()["data"]
    first, second = (np.array(one["embedding"]) for one in data)
    assert first @ second > 0.9999


@pytest.mark.anyio
async def test_related_texts_are_nearer_with_the_asynchronous_client(embedding_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{embedding_url}/v1", api_key="none") as client:
        answer = await client.embeddings.create(model="any", input=TEXTS, dimensions=384, user="someone")
    question, passage, other = (np.array(one.embedding) for one in answer.data)
    assert question @ passage > question @ other + 0.3


def test_both_paths_work_without_a_model_name(embedding_url: str) -> None:
    for path in ("/embeddings", "/v1/embeddings"):
        assert len(post(embedding_url, path, input="a").json()["data"]) == 1


# --- rejected requests


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "input: should not be empty"),
        ([], "input: should not be empty"),
        (["a", ""], "input: entry 1 should not be empty"),
        ([[101, 102], []], "input: entry 1 should not be empty"),
        (["a"] * 2049, "input: should have at most 2048 entries, not 2049"),
        (["a", 1], "input: should be a text, its tokens, or a list of texts and lists of tokens"),
        (None, "input: should be a text, its tokens, or a list of texts and lists of tokens"),
        (1, "input: should be a text, its tokens, or a list of texts and lists of tokens"),
        ([-1], "input: tokens should be integers from 0, not -1"),
        ([[101], [1, "a"]], 'input: tokens should be integers from 0, not "a"'),
        ([[101, None]], "input: tokens should be integers from 0, not null"),
    ],
)
def test_invalid_input_is_rejected(embedding_url: str, given: Any, message: str) -> None:
    problem = error(embedding_url, input=given)
    assert (problem["message"], problem["param"]) == (message, "input")


def test_a_text_over_the_limit_is_rejected(embedding_url: str) -> None:
    problem = error(embedding_url, input=["short", "word " * 600])
    assert problem["message"] == "input.1: has 602 tokens; the maximum of all-MiniLM-L6-v2 is 512"
    assert problem["code"] == "context_length_exceeded"
    assert problem["param"] == "input.1"


@pytest.mark.parametrize(
    ("tokens", "cause"),
    [
        ([101, 30522, 102], "token 30522 is not in its vocabulary of 30522"),
        ([15339, 1917], "special tokens are missing (an empty text has the tokens [101, 102])"),
        ([101], "special tokens are missing"),
        ([101, 7592], "special tokens are missing"),
        ([7592, 102], "special tokens are missing"),
    ],
)
def test_tokens_of_another_vocabulary_are_rejected(embedding_url: str, tokens: list[int], cause: str) -> None:
    message = error(embedding_url, input=[[101, 102], tokens])["message"]
    assert message.startswith("input.1: should be text, or tokens of all-MiniLM-L6-v2: ")
    assert cause in message


def test_dimensions_other_than_the_models_are_rejected(embedding_url: str) -> None:
    shorter, longer = (error(embedding_url, input="a", dimensions=n) for n in (256, 385))
    own = "the dimensions of all-MiniLM-L6-v2"
    unknown = "the model is not known to be trained for fewer dimensions"
    assert shorter["message"] == f"dimensions: should be 384, {own}, not 256: {unknown}"
    assert longer["message"] == f"dimensions: should be at most 384, {own}, not 385"
    assert shorter["param"] == "dimensions"


def test_error_messages_name_the_field(embedding_url: str) -> None:
    assert error(embedding_url, input="a", encoding_format="int8")["param"] == "encoding_format"
    assert error(embedding_url, input="a", dimensions=0)["param"] == "dimensions"


def test_without_an_embedding_model_requests_are_answered_501(server_url: str) -> None:
    response = post(server_url, input="a")
    assert response.status_code == 501
    assert "start the server with KNOWLEDGE=on or EMBEDDING_MODEL" in response.json()["error"]["message"]


def test_requests_without_the_key_are_rejected(locked_server: Server) -> None:
    url = locked_server.url
    for path in ("/v1/embeddings", "/embeddings"):
        rejected = post(url, path, input="a")
        assert rejected.status_code == 401
        assert rejected.json()["error"]["code"] == "invalid_api_key"
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        assert client.embeddings.create(model="any", input="a").data


# --- models trained for fewer dimensions, recognized by name


def test_a_model_trained_for_fewer_dimensions_returns_the_first_ones(
    tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    from app.config.settings import load
    from app.weights.embedding import resolve_embedding_model

    model = tmp_path / "mxbai-embed-large-v1-q8_0.gguf"
    model.symlink_to(resolve_embedding_model(load(None)))
    url = start_server(EMBEDDING_MODEL=str(model), N_CTX="512", MAX_SEQUENCES="1").wait_until().url
    whole, begin = (
        np.array(post(url, input="a", dimensions=n).json()["data"][0]["embedding"]) for n in (384, 100)
    )
    assert begin.shape == (100,)
    assert np.allclose(begin, whole[:100] / np.linalg.norm(whole[:100]), atol=1e-6)


# --- disconnected clients


def disconnect(url: str) -> None:
    """Send a long request and disconnect after half a second."""
    body = {"input": ["word " * 480] * 400}
    httpx.post(f"{url}/v1/embeddings", json=body, timeout=httpx.Timeout(30, read=0.5))


def n_cancelled(url: str) -> int:
    """Number of embedding requests whose client has disconnected."""
    page = httpx.get(f"{url}/metrics").text
    pattern = r'^http_requests_total{.*route="/v1/embeddings",status="499"} (\S+)$'
    return sum(int(float(count)) for count in re.findall(pattern, page, re.MULTILINE))


def test_a_disconnected_client_delays_no_other(embedding_url: str) -> None:
    before = n_cancelled(embedding_url)
    with pytest.raises(httpx.ReadTimeout):
        disconnect(embedding_url)
    assert post(embedding_url, input="a").status_code == 200
    # Without a cancellation, the long request gets the status 200 after its 400 texts.
    wait_for(lambda: n_cancelled(embedding_url) == before + 1)


def test_a_full_queue_rejects_requests_and_serves_the_rest(narrow_url: str) -> None:
    with ThreadPoolExecutor(6) as threads:
        responses = list(threads.map(lambda _: post(narrow_url, input=["word " * 200] * 60), range(6)))
        rejected = [response for response in responses if response.status_code == 429]
        assert rejected
        assert all(len(response.json()["data"]) == 60 for response in responses if response not in rejected)
        assert len(rejected) < 5
        assert rejected[0].headers["retry-after"]
        assert rejected[0].json()["error"]["type"] == "rate_limit_error"
        # Disconnected clients leave the queue.
        both = [threads.submit(disconnect, narrow_url) for _ in range(2)]
        assert all(isinstance(one.exception(), httpx.ReadTimeout) for one in both)
        assert [post(narrow_url, input="a").status_code for _ in range(3)] == [200] * 3
        # Embeddings do not delay completions.
        request = {"prompt": "Once", "max_tokens": 4}
        assert httpx.post(f"{narrow_url}/v1/completions", json=request, timeout=60).status_code == 200


def test_a_shutdown_is_answered_503(start_server: Callable[..., Server]) -> None:
    server = start_server(
        EMBEDDING_MODEL="all-MiniLM-L6-v2", SHUTDOWN_GRACE="0.5", N_CTX="512", MAX_SEQUENCES="1"
    ).wait_until()
    with ThreadPoolExecutor() as threads:
        request = threads.submit(post, server.url, input=["word " * 380] * 500)
        time.sleep(1)
        assert server.stop() == 0
        response = request.result()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "shutting_down"
    assert "Traceback" not in server.output()


# --- LangChain


def langchain(url: str, **options: Any) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(base_url=f"{url}/v1", api_key=SecretStr("none"), model="any", **options)


def test_langchain_can_send_texts(embedding_url: str) -> None:
    embeddings = langchain(embedding_url, check_embedding_ctx_length=False)
    passages = np.array(embeddings.embed_documents(TEXTS[1:]))
    assert passages.shape == (2, 384)
    nearest, other = passages @ embeddings.embed_query(TEXTS[0])
    assert nearest > other + 0.3


@pytest.mark.anyio
async def test_langchain_works_asynchronously(embedding_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{embedding_url}/v1", api_key="none") as client:
        embeddings = langchain(
            embedding_url, check_embedding_ctx_length=False, async_client=client.embeddings
        )
        [vector] = await embeddings.aembed_documents([REFERENCE["short"]["text"]])
    assert np.array(REFERENCE["short"]["vector"]) @ vector >= 0.999


def test_tokens_of_another_vocabulary_are_rejected_with_the_langchain_option(
    embedding_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tiktoken downloads OpenAI's vocabularies. In this one, token ids are bytes, so all are below 30,522.
    byte_encoding = tiktoken.Encoding(
        "bytes",
        pat_str=r"[\s\S]+",
        mergeable_ranks={bytes([byte]): byte for byte in range(256)},
        special_tokens={},
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _: byte_encoding)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        langchain(embedding_url).embed_query("The bridge opens at six.")
