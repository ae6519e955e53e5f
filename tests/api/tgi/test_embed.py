"""POST /embed and feature extraction with huggingface_hub's client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from app.api.tgi.embed import requests_vectors
from tests.conftest import ROOT, Server

REFERENCE = {
    entry["name"]: entry
    for entry in json.loads((ROOT / "tests/weights/minilm_reference.json").read_text())["texts"]
}
TEXT, VECTOR = REFERENCE["short"]["text"], np.array(REFERENCE["short"]["vector"])
LONG = "The first words. " + "word " * 600 + "The last words."


@pytest.fixture(scope="module", params=["", "/embed", "/model/some/name"])
def client(embedding_url: str, request: pytest.FixtureRequest) -> Iterator[InferenceClient]:
    with InferenceClient(model=embedding_url + request.param, timeout=60) as client:
        yield client


def post(url: str, path: str = "/embed", **fields: Any) -> httpx.Response:
    return httpx.post(url + path, json=fields, timeout=60)


def error_of(url: str, **fields: Any) -> str:
    response = post(url, **fields)
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"
    return str(response.json()["error"])


# --- huggingface_hub's client


def test_feature_extraction_returns_the_reference_vectors(client: InferenceClient) -> None:
    vectors = client.feature_extraction(TEXT)
    assert vectors.shape == (1, 384)
    assert vectors[0] @ VECTOR >= 0.999
    several = client.feature_extraction([TEXT, REFERENCE["code"]["text"]])
    assert several.shape == (2, 384)
    assert several[1] @ np.array(REFERENCE["code"]["vector"]) >= 0.999


def test_normalize_scales_to_length_one(client: InferenceClient) -> None:
    unit, whole = (client.feature_extraction(TEXT, normalize=normalize)[0] for normalize in (True, False))
    assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(whole) > 1.5
    assert np.allclose(whole / np.linalg.norm(whole), unit, atol=1e-5)


def test_truncate_cuts_at_the_given_side(client: InferenceClient) -> None:
    right = client.feature_extraction(LONG, truncate=True)
    assert np.allclose(client.feature_extraction(LONG, truncate=True, truncation_direction="right"), right)
    left = client.feature_extraction(LONG, truncate=True, truncation_direction="left")[0]
    assert right[0] @ left < 0.999
    # The truncated part has no effect.
    assert np.allclose(client.feature_extraction(LONG + " more", truncate=True), right, atol=1e-6)
    for truncate in (None, False):
        with pytest.raises(HfHubHTTPError, match=r"has \d+ tokens; the maximum of all-MiniLM-L6-v2 is 512"):
            client.feature_extraction(LONG, truncate=truncate)


def test_the_same_client_can_generate_text(embedding_url: str) -> None:
    with InferenceClient(model=embedding_url, timeout=60) as client:
        assert "Paris" in client.text_generation("The capital of France is", max_new_tokens=8)
        assert client.text_generation("The capital of France is")


@pytest.mark.anyio
async def test_the_asynchronous_client_gets_the_reference_vector(embedding_url: str) -> None:
    async with AsyncInferenceClient(model=embedding_url, timeout=60) as client:
        [vector] = await client.feature_extraction(TEXT)
        assert vector @ VECTOR >= 0.999


# --- embedding or generation


@pytest.mark.parametrize(
    ("fields", "user_agent", "expected"),
    [
        ({"inputs": "a"}, "curl/8", False),
        ({"inputs": "a"}, "unknown/None; hf_hub/2.4.0; python/3.11", True),
        ({"inputs": "a", "parameters": {}}, "hf_hub/2.4.0", False),
        ({"inputs": "a", "stream": False}, "hf_hub/2.4.0", False),
        ({"inputs": ["a"]}, "curl/8", True),
        ({"inputs": "a", "normalize": True}, "curl/8", True),
        ({"inputs": "a", "truncate": False}, "curl/8", True),
        ({"messages": []}, "hf_hub/2.4.0", False),
        (None, "hf_hub/2.4.0", False),
        ([], "hf_hub/2.4.0", False),
    ],
)
def test_body_and_user_agent_decide_on_embedding(fields: Any, user_agent: str, expected: bool) -> None:
    assert requests_vectors(fields, {"user-agent": user_agent}) is expected


@pytest.mark.parametrize("path", ["/", "/model/some/name", "/invocations"])
def test_routes_for_both_embed_and_generate(embedding_url: str, path: str) -> None:
    assert post(embedding_url, path, inputs=TEXT, parameters={"max_new_tokens": 1}).json()[0][
        "generated_text"
    ]
    [vector] = post(embedding_url, path, inputs=TEXT, normalize=True).json()
    assert np.array(vector) @ VECTOR >= 0.999
    malformed = httpx.post(
        embedding_url + path, content=b'{"inputs": [', headers={"Content-Type": "application/json"}
    )
    assert malformed.status_code == 400
    assert malformed.json()["error_type"] == "malformed_json"


# --- /embed


def test_embed_returns_a_vector_for_each_input(embedding_url: str) -> None:
    for inputs, n in ((TEXT, 1), ([TEXT] * 3, 3)):
        vectors = np.array(post(embedding_url, inputs=inputs).json())
        assert vectors.shape == (n, 384)
        assert (vectors @ VECTOR).min() >= 0.999


def test_token_ids_have_the_vector_of_their_text(embedding_url: str) -> None:
    tokens = [101, 7592, 2088, 102]
    [text] = np.array(post(embedding_url, inputs="hello world").json())
    for inputs, n in ((tokens, 1), ([tokens, "hello world"], 2)):
        vectors = np.array(post(embedding_url, inputs=inputs).json())
        assert vectors.shape == (n, 384)
        assert (vectors @ text).min() > 0.9999


def test_too_long_and_too_many_texts_are_answered_413(embedding_url: str) -> None:
    for inputs, message in (
        (LONG, "the maximum of all-MiniLM-L6-v2 is 512"),
        (["a"] * 2049, "batch size 2049 > maximum allowed batch size 2048"),
    ):
        response = post(embedding_url, inputs=inputs)
        assert (response.status_code, response.json()["error_type"]) == (413, "validation")
        assert response.json()["error"].endswith(message)


def test_the_truncation_direction_may_be_capitalized(embedding_url: str) -> None:
    small, capital = (
        post(embedding_url, inputs=LONG, truncate=True, truncation_direction=direction).json()
        for direction in ("left", "Left")
    )
    assert small == capital


def test_prompt_name_selects_a_prefix(start_server: Callable[..., Server]) -> None:
    url = (
        start_server(
            EMBEDDING_MODEL="all-MiniLM-L6-v2",
            EMBEDDING_QUERY_PREFIX="query: ",
            EMBEDDING_PASSAGE_PREFIX="passage: ",
            N_CTX="512",
            MAX_SEQUENCES="1",
        )
        .wait_until()
        .url
    )

    def vector(inputs: str, **fields: Any) -> Any:
        return post(url, inputs=inputs, **fields).json()

    assert vector("six", prompt_name="query") == vector("query: six") != vector("six")
    assert vector("six", prompt_name="document") == vector("six", prompt_name="passage")
    assert vector("six", prompt_name="passage") == vector("passage: six")


def test_error_messages_have_the_format_of_tgi(embedding_url: str) -> None:
    assert error_of(embedding_url, inputs=[]) == "Input validation error: `inputs` cannot be empty"
    assert error_of(embedding_url, inputs=["a", ""]) == "Input validation error: `inputs` cannot be empty"
    assert "inputs.0" in error_of(embedding_url, inputs=[None])
    assert "inputs: is required" in error_of(embedding_url)
    assert "prompt_name: should be 'query', 'passage' or 'document'" in error_of(
        embedding_url, inputs="a", prompt_name="x"
    )
    assert "dimensions: should be 384" in error_of(embedding_url, inputs="a", dimensions=8)


def test_without_an_embedding_model_requests_are_answered_501(server_url: str) -> None:
    for path, fields in (("/embed", {}), ("/", {"normalize": True})):
        response = post(server_url, path, inputs="a", **fields)
        assert response.status_code == 501
        assert response.json()["error_type"] == "not_offered"
        assert "start the server with KNOWLEDGE=on or EMBEDDING_MODEL" in response.json()["error"]
