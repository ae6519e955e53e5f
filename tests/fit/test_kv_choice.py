"""The choice of KV cache layout and attention by measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.engine.llama import KVOptions, Model
from app.fit import kv_choice
from app.fit.kv_choice import Measurement, choose_kv


def choose(model: Model, tmp_path: Path, **changes: Any) -> tuple[KVOptions, str]:
    wanted = changes.pop("wanted", KVOptions("split", None))
    arguments = {"layout": None, "n_sequences": 4, "n_threads": 2, "remember": tmp_path / "kv.json"}
    return choose_kv(model, wanted, **(arguments | changes))


def measurement(layout: Any, flash: bool, prefill: float = 0.001, decode: float = 0.02) -> Measurement:
    return Measurement(layout, flash, prefill, decode, 4)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, bool], tuple[float, float]]:
    """Fake measurements: (layout, flash attention) → seconds of prefill and decode."""
    table: dict[tuple[str, bool], tuple[float, float]] = {}

    def measure(_model: Model, kv: KVOptions, *_: object) -> Measurement:
        figures = table.get((kv.layout, bool(kv.flash_attention)), (0.001, 0.02))
        return measurement(kv.layout, bool(kv.flash_attention), *figures)

    monkeypatch.setattr(kv_choice, "_measure", measure)
    return table


def test_all_four_variants_are_measured_and_stored(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_choice, "_MAX_SECONDS", float("inf"))  # a busy machine is slow
    chosen, reason = choose(model, tmp_path)
    measured = [Measurement(**fields) for fields in json.loads((tmp_path / "kv.json").read_text())]
    assert {(m.layout, m.flash_attention) for m in measured} == {
        ("split", True),
        ("shared", True),
        ("split", False),
        ("shared", False),
    }
    assert all(0 < m.prefill < m.decode for m in measured)
    assert reason.startswith(f"measured: {chosen.layout} with")
    assert chosen.flash_attention is not None


def test_the_fastest_variant_is_chosen(
    model: Model, tmp_path: Path, figures: dict[tuple[str, bool], tuple[float, float]]
) -> None:
    figures["shared", False] = (0.001, 0.01)
    assert choose(model, tmp_path)[0] == KVOptions("shared", False)


def test_a_small_gain_does_not_change_the_default(
    model: Model, tmp_path: Path, figures: dict[tuple[str, bool], tuple[float, float]]
) -> None:
    figures["shared", False] = (0.00098, 0.0196)
    assert choose(model, tmp_path)[0] == KVOptions("split", True)


def test_stored_measurements_are_used_again(
    model: Model, tmp_path: Path, figures: dict[tuple[str, bool], tuple[float, float]]
) -> None:
    figures["split", False] = (0.0001, 0.001)
    choose(model, tmp_path)
    figures.clear()
    assert choose(model, tmp_path)[0] == KVOptions("split", False)
    (tmp_path / "kv.json").write_text("[{")
    assert choose(model, tmp_path)[0] == KVOptions("split", True), "a damaged file is ignored"


def test_configured_values_are_not_measured(
    model: Model, tmp_path: Path, figures: dict[tuple[str, bool], tuple[float, float]]
) -> None:
    figures["shared", False] = (0.0001, 0.001)
    assert choose(model, tmp_path, layout="split")[0] == KVOptions("split", True)
    assert choose(model, tmp_path, wanted=KVOptions("split", True))[0].flash_attention is True
    chosen, reason = choose(model, tmp_path, layout="split", wanted=KVOptions("split", False))
    assert (chosen, reason) == (KVOptions("split", False), "as configured")


def test_quantized_values_need_flash_attention(
    model: Model, tmp_path: Path, figures: dict[tuple[str, bool], tuple[float, float]]
) -> None:
    figures["split", False] = (0.0001, 0.001)
    assert choose(model, tmp_path, wanted=KVOptions("split", None, "q8_0"))[0].flash_attention is True


def test_a_slow_model_is_not_measured(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_choice, "_MAX_SECONDS", 0.0)
    chosen, reason = choose(model, tmp_path)
    assert chosen == KVOptions("split", True)
    assert "too long" in reason
    assert not (tmp_path / "kv.json").exists()
