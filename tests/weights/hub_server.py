"""A hub on loopback with the protocol of huggingface_hub 2.4, and small GGUF files."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Snapshot:
    """The files of a revision."""

    commit: str
    files: dict[str, bytes]


@dataclass
class Request:
    """A request, and the number of bytes sent in response."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in any case
    sent: int = 0


@dataclass
class FakeHub:
    """Repositories and faults of a hub."""

    # repository → revision → files
    repositories: dict[str, dict[str, Snapshot]] = field(default_factory=dict)
    gated: dict[str, str] = field(default_factory=dict)  # repository → token with access
    known_tokens: set[str] = field(default_factory=set)
    status: int | None = None  # status of all responses
    html: bool = False  # all responses are a proxy's page
    cut_after: int | None = None  # bytes after which the next body is cut
    reset: bool = False  # ... by a reset instead of a close
    fail_after_cut: bool = False  # ... and all later responses are 500
    stall_after: int | None = None  # bytes after which the body of a file waits for `released`
    released: threading.Event = field(default_factory=threading.Event)
    claimed_size: int | None = None  # in responses to HEAD
    etag: str | None = None  # in responses to HEAD
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def add(self, repository: str, files: Mapping[str, bytes], revision: str = "main") -> str:
        """Add or replace a revision of a repository. Returns its commit."""
        names_and_contents = b"".join(name.encode() + content for name, content in files.items())
        commit = hashlib.sha1(names_and_contents).hexdigest()
        self.repositories.setdefault(repository, {})[revision] = Snapshot(commit, dict(files))
        return commit

    def gets(self) -> list[Request]:
        """The download requests."""
        return [
            request for request in self.requests if request.method == "GET" and "/resolve/" in request.path
        ]


class HubServer:
    """A server on loopback with a new hub for each test."""

    def __init__(self, url: str, handler: type[_Handler]) -> None:
        self.url = url
        self._handler = handler

    def fresh(self) -> FakeHub:
        """Replace the hub by an empty one."""
        self._handler.hub = FakeHub(url=self.url)
        return self._handler.hub


@contextmanager
def serving() -> Iterator[HubServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield HubServer(f"http://127.0.0.1:{server.server_address[1]}", _Handler)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        hub = self.hub
        self.request_ = Request(self.command, self.path, self.headers)
        hub.requests.append(self.request_)
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if hub.html:
            self._send(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})
        elif hub.status is not None:
            self._error(hub.status)
        elif token and token not in hub.known_tokens:
            self._error(401, message="Invalid credentials in Authorization header")
        else:
            self._route(urlsplit(self.path).path, token)

    def _route(self, path: str, token: str) -> None:
        if path.startswith("/api/models/"):
            repository, _, rest = path.removeprefix("/api/models/").partition("/revision/")
            self._list(repository, unquote(rest))
        elif "/resolve/" in path:
            repository, _, rest = path.removeprefix("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            self._resolve(repository, unquote(revision), unquote(file), token)
        else:
            self._error(404)

    def _find(self, repository: str, revision: str) -> Snapshot | None:
        """Files of a branch or commit; None after an error response."""
        revisions = self.hub.repositories.get(repository)
        if revisions is None:
            self._error(401, "RepoNotFound", "Invalid username or password.")
            return None
        for name, snapshot in revisions.items():
            if revision in (name, snapshot.commit):
                return snapshot
        self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _list(self, repository: str, revision: str) -> None:
        found = self._find(repository, revision)
        if found:
            siblings = [{"rfilename": name} for name in ("README.md", *found.files)]
            body = {"id": repository, "sha": found.commit, "siblings": siblings}
            self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repository: str, revision: str, file: str, token: str) -> None:
        found = self._find(repository, revision)
        if not found:
            return
        if repository in self.hub.gated and token != self.hub.gated[repository]:
            self._error(403 if token else 401, "GatedRepo", "Access to model is restricted.")
        elif file not in found.files:
            self._error(404, "EntryNotFound", "Entry not found")
        else:
            self._send_file(found.commit, found.files[file])

    def _send_file(self, commit: str, content: bytes) -> None:
        headers = {
            "ETag": f'"{self.hub.etag or hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if self.hub.claimed_size is not None:
            headers["X-Linked-Size"] = str(self.hub.claimed_size)
        start = int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], headers)

    def _error(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"Content-Type": "application/json"}
        if code:
            headers["X-Error-Code"] = code
        if message:
            headers["X-Error-Message"] = message
        self._send(status, json.dumps({"error": message or "error"}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cut_after
        if cut is not None and "/resolve/" in self.path and len(body) > cut:
            self.hub.cut_after = None
            self.hub.status = 500 if self.hub.fail_after_cut else None
            body = body[:cut]
            self.close_connection = True
        if self.hub.stall_after is not None and "/resolve/" in self.path:
            self.wfile.write(body[: self.hub.stall_after])
            self.hub.released.wait(100)
            self.wfile.write(body[self.hub.stall_after :])
        else:
            self.wfile.write(body)
        self.request_.sent = len(body)
        if self.close_connection and self.hub.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def closed_port() -> str:
    """An address without a server."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


# --- GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)

_UINT16, _STRING = 2, 8


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def tiny_gguf(*, floats: int = 32, seed: int = 0, part: int = 0, parts: int = 1) -> bytes:
    """A complete GGUF file with one F32 tensor of random bytes; with ``parts``, one part of a split model."""
    entries = [_text("general.architecture") + struct.pack("<I", _STRING) + _text("llama")]
    if parts > 1:
        split = (("split.no", part), ("split.count", parts), ("split.tensors.count", parts))
        entries += [_text(key) + struct.pack("<IH", _UINT16, value) for key, value in split]
    header = struct.pack("<4sIQQ", b"GGUF", 3, 1, len(entries)) + b"".join(entries)
    header += _text(f"blk.{part}.weight") + struct.pack("<IQIQ", 1, floats, 0, 0)
    header += bytes(-len(header) % 32)
    return header + random.Random(seed).randbytes(floats * 4)


def split_gguf(stem: str, parts: int) -> dict[str, bytes]:
    """The files of a split model, by name."""
    return {
        f"{stem}-{part + 1:05}-of-{parts:05}.gguf": tiny_gguf(part=part, parts=parts, seed=part)
        for part in range(parts)
    }


REPO = "someone/tiny-GGUF"
TINY = tiny_gguf()
