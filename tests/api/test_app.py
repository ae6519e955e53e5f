"""Responses before the model is loaded, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from app.config.settings import load
from tests.api.unloaded_app import serving


@pytest.fixture(scope="module")
def loading_url() -> Iterator[str]:
    with serving(load(env_file=None)) as url:
        yield url


def test_health_is_ok_but_ready_answers_503(loading_url: str) -> None:
    assert httpx.get(f"{loading_url}/health").status_code == 200
    ready = httpx.get(f"{loading_url}/ready")
    assert ready.status_code == 503
    assert ready.json() == {"status": "loading", "stage": "starting", "progress": None}
    assert int(ready.headers["retry-after"]) >= 1


def test_valid_requests_are_answered_503_loading(loading_url: str) -> None:
    answer = httpx.post(f"{loading_url}/token_stream", json={"query": "x"})
    assert answer.status_code == 503
    assert answer.json()["error_type"] == "loading"
    assert answer.headers["retry-after"]


def test_invalid_requests_are_answered_422(loading_url: str) -> None:
    assert httpx.post(f"{loading_url}/token_stream", json={"query": 3}).status_code == 422
