"""Start, memory, CPU time and end of a server process with a child."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from bench.client import BenchError
from bench.process import ServerProcess, free_port

# It answers 503 once. Its child uses 100 MB and half a second of CPU time.
SERVER = """
import http.server, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
child = "import time; b = b'x' * 100_000_000; t = time.process_time()\\nwhile time.process_time() - t < 0.5: pass\\ntime.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", child])
class Handler(http.server.BaseHTTPRequestHandler):
    seen = 0
    def do_GET(self):
        Handler.seen += 1
        self.send_response(200 if Handler.seen > 1 else 503)
        self.end_headers()
try:
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
finally:
    process.kill()
"""  # noqa: E501


def test_memory_and_cpu_time_include_children(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", SERVER, str(port)]
    process = ServerProcess(command, {}, f"http://127.0.0.1:{port}/", tmp_path / "log")
    deadline = time.monotonic() + 30
    while process.cpu_seconds < 0.5 and time.monotonic() < deadline:
        time.sleep(0.05)
    resident, cpu_seconds = process.resident_bytes, process.cpu_seconds
    process.stop()
    assert resident > 100_000_000
    assert cpu_seconds >= 0.5
    assert (tmp_path / "log").read_text().count("GET / HTTP/1.1") == 2  # a 503 response is not ready


def test_the_error_message_has_the_log_of_a_server_that_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no model')"]
    with pytest.raises(BenchError, match=r"ended\. Its log:\nno model"):
        ServerProcess(command, {}, f"http://127.0.0.1:{free_port()}/", tmp_path / "log")
