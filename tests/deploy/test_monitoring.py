"""Queries of the dashboard and alert rules in a real Prometheus, which scrapes a server under load."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT, Server, free_port, running_server

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/tokenstream.json").read_text())

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]


def queries() -> dict[str, str]:
    """Query by panel and legend, with Grafana's variables replaced."""
    found = {}
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "5s").replace("$instance", ".*")
            found[f"{panel['title']}: {target['legendFormat']}"] = query
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("monitored")
    paths = {"DATA_PATH": str(ROOT / "data"), "KNOWLEDGE_INDEX": str(folder / "index")}
    with running_server(folder / "log", KNOWLEDGE="on", **paths) as server:
        yield server


@pytest.fixture(scope="module")
def load(server: Server) -> Iterator[None]:
    """Answers with repetitions and documents, rejected requests, and cancelled answers."""
    ended = threading.Event()

    def ask() -> None:
        body: dict[str, Any] = {"query": "Repeat: one two three one two three one two three one two three"}
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not ended.is_set():
                client.post("/token_stream", json=body | {"max_tokens": 40, "ignore_eos": True})
                client.post("/v1/chat/completions", json={"messages": []})
                with client.stream("POST", "/token_stream", json=body) as response:
                    next(response.iter_text(), None)

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    ended.set()
    thread.join()


def is_ready(address: str) -> bool:
    """Whether Prometheus accepts queries. Before, it refuses connections or answers 503 without JSON."""
    try:
        return httpx.get(f"http://{address}/-/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("prometheus")
    address = f"127.0.0.1:{free_port()}"
    config = (DEPLOY / "prometheus/prometheus.yml").read_text()
    config = config.replace("15s", "1s").replace("127.0.0.1:3030", server.url.removeprefix("http://"))
    (folder / "prometheus.yml").write_text(config)
    shutil.copy(DEPLOY / "prometheus/alerts.yml", folder)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    end = time.monotonic() + 60
    while not is_ready(address):
        assert time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.1)
    with httpx.Client(base_url=f"http://{address}/api/v1") as client:
        yield client
    process.terminate()
    process.wait()


def has_value(prometheus: httpx.Client, query: str) -> bool:
    response = prometheus.get("/query", params={"query": query}).json()
    assert response["status"] == "success", (query, response)
    return any(math.isfinite(float(one["value"][1])) for one in response["data"]["result"])


def test_each_query_of_the_dashboard_has_values_under_load(prometheus: httpx.Client, load: None) -> None:
    missing, end = queries(), time.monotonic() + 120
    while missing and time.monotonic() < end:
        missing = {name: query for name, query in missing.items() if not has_value(prometheus, query)}
        time.sleep(0.3)
    assert not missing


def test_each_alert_rule_can_be_evaluated(prometheus: httpx.Client, load: None) -> None:
    """After the test above: all metrics of the rules exist."""
    end = time.monotonic() + 60
    while True:
        [group] = prometheus.get("/rules").json()["data"]["groups"]
        if all(rule["health"] != "unknown" for rule in group["rules"]) or time.monotonic() > end:
            break
        time.sleep(0.3)
    assert {rule["health"] for rule in group["rules"]} == {"ok"}, group
    assert {rule["state"] for rule in group["rules"] if rule["name"] != "TokenstreamFailures"} == {"inactive"}
    known = set(prometheus.get("/label/__name__/values").json()["data"])
    rules = (DEPLOY / "prometheus/alerts.yml").read_text()
    named = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b(?=[{\[ )])", "\n".join(re.findall(r"expr: (.*)", rules))))
    assert {name for name in named if name != "histogram_quantile"} <= known


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
