"""Choice of KV cache layout and attention kernel, measured with this model on this machine.

No choice is best on all machines. With AMX, the split layout with flash attention is twice as fast. On the
same CPU without AMX, the shared layout without flash attention was faster.
"""

from __future__ import annotations

import json
import logging
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from app.engine.llama import Batch, Context, KVOptions, Model, ModelLoadError

logger = logging.getLogger("tokenstream.kv_choice")

Layout = Literal["split", "shared"]

_N_PREFIX = 256  # tokens of the common prefix
_N_STEPS = 5  # decode steps; the fastest counts, because other programs can only add time
# Typical request for comparing candidates: prefilled tokens and decode steps.
_PREFILL_TOKENS, _DECODE_STEPS = 100, 48
# Minimum advantage over the default. Timings vary by some percent between starts; the choice should not.
_MIN_GAIN = 1.08
_MAX_SECONDS = 40.0  # above, weights dominate the step time and the choice matters little


@dataclass(frozen=True, slots=True)
class Measurement:
    """Speed of one layout and attention kernel.

    Attributes:
        layout: See KVOptions.
        flash_attention: See KVOptions.
        prefill: Seconds per prompt token.
        decode: Seconds per step of all sequences; for the shared layout, the mean with and without a common
            prefix.
        n_sequences: Number of sequences.
    """

    layout: Layout
    flash_attention: bool
    prefill: float
    decode: float
    n_sequences: int

    @property
    def request(self) -> float:
        """Seconds of compute time per typical request."""
        return _PREFILL_TOKENS * self.prefill + _DECODE_STEPS * self.decode / self.n_sequences

    def __str__(self) -> str:
        attention = "flash attention" if self.flash_attention else "plain attention"
        rates = f"prefill {1 / self.prefill:.0f}, decode {self.n_sequences / self.decode:.0f} tokens/s"
        return f"{self.layout} with {attention} ({rates})"


def choose_kv(
    model: Model,
    wanted: KVOptions,
    *,
    layout: Layout | None,
    n_sequences: int,
    n_threads: int,
    remember: Path | None,
) -> tuple[KVOptions, str]:
    """Choose layout and attention kernel, unless they are configured.

    Args:
        model: The model.
        wanted: Configured options with the number format. If ``flash_attention`` is None it is chosen.
        layout: Configured layout. If None it is chosen.
        n_sequences: Sequences per decode step.
        n_threads: Compute threads.
        remember: File of the measurements, for later starts.

    Returns:
        The options, and the reason for the log.
    """
    if model.is_recurrent or model.n_window:
        # Shared layout: other sequences may overwrite cells behind a window. Recurrent layers require
        # batches of equally long sequences in either layout.
        layout = "split"
    # llama.cpp requires flash attention for a quantized KV cache.
    plain_type = wanted.type in ("f32", "f16", "bf16")
    layouts: list[Layout] = ["split", "shared"] if layout is None else [layout]
    flash = [True, False] if plain_type else [True]
    if wanted.flash_attention is not None:
        flash = [wanted.flash_attention]
    candidates = [KVOptions(one, fused, wanted.type) for fused in flash for one in layouts]
    if len(candidates) == 1:
        return candidates[0], "as configured"
    measured = _remembered(remember, candidates)
    if measured is None:
        logger.info("measuring layouts of the KV cache, once for this model on this machine")
        measured = _measure_all(model, candidates, min(n_sequences, 8), n_threads)
        if measured and remember is not None:
            _remember(remember, measured)
    if not measured:
        return candidates[0], "not measured: a step of this model takes too long"
    return _best(measured, wanted.type)


def _best(measured: list[Measurement], kv_type: str) -> tuple[KVOptions, str]:
    usual, fastest = measured[0], min(measured, key=lambda m: m.request)
    chosen = fastest if fastest.request * _MIN_GAIN < usual.request else usual
    others = ", ".join(str(m) for m in measured if m is not chosen)
    return KVOptions(chosen.layout, chosen.flash_attention, kv_type), f"measured: {chosen}; {others}"


def _measure_all(
    model: Model, candidates: list[KVOptions], n_sequences: int, n_threads: int
) -> list[Measurement]:
    """Measure all candidates, the default first. Returns an empty list if that takes too long."""
    measured: list[Measurement] = []
    for kv in candidates:
        started = time.perf_counter()
        try:
            measured.append(_measure(model, kv, n_sequences, n_threads))
        except ModelLoadError as error:  # not every architecture supports every kernel
            logger.info("KV cache %s is not supported: %s", kv, error)
            continue
        if (time.perf_counter() - started) * len(candidates) > _MAX_SECONDS:
            return []
    return measured


def _measure(model: Model, kv: KVOptions, n_sequences: int, n_threads: int) -> Measurement:
    n_batch = _N_PREFIX + n_sequences
    context = Context(
        model,
        n_ctx=2 * _N_PREFIX * n_sequences,
        n_sequences=n_sequences,
        n_batch=n_batch,
        n_threads=n_threads,
        kv=kv,
    )
    try:
        batch = Batch(n_batch)
        rng = random.Random(1)
        prompt = [rng.randrange(model.vocab.n_tokens) for _ in range(_N_PREFIX)]
        prefills = []
        for _ in range(2):
            context.clear_sequence(0)
            prefills.append(_decode_seconds(context, batch, [(prompt, 0, 0)]) / _N_PREFIX)
        state = context.save_sequence(0)
        decodes = []
        for common in (True, False) if kv.layout == "shared" else (False,):
            for sequence in range(n_sequences):
                context.clear_sequence(sequence)
            for sequence in range(n_sequences):
                if common and sequence:
                    context.share_prefix(0, sequence, _N_PREFIX)
                else:
                    context.restore_sequence(sequence, state)
            steps = range(_N_PREFIX, _N_PREFIX + _N_STEPS)
            rows = [[([prompt[0]], n, sequence) for sequence in range(n_sequences)] for n in steps]
            decodes.append(min(_decode_seconds(context, batch, row) for row in rows))
        decode = sum(decodes) / len(decodes)
        return Measurement(kv.layout, bool(kv.flash_attention), min(prefills), decode, n_sequences)
    finally:
        context.close()


def _decode_seconds(context: Context, batch: Batch, parts: list[tuple[list[int], int, int]]) -> float:
    batch.clear()
    for tokens, position, sequence in parts:
        batch.add(tokens, position, sequence, n_outputs=1)
    started = time.perf_counter()
    context.decode(batch)
    return time.perf_counter() - started


def _remembered(path: Path | None, candidates: list[KVOptions]) -> list[Measurement] | None:
    if path is None:
        return None
    try:
        measured = [Measurement(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.info("%s is invalid, measuring again: %s", path, error)
        return None
    wanted = {(kv.layout, kv.flash_attention) for kv in candidates}
    measured = [m for m in measured if (m.layout, m.flash_attention) in wanted]
    return measured or None


def _remember(path: Path, measured: list[Measurement]) -> None:
    unfinished = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps([asdict(m) for m in measured], indent=1), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        logger.info("the measurements of the KV cache cannot be saved in %s: %s", path, error.strerror)
