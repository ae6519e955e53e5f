"""/stats/events: once, every second, for a limited number of clients, and until the server stops."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from app.api.operator.stats import MOST_STREAMS
from app.telemetry.latest import MOST
from tests.conftest import KEY, Server
from tests.polling import wait_for

EVENTS = {"Accept": "text/event-stream"}
SECRET = "Zanzibarquux"


def ask(url: str, **fields: Any) -> None:
    body = {"query": f"Repeat: {SECRET}", "max_tokens": 6, "ignore_eos": True} | fields
    httpx.post(f"{url}/token_stream", json=body, timeout=60).raise_for_status()


@contextlib.contextmanager
def stream(url: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The data of the events."""
    with httpx.stream("GET", f"{url}/stats/events", headers=EVENTS, timeout=30) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: "))


def test_the_state_has_the_metrics_and_the_latest_requests_without_texts(server_url: str) -> None:
    ask(server_url, context="sql")
    response = httpx.get(f"{server_url}/stats/events")
    assert SECRET not in response.text
    state = response.json()
    assert state["model"] == "SmolLM2-135M-Instruct.Q4_1"
    figures, last = state["figures"], state["requests"][-1]
    expected = {"route": "/token_stream", "status": 200, "context": "sql", "generated_tokens": 6}
    assert expected.items() <= last.items()
    assert abs(last["ended_at"] - state["time"]) < 60
    assert len(state["requests"]) <= MOST
    metrics = httpx.get(f"{server_url}/metrics").text
    for name, value in figures.items():
        family, _, label = name.partition(".")
        found = [
            float(line.rpartition(" ")[2])
            for line in metrics.splitlines()
            if line.startswith(family + "{") and (not label or f'="{label}"' in line)
        ]
        assert found == [value], name


def test_a_stream_has_new_requests_once(server_url: str) -> None:
    with stream(server_url) as events:
        first = next(events)
        ask(server_url, context="math")
        new = [request for _ in range(2) for request in next(events)["requests"]]
        later = next(events)
    assert [request["context"] for request in new] == ["math"]
    assert later["requests"] == []
    assert later["figures"]["generated_tokens_total"] >= first["figures"]["generated_tokens_total"] + 6
    assert 2.5 < later["time"] - first["time"] < 30


def test_the_number_of_streams_is_limited(server_url: str) -> None:
    with contextlib.ExitStack() as streams:
        opened = [streams.enter_context(stream(server_url)) for _ in range(MOST_STREAMS)]
        for one in opened:
            next(one)
        with httpx.stream("GET", f"{server_url}/stats/events", headers=EVENTS) as refused:
            assert refused.status_code == 429
            refused.read()
        assert (
            refused.json()["error"] == f"{MOST_STREAMS} clients read the events of /stats; close one of them"
        )
        assert "figures" in httpx.get(f"{server_url}/stats/events").json()

    def is_accepted() -> bool:
        with httpx.stream("GET", f"{server_url}/stats/events", headers=EVENTS) as response:
            return response.status_code == 200

    wait_for(is_accepted)  # the closed ones leave


def test_the_key_is_required_as_for_metrics(locked_server: Server) -> None:
    address = f"{locked_server.url}/stats/events"
    assert httpx.get(address).status_code == 401
    assert "figures" in httpx.get(address, headers={"x-api-key": KEY}).json()
    assert httpx.get(f"{locked_server.url}/stats").status_code == 200


def test_an_open_stream_does_not_delay_the_end(start_server: Callable[..., Server]) -> None:
    server = start_server(SHUTDOWN_GRACE="600").wait_until()
    with stream(server.url) as events:
        next(events)
        assert server.stop() == 0  # it waits less than the grace
        assert list(events) == []
