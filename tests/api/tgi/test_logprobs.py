"""Log-probabilities over HTTP equal those of a llama.cpp context with the same steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.engine.llama import Batch, Context, Model
from tests.api.tgi.tgi_calls import generate, stream
from tests.conftest import MODEL, Server

TOLERANCE = 1e-4
PROMPT = "The three primary colours are"


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    model = Model(MODEL)
    context = Context(model, n_ctx=512, n_sequences=1, n_batch=512, n_threads=1, n_outputs=32)
    yield context
    context.close()
    model.close()


def log_softmax(context: Context, batch: Batch, tokens: list[int], begin: int, n: int) -> NDArray[np.float64]:
    """Log-probabilities of the token after each of the last ``n`` tokens."""
    batch.clear()
    batch.add(tokens, begin, 0, n_outputs=n)
    context.decode(batch)
    logits = context.logits.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def test_logprobs_are_the_log_softmax_of_the_raw_logits(
    start_server: Callable[..., Server], context: Context
) -> None:
    """Penalties, temperature and truncation change the choice of tokens, not the log-probabilities."""
    # The steps of the server equal those of the context: no drafts, KV in f16, attention of SETTINGS.
    settings = {"SPECULATION": "off", "KV_TYPE": "f16"}
    url = start_server(**settings, N_CTX="512", MAX_SEQUENCES="1").wait_until().url
    sampling = {"temperature": 1.4, "top_k": 30, "seed": 4, "repetition_penalty": 1.3}
    details = generate(
        url, inputs=PROMPT, max_new_tokens=10, decoder_input_details=True, top_n_tokens=4, **sampling
    )["details"]
    batch = Batch(512)
    prompt = [token["id"] for token in details["prefill"]]
    rows = log_softmax(context, batch, prompt, 0, len(prompt))
    for before, token in enumerate(details["prefill"][1:]):
        assert token["logprob"] == pytest.approx(rows[before][token["id"]], abs=TOLERANCE)
    n_not_likeliest, row, position = 0, rows[-1], len(prompt)
    for token, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert token["logprob"] == pytest.approx(row[token["id"]], abs=TOLERANCE)
        assert [other["id"] for other in top] == np.argsort(-row, kind="stable")[:4].tolist()
        assert [other["logprob"] for other in top] == pytest.approx(
            [row[other["id"]] for other in top], abs=TOLERANCE
        )
        n_not_likeliest += token["id"] != top[0]["id"]
        [row] = log_softmax(context, batch, [token["id"]], position, 1)
        position += 1
    assert n_not_likeliest, "sampling chose a token other than the likeliest"


def test_a_stream_has_equal_logprobs(server_url: str) -> None:
    options: dict[str, Any] = {"inputs": PROMPT, "max_new_tokens": 10, "temperature": 1.4, "seed": 4}
    whole = generate(server_url, details=True, **options)["details"]["tokens"]
    streamed = [part["token"] for part in stream(server_url, **options)]
    assert [token["id"] for token in streamed] == [token["id"] for token in whole]
    assert [token["logprob"] for token in streamed] == pytest.approx(
        [token["logprob"] for token in whole], abs=0.02
    )
