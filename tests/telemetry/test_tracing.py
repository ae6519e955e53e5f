"""Traces of a server, received by an OTLP endpoint in the test."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.conftest import ROOT, Server, free_port

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Receiver(ThreadingHTTPServer):
    """Keeps the spans and resource attributes that it receives."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans: list[Any] = []
        self.resource: dict[str, Any] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.resource = attributes(part.resource)
            self.server.spans += [span for scope in part.scope_spans for span in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def attributes(item: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in item.attributes}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        threading.Thread(target=receiver.serve_forever).start()
        yield receiver
        receiver.shutdown()


def test_a_request_is_a_trace_from_queue_to_decode(
    start_server: Callable[..., Server], receiver: Receiver, tmp_path: Path
) -> None:
    server = start_server(
        OTLP_ENDPOINT=receiver.url,
        INSTANCE_LABEL="box-7",
        LOG_FORMAT="json",
        KNOWLEDGE="on",
        DATA_PATH=str(ROOT / "data"),
        KNOWLEDGE_INDEX=str(tmp_path / "index"),
    ).wait_until()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    body = {"query": "When does the Wren Bridge open?", "max_tokens": 5, "ignore_eos": True, "seed": 3}
    httpx.post(f"{server.url}/token_stream", json=body, headers=headers, timeout=60)
    httpx.post(f"{server.url}/token_stream", json={"context": "none", "query": "?"})
    assert server.stop() == 0
    assert f'"trace_id": "{TRACE}"' in server.output()
    assert receiver.resource["service.name"] == "tokenstream"
    assert receiver.resource["service.instance.id"] == "box-7"

    spans = [span for span in receiver.spans if span.trace_id.hex() == TRACE]
    by_name = {span.name: span for span in spans}
    request = by_name.pop("POST /token_stream")
    assert request.parent_span_id.hex() == PARENT
    facts = attributes(request)
    expected = {
        "http.route": "/token_stream",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "SmolLM2-135M-Instruct.Q4_1",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.seed": 3,
        "gen_ai.usage.output_tokens": 5,
    }
    assert facts | expected == facts
    assert [one.string_value for one in facts["gen_ai.response.finish_reasons"].values] == ["length"]
    assert facts["gen_ai.usage.input_tokens"] > facts["gen_ai.usage.cache_read.input_tokens"] > 0

    order = ["retrieval", "prepare", "queue", "prefill", "decode"]
    assert sorted(by_name, key=lambda name: by_name[name].start_time_unix_nano) == order
    assert all(span.parent_span_id == request.span_id for span in by_name.values())
    times = [request.start_time_unix_nano]
    for name in order:
        times += [by_name[name].start_time_unix_nano, by_name[name].end_time_unix_nano]
    assert times == sorted(times)
    assert times[-1] <= request.end_time_unix_nano
    assert attributes(by_name["retrieval"])["tokenstream.passages"] > 0
    assert [event.name for event in by_name["prefill"].events] == ["prefix restored"]
    assert [event.name for event in by_name["decode"].events] == ["first token", "length"]

    [rejected] = [span for span in receiver.spans if span.trace_id.hex() != TRACE and not span.parent_span_id]
    assert attributes(rejected)["error.type"] == "unknown_context"


def test_a_server_without_collector_answers_and_ends(start_server: Callable[..., Server]) -> None:
    server = start_server(OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}").wait_until()
    body = {"query": "Hello", "max_tokens": 2}
    assert httpx.post(f"{server.url}/token_stream", json=body, timeout=60).status_code == 200
    assert server.stop(timeout=60) == 0
    assert "Traceback" not in server.output()
