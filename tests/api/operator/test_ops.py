"""/health, /ready, /metrics, /contexts, and headers of the web page."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.api.operator.pages import UI
from tests.conftest import Server, changed_program, free_port


def test_health_is_ok_and_ready_is_ready(server_url: str) -> None:
    assert httpx.get(f"{server_url}/health").json() == {"status": "ok"}
    for path in ("/ready", "/ping"):
        assert httpx.get(server_url + path).json() == {"status": "ready"}


def test_contexts_are_listed_with_model_and_knowledge(server_url: str) -> None:
    listed = httpx.get(f"{server_url}/contexts").json()
    prompts = listed.pop("prompts")
    assert list(prompts) == ["general", "sql", "classifier", "math"]
    assert prompts["sql"] == "You are a SQL expert. Answer with one SQL query."
    assert listed == {
        "default": "general",
        "contexts": ["general", "sql", "classifier", "math"],
        "model": "SmolLM2-135M-Instruct.Q4_1",
        "knowledge": False,
        "uploads": False,
        "with_documents": [],
        "is_small": True,
        "stats": True,
        "max_total_tokens": 2048,
        "thinks": False,
        "refused": {},
        "problem": None,
    }


def test_metrics_at_another_address_count_tokens_and_answers(start_server: Callable[..., Server]) -> None:
    address = f"127.0.0.1:{free_port()}"
    url = start_server(INSTANCE_LABEL="box-7", PROMETHEUS_HTTP_ADDRESS=address).wait_until().url
    for path in ("/metrics", "/stats", "/stats/events"):
        assert httpx.get(url + path).status_code == 404
    assert httpx.get(f"{url}/contexts").json()["stats"] is False
    body = {"query": "Say hello.", "max_tokens": 9, "ignore_eos": True, "details": True}
    httpx.post(f"{url}/token_stream", json=body, timeout=60)
    response = httpx.get(f"http://{address}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    lines = response.text.splitlines()
    assert 'token_creation_duration_count{instance="box-7"} 9.0' in lines
    assert 'inference_response_duration_count{instance="box-7"} 1.0' in lines
    assert 'time_to_first_token_duration_count{instance="box-7"} 1.0' in lines
    assert 'generated_tokens_total{instance="box-7"} 9.0' in lines
    assert 'running_requests{instance="box-7"} 0.0' in lines
    assert 'engine_alive{instance="box-7"} 1.0' in lines
    assert 'inter_token_latency_seconds_count{instance="box-7"} 8.0' in lines
    assert 'request_queue_time_seconds_count{instance="box-7"} 1.0' in lines
    assert 'request_success_total{finished_reason="length",instance="box-7"} 1.0' in lines
    labels = 'instance="box-7",key="",method="POST",model="SmolLM2-135M-Instruct.Q4_1",route="/token_stream"'
    assert f'http_requests_total{{{labels},status="200"}} 1.0' in lines
    figures = {line.rpartition(" ")[0]: float(line.split()[-1]) for line in lines if line[0] != "#"}
    hits = [figures[f'prefix_cache_hits_total{{instance="box-7",tier="{tier}"}}'] for tier in ("kv", "ram")]
    assert sum(hits) == figures['cached_prompt_tokens_total{instance="box-7"}'] > 0
    cells = [figures[f'kv_cache_cells{{instance="box-7",state="{s}"}}'] for s in ("running", "idle", "free")]
    assert sum(cells) == 16384
    assert cells[1] > 0  # the finished request
    assert figures['prefix_cache_bytes{instance="box-7",tier="ram"}'] > 0
    assert figures['prefix_cache_bytes{instance="box-7",tier="disk"}'] > 0
    assert 'waiting_requests{instance="box-7"} 0.0' in lines
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)
    sums = {line.split("{")[0]: float(line.split()[-1]) for line in lines if "_duration_sum{" in line}
    assert 0 < sums["token_creation_duration_sum"] <= sums["inference_response_duration_sum"]


def test_a_scrape_does_not_wait_for_the_engine(start_server: Callable[..., Server], tmp_path: Path) -> None:
    change = """
import time
from app.engine.engine import Engine
step = Engine.step
def hang(self):
    step(self)
    if any(sequence.is_decoding for sequence in self._scheduler.running):
        time.sleep(3600)
Engine.step = hang
"""
    url = start_server(changed_program(tmp_path, change)).wait_until().url
    body = {"query": "Say hello.", "max_tokens": 9}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/token_stream", json=body, timeout=2)
    assert "engine_alive" in httpx.get(f"{url}/metrics").text


def test_rejects_are_counted_by_reason_and_paths_by_route(server_url: str) -> None:
    for path in ("/nowhere/1", "/nowhere/2"):
        httpx.get(server_url + path)
    httpx.post(f"{server_url}/token_stream", json={"query": "", "max_tokens": 1})
    response = httpx.get(f"{server_url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    text = response.text
    assert "/nowhere" not in text
    for reason in ("not_found", "validation"):
        assert f'rejected_requests_total{{instance="default",reason="{reason}"}}' in text


def test_the_page_has_a_strict_content_security_policy(server_url: str) -> None:
    for path in ("/", "/ui/app.js", "/ui/style.css"):
        response = httpx.get(server_url + path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    assert "<script>" not in httpx.get(server_url).text


@pytest.mark.parametrize("path", ["/ui/../__main__.py", "/ui/%2e%2e/__main__.py", "/ui/..%2f__main__.py"])
def test_files_outside_the_folder_of_the_page_are_not_served(path: str, server_url: str) -> None:
    assert (UI.parent / "__main__.py").is_file()
    connection = http.client.HTTPConnection(server_url.removeprefix("http://"))  # httpx normalizes paths
    connection.request("GET", path)
    assert connection.getresponse().status == 404
    connection.close()
