"""GET /info, /health and /metrics as clients of TGI read them."""

from __future__ import annotations

import httpx

# Required fields of TGI 0.9 and of TGI 3.
OLD = {
    "model_id", "model_dtype", "model_device_type", "max_concurrent_requests", "max_best_of",
    "max_stop_sequences", "max_input_length", "max_total_tokens", "waiting_served_ratio",
    "max_batch_total_tokens", "max_waiting_tokens", "validation_workers", "version",
}  # fmt: skip
NEW = {
    "model_id", "max_concurrent_requests", "max_best_of", "max_stop_sequences", "max_input_tokens",
    "max_total_tokens", "validation_workers", "max_client_batch_size", "router", "version",
}  # fmt: skip


def test_info_has_the_fields_of_both_versions(server_url: str) -> None:
    described = httpx.get(f"{server_url}/info").json()
    assert OLD | NEW | {"model_sha", "model_pipeline_tag", "sha", "docker_label"} <= described.keys()
    assert described["model_id"] == "SmolLM2-135M-Instruct.Q4_1"
    assert described["model_device_type"] == "cpu"
    assert described["model_pipeline_tag"] == "text-generation"
    assert "Q4_1" in described["model_dtype"]


def test_info_shows_the_limits(server_url: str) -> None:
    described = httpx.get(f"{server_url}/info").json()
    assert described["max_concurrent_requests"] == 128
    assert described["max_best_of"] == 2
    assert described["max_stop_sequences"] == 4
    assert described["max_top_n_tokens"] == 5
    assert described["max_input_length"] == described["max_input_tokens"] == 2047
    assert described["max_total_tokens"] == 2048
    assert described["max_batch_total_tokens"] == 16384


def test_health_and_metrics(server_url: str) -> None:
    assert httpx.get(f"{server_url}/health").status_code == 200
    assert "generated_tokens_total" in httpx.get(f"{server_url}/metrics").text
