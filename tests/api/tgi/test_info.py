"""GET /info, /health and /metrics for clients of TGI."""

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
    info = httpx.get(f"{server_url}/info").json()
    assert OLD | NEW | {"model_sha", "model_pipeline_tag", "sha", "docker_label"} <= info.keys()
    assert info["model_id"] == "SmolLM2-135M-Instruct.Q4_1"
    assert info["model_device_type"] == "cpu"
    assert info["model_pipeline_tag"] == "text-generation"
    assert "Q4_1" in info["model_dtype"]


def test_info_shows_the_limits(server_url: str) -> None:
    info = httpx.get(f"{server_url}/info").json()
    assert info["max_concurrent_requests"] == 128
    assert info["max_best_of"] == 2
    assert info["max_stop_sequences"] == 4
    assert info["max_top_n_tokens"] == 5
    assert info["max_input_length"] == info["max_input_tokens"] == 2047
    assert info["max_total_tokens"] == 2048
    assert info["max_batch_total_tokens"] == 16384


def test_health_and_metrics_are_served(server_url: str) -> None:
    assert httpx.get(f"{server_url}/health").status_code == 200
    assert "generated_tokens_total" in httpx.get(f"{server_url}/metrics").text
