"""The text of metrics equals that of prometheus_client."""

from __future__ import annotations

import pytest
from prometheus_client import GCCollector
from prometheus_client.exposition import choose_encoder

from app.telemetry.exposition import encoded
from app.telemetry.metrics import Metrics
from app.telemetry.request import RequestRecord


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "text/plain;version=1.0.0;escaping=allow-utf-8",
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
        "application/openmetrics-text;version=1.0.0;escaping=values",
    ],
)
def test_both_formats_equal_those_of_the_library(accept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics('box "7"\\\n')
    for key in ("", "λ, café"):
        metrics.on_request(RequestRecord(id="1", method="POST", route="/x", status=200, key=key))
    metrics.on_lookup(1 / 3)
    metrics.models[""].engine.on_tokens(1e-7, 1)
    # Values that change between two collections.
    monkeypatch.setattr("prometheus_client.process_collector.ProcessCollector.collect", lambda _: [])
    monkeypatch.setattr(GCCollector, "collect", lambda _: [])
    encode, content_type = choose_encoder(accept)
    assert encoded(metrics.registry, accept) == (encode(metrics.registry), content_type)
