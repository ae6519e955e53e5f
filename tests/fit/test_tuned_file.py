"""TUNED_FILE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.fit.tuned_file import Conditions, TunedFileError, read, write
from tests.conftest import MODEL

HERE = Conditions('a "b".gguf', 98_000_000, "", "AMD EPYC 9R14", 2, "0.3.36-597c5d3a")


def test_values_are_found_under_their_conditions_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tuned.toml"
    assert read(path, HERE) == {}
    other = replace(HERE, cores=64)
    write(path, HERE, {"kv_type": "f16", "model_threads": 3}, 1.0712)
    write(path, other, {"matmul": "ggml"}, 1.2)
    assert read(path, HERE) == {"kv_type": "f16", "model_threads": 3}
    assert read(path, other) == {"matmul": "ggml"}
    for changed in ({"cpu": "other"}, {"build": "other"}, {"bytes": 1}, {"model": "b"}, {"quantize": "q8_0"}):
        assert read(path, replace(HERE, **changed)) == {}
    assert "gain = 1.071" in path.read_text()

    write(path, HERE, {"flash_attention": "off"}, 1.1)
    assert read(path, HERE) == {"flash_attention": "off"}
    write(path, HERE, {}, 1.0)
    assert read(path, HERE) == {}
    assert read(path, other) == {"matmul": "ggml"}


def test_conditions_are_those_of_this_process() -> None:
    found = Conditions.of(MODEL, None)
    assert (found.model, found.bytes, found.quantize) == (MODEL.name, MODEL.stat().st_size, "")
    assert found.cores >= 1
    assert found.build != "unknown"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tuned = 3", "should have tables [[tuned]]"),
        ("[[tuned", "is not valid TOML"),
        ("{table}[tuned.settings]\nkv_type = 'q9'", "tuned[0].settings.kv_type: Input should be 'auto', "),
        ("{table}[tuned.settings]\nn_ctx = 3", "tuned[0].settings.n_ctx: Extra inputs are not permitted"),
        (
            "{table}[tuned.settings]\nmodel_threads = 0",
            "settings.model_threads: Input should be greater than",
        ),
        ("{table}", "tuned[0].settings: Input should be a valid dictionary"),
    ],
)
def test_an_invalid_file_is_rejected(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    write(path, HERE, {"kv_type": "f16"}, 1.1)
    table = path.read_text().partition("[tuned.settings]")[0]
    path.write_text(text.replace("{table}", table))
    with pytest.raises(TunedFileError) as raised:
        read(path, HERE)
    assert str(raised.value).startswith(f"TUNED_FILE={path}")
    assert message in str(raised.value)


def test_a_file_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TunedFileError, match=r"cannot be written \(.*\): name another file"):
        write(tmp_path / "file" / "tuned.toml", HERE, {"kv_type": "f16"}, 1.1)
