"""Alert rules fire, by promtool."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="prometheus is not installed")


def test_alerts_fire(tmp_path: Path) -> None:
    cases = {
        "TokenstreamDown": ('up{job="tokenstream"}', "0x30"),
        "TokenstreamEngineDead": ("engine_alive", "0x30"),
        "TokenstreamEngineStalled": ("running_requests", "1x30"),
        "TokenstreamRejects": ('rejected_requests_total{reason="overloaded"}', "0+60x30"),
        "TokenstreamFailures": ('rejected_requests_total{reason="internal"}', "0+1x30"),
        "TokenstreamFewDescriptors": ("process_open_fds", "90x30"),
    }
    always = [
        {"series": "engine_last_step_timestamp_seconds", "values": "0x30"},
        {"series": "process_max_fds", "values": "100x30"},
    ]
    tests = {
        "rule_files": [str(DEPLOY / "prometheus/alerts.yml")],
        "tests": [
            {
                "interval": "1m",
                "input_series": [*always, {"series": series, "values": values}],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}})',
                        "eval_time": "20m",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                ],
            }
            for name, (series, values) in cases.items()
        ],
    }
    (tmp_path / "tests.yml").write_text(json.dumps(tests))  # JSON is YAML
    done = subprocess.run(
        ["promtool", "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
