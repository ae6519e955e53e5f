"""Memory plans of the default model and of other architectures for any amount of memory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.engine import EngineOptions
from app.engine.llama import Batch, Context, KVOptions, Model, ModelLoadError, attention_calls, simulation
from app.engine.llama.simulation import AUTO_KV_TYPE, ContextMemory, SimulatedModel
from app.fit import memory_plan
from app.fit.memory_plan import MemoryPlan, MemoryPlanError, make_plan
from tests.conftest import MODEL, ROOT
from tests.tiny_models import KINDS, Kind, TinyModel

MIB = 1 << 20
KV_BYTES_PER_TOKEN = 30 * 2 * 3 * 64 * 2  # layers, K and V, KV heads, head dimension, f16


def plan(
    path: Path = MODEL,
    *,
    mib: float = 100_000,
    n_ctx: int | None = None,
    max_sequences: int | None = None,
    prefix_mb: int | None = None,
    kv: KVOptions = KVOptions(),  # noqa: B008
) -> MemoryPlan:
    return make_plan(
        path,
        n_ctx=n_ctx,
        max_sequences=max_sequences,
        prefix_mb=prefix_mb,
        kv=kv,
        gpu_layers=0,
        n_threads=2,
        available=int(mib * MIB),
    )


def free_for_kv(found: MemoryPlan) -> int:
    return found.available - found.weights - found.process


# --- without configured sizes


def test_with_enough_memory_all_sizes_are_the_maximum() -> None:
    found = plan()
    assert (found.max_sequences, found.n_ctx) == (8, 8 * 4096)
    assert found.kv == 8 * 4096 * KV_BYTES_PER_TOKEN
    assert found.prefix_budget == 2048 * MIB
    assert found.weights > MODEL.stat().st_size * 0.9
    assert found.compute > 8 * MIB
    assert 1 <= found.state_copy / (found.kv / 8) < 1.01
    copies = found.state_copy + found.prefix_budget
    assert found.total == found.weights + found.kv + found.compute + found.process + copies


def test_sequences_are_at_most_as_long_as_the_training_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "_MAX_SEQUENCE_TOKENS", 1 << 20)
    assert plan().n_ctx == 8 * 8192


def test_with_less_memory_sequences_are_shorter_then_fewer() -> None:
    found = plan(mib=1024)
    assert found.max_sequences == 8
    assert 512 < found.n_ctx // 8 < 4096
    fewer = plan(mib=450)
    assert 1 < fewer.max_sequences < 8
    assert 512 <= fewer.n_ctx // fewer.max_sequences < 1024


def test_the_minimum_kv_cache_can_exceed_its_share() -> None:
    # The weights depend on the CPU. The memory is that of one sequence of 512 tokens, plus 1 MiB.
    smallest = plan(n_ctx=512, max_sequences=1, prefix_mb=0)
    found = plan(mib=smallest.total / MIB + 1, prefix_mb=0)
    assert (found.max_sequences, found.n_ctx) == (1, 512)
    assert 4 * found.kv > free_for_kv(found)


@settings(max_examples=10, deadline=None)
@given(mib=st.integers(200, 8000))
def test_a_plan_is_as_large_as_the_rules_allow(mib: int) -> None:
    try:
        found = plan(mib=mib)
    except MemoryPlanError:
        assert mib < 300
        return
    n_tokens = found.n_ctx // found.max_sequences
    assert found.total <= found.available
    assert found.n_ctx == n_tokens * found.max_sequences
    assert n_tokens % 256 == 0
    assert 0 <= found.prefix_budget <= (free_for_kv(found) - found.kv - found.compute) / 10
    if found.max_sequences * n_tokens > 512:  # the minimum can exceed its share
        assert 4 * found.kv <= free_for_kv(found)
    longer = (n_tokens + 256) * found.max_sequences
    more = 512 * (found.max_sequences + 1)
    assert n_tokens == 4096 or 4 * longer * KV_BYTES_PER_TOKEN > free_for_kv(found)
    assert found.max_sequences == 8 or 4 * more * KV_BYTES_PER_TOKEN > free_for_kv(found)


@pytest.mark.parametrize("kind", KINDS)
def test_other_architectures_have_plans(kind: Kind, tiny_model: TinyModel) -> None:
    found = plan(tiny_model(kind), mib=1000)
    assert (found.max_sequences, found.n_ctx) == (8, 8 * 4096)
    assert 0 < found.kv < 32 * MIB
    assert found.fits


# --- with a configured size


@pytest.mark.parametrize(("n_ctx", "max_sequences"), [(16384, 8), (4096, 8), (2048, 4), (1024, 2), (256, 1)])
def test_n_ctx_determines_the_number_of_sequences(n_ctx: int, max_sequences: int) -> None:
    found = plan(n_ctx=n_ctx)
    assert (found.n_ctx, found.max_sequences) == (n_ctx, max_sequences)


@pytest.mark.parametrize(
    ("mib", "max_sequences", "n_ctx"), [(100_000, 2, 8192), (100_000, 32, 131072), (400, 1, 1536)]
)
def test_the_number_of_sequences_determines_n_ctx(mib: int, max_sequences: int, n_ctx: int) -> None:
    found = plan(mib=mib, max_sequences=max_sequences)
    assert found.max_sequences == max_sequences
    assert found.n_ctx == pytest.approx(n_ctx, abs=512)


def test_with_less_memory_configured_sequences_are_shorter() -> None:
    assert plan(mib=2048, max_sequences=128).n_ctx == 128 * 512
    assert plan(mib=1500, max_sequences=128).n_ctx == 128 * 256


def test_n_ctx_is_rounded_as_by_llama_cpp() -> None:
    assert plan(n_ctx=2000, max_sequences=3).n_ctx == 3 * 768


def test_a_quantized_kv_cache_needs_about_half() -> None:
    f16, q8_0 = (plan(n_ctx=8192, kv=KVOptions(type=name)) for name in ("f16", "q8_0"))
    assert q8_0.kv / f16.kv == pytest.approx(34 / 64, rel=1e-3)


def test_the_prefix_budget_is_the_configured_one() -> None:
    assert plan(mib=4000, prefix_mb=1000).prefix_budget == 1000 * MIB
    assert plan(mib=4000, prefix_mb=0).prefix_budget == 0


def test_a_configured_prefix_budget_reduces_the_kv_cache() -> None:
    without, found = plan(mib=2000, prefix_mb=0), plan(mib=2000, prefix_mb=1500)
    assert found.max_sequences == 8
    assert 512 <= found.n_ctx // 8 < without.n_ctx // 8


# --- error messages


def error_of(**requested: object) -> str:
    with pytest.raises(MemoryPlanError) as error:
        plan(**requested)  # type: ignore[arg-type]
    return str(error.value)


def remedies(message: str) -> list[dict[str, str]]:
    """The settings of each remedy in an error message."""
    advice = re.search(r"settings that fit: (.*); or give", message)
    assert advice is not None, message
    return [dict(re.findall(r"([A-Z_]+)=(\w+)", part)) for part in advice[1].split(", or ")]


@pytest.mark.parametrize(
    ("mib", "n_ctx", "max_sequences", "prefix_mb", "kv", "offered"),
    [
        (1500, 131072, 8, None, KVOptions(), ["N_CTX", "MAX_SEQUENCES"]),
        (2000, 81920, 8, None, KVOptions(), ["N_CTX", "MAX_SEQUENCES", "KV_TYPE"]),
        (2000, 81920, 8, None, KVOptions(flash_attention=False), ["N_CTX", "MAX_SEQUENCES"]),
        (2000, 16384, 8, 4000, KVOptions(), ["PREFIX_CACHE_MB"]),
        (
            500,
            16384,
            8,
            4000,
            KVOptions(),
            ["N_CTX"],
        ),  # all settings at once: the KV cache alone needs 360 MiB
        (1000, None, 256, None, KVOptions(), ["MAX_SEQUENCES"]),
        (1000, 200_000, None, None, KVOptions(), ["N_CTX"]),
    ],
)
@pytest.mark.slow
def test_settings_offered_in_an_error_message_fit(
    mib: int,
    n_ctx: int | None,
    max_sequences: int | None,
    prefix_mb: int | None,
    kv: KVOptions,
    offered: list[str],
) -> None:
    requested = {"mib": mib, "n_ctx": n_ctx, "max_sequences": max_sequences, "prefix_mb": prefix_mb, "kv": kv}
    found = remedies(error_of(**requested))
    assert [next(iter(remedy)) for remedy in found] == offered
    for remedy in found:
        lowered = dict(requested)
        for name, value in remedy.items():
            if name == "KV_TYPE":
                lowered["kv"] = KVOptions(kv.flash_attention, value)
            else:
                lowered[{"PREFIX_CACHE_MB": "prefix_mb"}.get(name, name.lower())] = int(value)
        assert plan(**lowered).fits  # type: ignore[arg-type]


def test_the_error_message_has_all_figures() -> None:
    message = error_of(mib=2000, n_ctx=131072, max_sequences=8, prefix_mb=10)
    assert "\n" not in message
    pattern = (
        r"not enough memory: weights (\d+) MiB \+ KV 2880 MiB \(8 x 16384 tokens, f16\) \+ buffers (\d+) MiB "
        r"\+ process (\d+) MiB \+ state copy 360 MiB \+ prefixes 10 MiB = (\d+) MiB of 2000 MiB; "
        r"settings that fit"
    )
    match = re.match(pattern, message)
    assert match is not None, message
    weights, buffers, process, total = map(int, match.groups())
    assert total == pytest.approx(weights + 2880 + 360 + buffers + process + 10, abs=2)


def test_a_model_that_is_too_large_is_rejected() -> None:
    message = error_of(mib=180)
    free = re.search(r"choose a smaller model or .* with weights of at most (\d+) MiB", message)
    assert free is not None, message
    assert 30 < int(free[1]) < 60
    assert "N_CTX" not in message


def test_a_huge_n_ctx_is_rejected_with_an_offer() -> None:
    """Its simulation needs 600 GB, so it is not simulated."""
    message = error_of(n_ctx=10**10, max_sequences=8)
    assert "KV 214576" in message
    assert int(remedies(message)[0]["N_CTX"]) > 1 << 20


def test_recurrent_states_that_exceed_memory_are_not_allocated(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated: list[int] = []
    original = SimulatedModel.context_memory

    def large_states(self: SimulatedModel, *, n_sequences: int, **others: object) -> ContextMemory:
        simulated.append(n_sequences)
        found = original(self, n_sequences=n_sequences, **others)  # type: ignore[arg-type]
        return ContextMemory(found.n_ctx, n_sequences * 100 * MIB, found.buffers)

    monkeypatch.setattr(SimulatedModel, "context_memory", large_states)
    message = error_of(path=tiny_model("recurrent"), mib=1000, n_ctx=65536, max_sequences=256)
    assert "KV 25.0 GiB (256 x 256 tokens, f16)" in message
    assert int(remedies(message)[0]["MAX_SEQUENCES"]) in (6, 7, 8)
    assert max(simulated) < 11


def test_the_kv_cache_has_eight_bits_where_our_attention_computes_with_them() -> None:
    chosen = plan(n_ctx=8192, kv=KVOptions(type=AUTO_KV_TYPE))
    wanted = "f16" if attention_calls() is None else "q8_0"
    assert chosen == plan(n_ctx=8192, kv=KVOptions(type=wanted))
    without = plan(n_ctx=8192, kv=KVOptions(flash_attention=False, type=AUTO_KV_TYPE))
    assert without.kv_options.type == "f16"


@pytest.mark.parametrize(
    ("key", "value", "is_packed"),
    [(32, 32, True), (128, 128, True), (48, 48, False), (64, 32, False), (288, 288, False)],
)
def test_the_number_format_fits_the_heads(
    monkeypatch: pytest.MonkeyPatch, key: int, value: int, is_packed: bool
) -> None:
    lengths = {"attention.key_length": str(key), "attention.value_length": str(value)}
    monkeypatch.setattr(SimulatedModel, "_metadata", lambda _model, name: lengths.get(name))
    monkeypatch.setattr(simulation, "attention_calls", lambda: 0)
    model = SimulatedModel(MODEL)
    assert model.packs_kv() == is_packed
    model.close()


def test_a_recurrent_model_has_no_heads(tiny_model: TinyModel) -> None:
    assert plan(tiny_model("recurrent"), kv=KVOptions(type=AUTO_KV_TYPE)).kv_options.type == "f16"


def test_an_unsupported_kv_type_is_rejected() -> None:
    with pytest.raises(ModelLoadError, match="flash_attn"):
        plan(n_ctx=4096, kv=KVOptions(flash_attention=False, type="q8_0"))


# --- the log line, and a comparison with a real process


def test_the_log_line_has_all_figures() -> None:
    figures = {
        "weights": 98,
        "kv": 360,
        "compute": 60,
        "process": 120,
        "state_copy": 45,
        "prefix_budget": 512,
    }
    found = MemoryPlan(
        n_ctx=16384,
        max_sequences=8,
        kv_options=KVOptions(),
        available=24105 * MIB,
        **{name: mib * MIB for name, mib in figures.items()},
    )
    assert str(found) == (
        "memory: weights 98 MiB + KV 360 MiB (8 x 2048 tokens, f16) + buffers 60 MiB + process 120 MiB "
        "+ state copy 45 MiB + prefixes 512 MiB = 1195 MiB of 23.5 GiB"
    )


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("kind", ["plain", *KINDS])
@pytest.mark.slow
def test_the_state_of_a_full_sequence_is_within_the_plan(
    kind: Kind | Literal["plain"], kv_type: str, tiny_model: TinyModel
) -> None:
    path = MODEL if kind == "plain" else tiny_model(kind)
    kv = KVOptions(flash_attention=True, type=kv_type)
    found = plan(path, n_ctx=1024, max_sequences=2, kv=kv)
    model = Model(path)
    context = Context(model, n_ctx=1024, n_sequences=2, n_batch=512, n_threads=2, kv=kv)
    batch = Batch(512)
    batch.add([5] * 512, 0, 0, n_outputs=1)
    context.decode(batch)
    n_bytes = context.sequence_bytes(0)
    assert len(context.save_sequence(0)) == n_bytes <= found.state_copy
    context.close()
    model.close()


def test_a_single_sequence_is_not_copied() -> None:
    assert plan(n_ctx=16384, max_sequences=1).state_copy == 0


_REAL_PROCESS = """
import sys
from pathlib import Path
import app.cli.serve
from app.engine.llama import Batch, Context, Model

