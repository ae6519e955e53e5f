"""Watermarks and their detection in marked, unmarked and human text."""

from __future__ import annotations

import numpy as np
import pytest

from app.engine.async_engine import AsyncEngine
from app.engine.llama import Model
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.watermark import Detection, Watermark
from tests.human_texts import HUMAN_TEXTS

N_VOCAB = 49_152
PROMPTS = (
    "Once upon a time there was a",
    "The history of the bicycle begins",
    "To bake good bread you first",
    "Dear Sir or Madam, I write to you because",
)


def test_a_share_gamma_of_tokens_is_green_depending_on_the_previous_token() -> None:
    for gamma in (0.25, 0.5, 0.9):
        green = Watermark(gamma).green(7, N_VOCAB)
        assert green.mean() == pytest.approx(gamma, abs=0.01)
    one, other = Watermark().green(7, N_VOCAB), Watermark().green(8, N_VOCAB)
    assert (one == other).mean() == pytest.approx(0.5, abs=0.01)
    assert (one == Watermark().green(7, N_VOCAB)).all()
    assert len(Watermark().green(0, 7)) == 7, "a vocabulary can have an odd size"


def test_the_green_list_is_fixed() -> None:
    """A changed green list makes older watermarks undetectable."""
    assert np.flatnonzero(Watermark(0.25).green(1234, 32)).tolist() == [0, 6, 8, 10, 12, 20, 24, 28]


def test_delta_is_added_to_the_logits_of_green_tokens() -> None:
    logits = np.zeros(N_VOCAB, np.float32)
    logits[3] = -np.inf
    watermark = Watermark(delta=1.5)
    watermark.mark(logits, 7)
    green = watermark.green(7, N_VOCAB)
    green[3] = False
    assert (logits[green] == 1.5).all()
    assert not logits[~green & (np.arange(N_VOCAB) != 3)].any()
    assert logits[3] == -np.inf


def test_the_z_score_and_p_value_follow_from_the_counts() -> None:
    found = Detection(n_tokens=100, n_green=75, gamma=0.5)
    assert found.z_score == pytest.approx(5.0)
    assert found.p_value == pytest.approx(2.87e-7, rel=0.01)
    assert found.highest_z_score == 10
    assert Detection(0, 0, 0.5).z_score == 0


def test_a_repeated_pair_counts_once() -> None:
    watermark = Watermark()
    assert watermark.detect([5, 6, 5, 6, 5, 6], N_VOCAB).n_tokens == 2
    assert watermark.detect([5], N_VOCAB).n_tokens == 0


async def answers(engine: AsyncEngine, model: Model, watermark: Watermark | None) -> list[list[int]]:
    """The tokens of an answer to each prompt, with fixed seeds."""
    running = [
        engine.submit(
            model.vocab.tokenize(prompt, parse_special=False),
            SamplingParams(max_tokens=160, temperature=1, seed=seed, ignore_eos=True, watermark=watermark),
        )
        for seed, prompt in enumerate(PROMPTS)
    ]
    tokens: list[list[int]] = []
    for answer in running:
        tokens.append([output.token async for output in answer])
    return tokens


@pytest.mark.anyio
@pytest.mark.slow
async def test_the_z_score_separates_marked_from_unmarked_text(engine: AsyncEngine, model: Model) -> None:
    watermark = Watermark()

    def z_scores(texts: list[list[int]]) -> list[float]:
        return [watermark.detect(tokens, model.vocab.n_tokens).z_score for tokens in texts]

    marked = z_scores(await answers(engine, model, watermark))
    unmarked = z_scores(await answers(engine, model, None))
    human = z_scores([model.vocab.tokenize(text, parse_special=False) for text in HUMAN_TEXTS])
    # Measured z-scores: marked 7.2 to 8.9, unmarked -0.4 to 1.8, human -1.4 to 1.5.
    assert min(marked) > 4
    assert max(unmarked + human) < 3
