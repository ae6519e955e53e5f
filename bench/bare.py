"""What the library gives without a server: a loop of llama_decode and a sampler, nothing else."""

from __future__ import annotations

import random
import time
from pathlib import Path

from app.engine.llama import Batch, Context, Model, Sampler


class BareLoop:
    """Decodes ``n_sequences`` at once over the same library, model, threads and KV layout as the server."""

    def __init__(
        self, model_path: Path, n_sequences: int, n_threads: int, n_ctx_sequence: int = 2048
    ) -> None:
        self._model = Model(model_path)
        self._context = Context(
            self._model,
            n_ctx=n_ctx_sequence * n_sequences,
            n_sequences=n_sequences,
            n_batch=520,
            n_threads=n_threads,
        )
        self._batch = Batch(520)
        self._n_sequences = n_sequences

    def decode_rate(self, n_prompt: int, n_tokens: int) -> float:
        """Tokens per second over ``n_tokens`` steps behind random prompts of ``n_prompt`` tokens."""
        sampler = Sampler(self._model.vocab)
        sampler.greedy()
        last = []
        for sequence in range(self._n_sequences):
            self._context.clear_sequence(sequence)
            prompt = [random.randrange(1000, self._model.vocab.n_tokens) for _ in range(n_prompt)]
            self._batch.clear()
            index = self._batch.add(prompt, 0, sequence, logits=True)
            self._context.decode(self._batch)
            last.append(sampler.sample(self._context, index))
        started = time.perf_counter()
        for position in range(n_prompt, n_prompt + n_tokens):
            self._batch.clear()
            for sequence, token in enumerate(last):
                self._batch.add([token], position, sequence, logits=True)
            self._context.decode(self._batch)
            last = [sampler.sample(self._context, index) for index in range(self._n_sequences)]
        seconds = time.perf_counter() - started
        sampler.close()
        return n_tokens * self._n_sequences / seconds

    def close(self) -> None:
        """Free the context and the model."""
        self._context.close()
        self._model.close()