model = Model(Path(sys.argv[1]))
n_ctx, n_sequences, n_batch, n_outputs = map(int, sys.argv[2:])
sizes = {"n_ctx": n_ctx, "n_sequences": n_sequences, "n_batch": n_batch, "n_outputs": n_outputs}
context = Context(model, **sizes, n_threads=2)
batch = Batch(n_batch)
for sequence in range(n_sequences):
    batch.add([1] * (512 // n_sequences), 0, sequence, n_outputs=n_outputs // n_sequences)
context.decode(batch)
print(Path("/proc/self/status").read_text())
"""


@pytest.mark.slow
def test_a_process_needs_at_most_its_plan() -> None:
    """Anonymous memory is compared, as the kernel can drop pages of the mapped model file."""
    found = plan()
    options = EngineOptions(n_ctx=found.n_ctx, max_sequences=found.max_sequences, n_threads=2)
    figures = (options.n_ctx, options.max_sequences, options.n_batch, options.n_outputs)
    child = subprocess.run(
        [sys.executable, "-c", _REAL_PROCESS, str(MODEL), *map(str, figures)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    match = re.search(r"RssAnon:\s+(\d+) kB", child.stdout)
    assert match is not None
    anonymous = int(match[1]) * 1024
    assert found.kv < anonymous <= found.total - found.prefix_budget
    assert anonymous > (found.total - found.prefix_budget) * 0.7
