"""``make fuzz``: random input for every parser and route. FUZZ_INPUTS sets their number (100,000)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from app.api.app import DIALECTS
from app.chat.messages import Tool
from app.chat.tools import ToolCallParser
from app.chat.tools.format import HERMES
from app.engine.cache.state_files import StateFiles
from app.engine.llama import Model
from app.engine.sampling.grammar import GrammarCompiler, GrammarError
from app.knowledge.reading.document import UnreadableDocument
from app.knowledge.reading.reader import read_here
from tests.conftest import MODEL, Server

N_INPUTS = int(os.environ.get("FUZZ_INPUTS", "100000"))
SETTINGS = {
    "N_CTX": "1024",
    "MAX_SEQUENCES": "2",
    "MODEL_MAX_TOKEN": "2",
    "EMBEDDING_MODEL": "all-MiniLM-L6-v2",
}

OPERATIONS = [o for dialect in DIALECTS for o in dialect.operations if o.body is not None and o.examples]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def changed(draw: Callable[[Any], Any], value: Any) -> Any:
    """A JSON value with random parts in random places."""
    if draw(st.integers(0, 5)) == 0:
        return draw(VALUES)
    if isinstance(value, dict) and value:
        key = draw(st.sampled_from(sorted(value)))
        return (
            value
            | {key: changed(draw, value[key])}
            | draw(st.dictionaries(st.text(max_size=8), VALUES, max_size=1))
        )
    if isinstance(value, list) and value:
        return [changed(draw, value[0]), *value[1:]]
    return draw(VALUES)


class Targets:
    """Parsers and routes. A method raises if an input does harm."""

    def __init__(self, folder: Path, server: Server) -> None:
        self._folder = folder
        self._server = server
        self._client = httpx.Client(base_url=server.url, timeout=60)
        self._grammars = GrammarCompiler(Model(MODEL).vocab)
        self._states = StateFiles(folder / "states", {"key": "fuzz"}, max_bytes=1 << 20)
        self._states.save([1, 2, 3], __import__("numpy").zeros(64, "uint8"))

    def routes(self, data: st.DataObject) -> None:
        operation = data.draw(st.sampled_from(OPERATIONS))
        example = data.draw(st.sampled_from(list(operation.examples.values())))
        body = data.draw(st.binary(max_size=200)) if data.draw(st.integers(0, 9)) == 0 else None
        if body is None:
            body = json.dumps(changed(data.draw, example)).encode("utf-8", "surrogatepass")
        headers = {"Content-Type": "application/json"}
        response = self._client.request(operation.method, operation.path, content=body, headers=headers)
        assert response.status_code < 500 or response.status_code == 501, (
            operation.path,
            body,
            response.text,
        )

    def connections(self, data: st.DataObject) -> None:
        begin = b"POST /token_stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        message = bytearray(begin + b'Content-Length: 15\r\n\r\n{"query": "Hi"}')
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, len(message)))
            message[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        host, port = self._server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(message)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                answer = connection.recv(4096)
                assert not answer.startswith(b"HTTP/1.1 5"), (bytes(message), answer)

    def tool_calls(self, data: st.DataObject) -> None:
        pieces = st.sampled_from(
            ["<tool_call>", "</tool_call>", '{"name": "get", "arguments": ', "{", "}", '"', "\\", "\n"]
        )
        parts = data.draw(st.lists(pieces | st.text(max_size=5), max_size=12))
        parser = ToolCallParser(HERMES, [Tool("get", None, {})])
        for part in parts:
            parser.feed(part)
        parser.finish()

    def grammars(self, data: st.DataObject) -> None:
        keywords = st.sampled_from(
            ["type", "properties", "items", "enum", "required", "pattern", "anyOf", "$ref", "minimum"]
        )
        schema = st.recursive(
            SCALARS,
            lambda v: st.lists(v, max_size=3) | st.dictionaries(keywords, v, max_size=4),
            max_leaves=8,
        )
        with contextlib.suppress(GrammarError):
            self._grammars.json_schema(data.draw(st.dictionaries(keywords, schema, max_size=4)))
        with contextlib.suppress(GrammarError):
            self._grammars.regex(data.draw(st.text(max_size=12)))

    def documents(self, data: st.DataObject) -> None:
        suffix = data.draw(st.sampled_from([".txt", ".md", ".html", ".pdf", ".docx"]))
        tags = st.sampled_from(
            [
                b"<table><tr><td>",
                b"<div>",
                b"</div>",
                b"# ",
                b"- ",
                b"|a|b|\n",
                b"%PDF-1.7\n",
                b"PK\x03\x04",
                b"\n\n",
            ]
        )
        path = self._folder / f"document{suffix}"
        path.write_bytes(b"".join(data.draw(st.lists(tags | st.binary(max_size=12), max_size=12))))
        with contextlib.suppress(UnreadableDocument):
            read_here(path)

    def state_files(self, data: st.DataObject) -> None:
        [path] = (self._folder / "states").iterdir()
        whole = path.read_bytes()
        damaged = bytearray(whole)
        at = data.draw(st.integers(0, len(whole)))
        damaged[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        path.write_bytes(damaged)
        self._states.load([1, 2, 3])
        path.write_bytes(whole)


# Shares of the inputs.
SHARES = {
    "routes": 0.4,
    "connections": 0.2,
    "tool_calls": 0.1,
    "grammars": 0.1,
    "documents": 0.1,
    "state_files": 0.1,
}


def fuzz() -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name) / "log", **SETTINGS).wait_until()
        targets = Targets(Path(name), server)
        try:
            for target, share in SHARES.items():
                begun, n_inputs = time.monotonic(), int(N_INPUTS * share)
                options = settings(
                    max_examples=n_inputs,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate, Phase.shrink],
                    suppress_health_check=list(HealthCheck),
                )
                try:
                    options(given(st.data())(getattr(targets, target)))()
                except Exception as error:
                    failed += 1
                    print(f"FAILED: {target}: {error!r}", flush=True)
                print(f"{target}: {n_inputs} inputs in {time.monotonic() - begun:.0f} s", flush=True)
            assert httpx.get(f"{server.url}/health").status_code == 200
            failed += server.stop() != 0
            faults = [line for line in server.output().splitlines() if "Traceback" in line or "ERROR" in line]
            print("\n".join(faults[:20]) or "no error in the log")
            failed += bool(faults)
        finally:
            server.process.kill()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(fuzz())
