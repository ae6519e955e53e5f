"""Health, readiness, metrics, contexts, and the page's headers."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from tests.conftest import Server, free_port


def test_health_and_ready(server_url: str) -> None:
    assert httpx.get(f"{server_url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server_url}/ready").json() == {"status": "ready"}


def test_contexts(server_url: str) -> None:
    assert httpx.get(f"{server_url}/contexts").json() == {
        "default": "general",
        "contexts": ["general", "sql", "classifier", "math"],
        "model": "SmolLM2-135M-Instruct.Q4_1",
        "knowledge": False,
        "with_documents": [],
        "refused": {},
    }


def test_metrics_count_tokens_and_answers(start_server: Callable[..., Server]) -> None:
    url = start_server(INSTANCE_LABEL="box-7").wait_until().url
    body = {"query": "Say hello.", "max_tokens": 9, "ignore_eos": True, "details": True}
    httpx.post(f"{url}/token_stream", json=body, timeout=60)
    response = httpx.get(f"{url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    lines = response.text.splitlines()
    assert 'token_creation_duration_count{instance="box-7"} 9.0' in lines
    assert 'inference_response_duration_count{instance="box-7"} 1.0' in lines
    assert 'time_to_first_token_duration_count{instance="box-7"} 1.0' in lines
    assert 'generated_tokens_total{instance="box-7"} 9.0' in lines
    assert 'running_requests{instance="box-7"} 0.0' in lines
    assert 'waiting_requests{instance="box-7"} 0.0' in lines
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)
    sums = {line.split("{")[0]: float(line.split()[-1]) for line in lines if "_duration_sum{" in line}
    assert 0 < sums["token_creation_duration_sum"] <= sums["inference_response_duration_sum"]


def test_metrics_on_an_address_of_their_own(start_server: Callable[..., Server]) -> None:
    address = f"127.0.0.1:{free_port()}"
    url = start_server(PROMETHEUS_HTTP_ADDRESS=address).wait_until().url
    assert httpx.get(f"{url}/metrics").status_code == 404
    assert "running_requests" in httpx.get(f"http://{address}/metrics").text


def test_the_page_has_a_strict_policy(server_url: str) -> None:
    for path in ("/", "/ui/app.js", "/ui/style.css"):
        response = httpx.get(server_url + path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    assert "<script>" not in httpx.get(server_url).text


def test_files_beside_the_page_stay_hidden(server_url: str) -> None:
    for path in ("/ui/../settings.py", "/ui/%2e%2e/settings.py", "/ui/..%2fsettings.py"):
        assert httpx.get(server_url + path).status_code == 404
