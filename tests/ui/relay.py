"""An HTTP server before the real one. It answers POST requests with given bytes."""

from __future__ import annotations

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx

CUT = None
"""A piece that closes the connection."""

PAUSE = 0.03
"""Seconds between pieces, so that each arrives separately."""


class Relay:
    """Forwards GET requests to the server, and answers each POST with `pieces`."""

    def __init__(self, server_url: str) -> None:
        self.server_url = server_url
        self.pieces: list[bytes | None] = []
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                relay._forward(self)

            def do_POST(self) -> None:
                relay._send_pieces(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _forward(self, request: BaseHTTPRequestHandler) -> None:
        answer = httpx.get(self.server_url + request.path)
        request.send_response(answer.status_code)
        for name in ("content-type", "content-security-policy"):
            if name in answer.headers:
                request.send_header(name, answer.headers[name])
        request.send_header("content-length", str(len(answer.content)))
        request.end_headers()
        request.wfile.write(answer.content)

    def _send_pieces(self, request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers["content-length"]))
        request.send_response(200)
        request.send_header("content-type", "text/plain; charset=utf-8")
        request.send_header("transfer-encoding", "chunked")
        request.end_headers()
        pieces = [piece for piece in self.pieces if piece != b""]
        for piece in [*pieces, b""]:  # an empty chunk ends the body
            if piece is CUT:
                request.close_connection = True
                return
            try:
                request.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            except ConnectionError:  # the page has stopped the answer
                return
            time.sleep(PAUSE)
