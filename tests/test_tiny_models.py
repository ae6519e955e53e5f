"""The tiny models have their kinds of memory, and their answers depend on every token."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from app.engine.llama import Batch, Context, Model
from tests.tiny_models import HYBRIDS, KINDS, WINDOW, Kind, TinyModel

PROMPT = [1000 + 37 * i for i in range(200)]


class Run:
    """A tiny model with one sequence."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.context = Context(model, n_ctx=512, n_sequences=1, n_batch=512, n_threads=1)
        self._batch = Batch(512)

    def prefill(self, tokens: list[int], position: int = 0) -> NDArray[np.float32]:
        """The logits after ``tokens``."""
        self._batch.clear()
        self._batch.add(tokens, position, 0, n_outputs=1)
        self.context.decode(self._batch)
        logits: NDArray[np.float32] = self.context.logits[0].copy()
        return logits

    def fresh(self, tokens: list[int]) -> NDArray[np.float32]:
        self.context.clear_sequence(0)
        return self.prefill(tokens)

    def greedy(self, prompt: list[int], n_tokens: int) -> list[int]:
        answer = [int(self.fresh(prompt).argmax())]
        while len(answer) < n_tokens:
            position = len(prompt) + len(answer) - 1
            answer.append(int(self.prefill(answer[-1:], position).argmax()))
        return answer

    def state_size(self, n_tokens: int) -> int:
        self.fresh(PROMPT[:n_tokens])
        return len(self.context.save_sequence(0))


@pytest.fixture(scope="module", params=[*KINDS, *HYBRIDS])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def run(kind: Kind, tiny_model: TinyModel) -> Iterator[Run]:
    model = Model(tiny_model(kind))
    run = Run(model)
    yield run
    run.context.close()
    model.close()


def test_a_model_is_small_and_written_once(kind: Kind, tiny_model: TinyModel) -> None:
    path = tiny_model(kind)
    written = path.stat()
    assert written.st_size < 20e6
    assert tiny_model(kind) == path
    assert path.stat().st_mtime_ns == written.st_mtime_ns


def test_the_tokenizer_is_that_of_the_default_model(run: Run, model: Model) -> None:
    text = "<|im_start|>user\nNaïve, 42 times?<|im_end|>\n"
    vocab = run.model.vocab
    assert vocab.n_tokens == model.vocab.n_tokens
    assert vocab.tokenize(text, parse_special=True) == model.vocab.tokenize(text, parse_special=True)
    assert vocab.end_of_generation == model.vocab.end_of_generation
    assert run.model.chat_template == model.chat_template


def test_greedy_answers_vary_and_depend_on_the_prompt(run: Run) -> None:
    one, other = run.greedy(PROMPT[:20], 32), run.greedy(PROMPT[20:40], 32)
    assert len(set(one)) > 24
    assert len(set(other)) > 24
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 4


@pytest.mark.parametrize("index", [0, 100, 199 - WINDOW, 199])
def test_logits_depend_on_every_token_of_a_prompt(run: Run, index: int) -> None:
    before = run.fresh(PROMPT)
    changed = run.fresh([*PROMPT[:index], 777, *PROMPT[index + 1 :]])
    assert np.abs(run.fresh(PROMPT) - before).max() == 0
    assert np.abs(changed - before).max() > 0.1


@pytest.mark.parametrize("kind", ["sliding-window"], indirect=True)
def test_a_third_of_the_layers_has_no_window(run: Run) -> None:
    within = run.state_size(WINDOW) - run.state_size(WINDOW - 16)
    without_window = run.state_size(200) - run.state_size(184)
    assert without_window == pytest.approx(within / 3, rel=0.2)  # each cell has a header


@pytest.mark.parametrize("kind", ["recurrent"], indirect=True)
def test_a_recurrent_state_has_one_size(run: Run) -> None:
    assert run.state_size(10) == run.state_size(200)


@pytest.mark.parametrize("kind", ["hybrid", *HYBRIDS], indirect=True)
def test_a_hybrid_state_has_a_fixed_part_and_a_part_per_token(run: Run) -> None:
    ten, twenty, thirty = (run.state_size(n) for n in (10, 20, 30))
    assert thirty - twenty == twenty - ten > 0
    assert ten > twenty - ten


@pytest.mark.parametrize("kind", ["recurrent", "hybrid", *HYBRIDS], indirect=True)
def test_recurrent_and_hybrid_states_cannot_be_truncated(run: Run) -> None:
    run.fresh(PROMPT)
    with pytest.raises(ValueError, match="cannot be truncated"):
        run.context.truncate_sequence(0, 199)
