"""PUT /v1/knowledge/documents/{name}."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from app.knowledge.reading.reader import MOST_BYTES
from tests.conftest import Server

KEYS = """
[keys.writer]
key = "pen"
uploads = true
[keys.reader]
key = "eye"
"""


def put(url: str, name: str, content: bytes | Iterator[bytes], key: str = "pen") -> httpx.Response:
    address = f"{url}/v1/knowledge/documents/{name}"
    return httpx.put(address, content=content, headers={"x-api-key": key}, timeout=60)


def test_uploads_are_off_by_default(server_url: str) -> None:
    assert put(server_url, "a.md", b"x").status_code == 404


def test_uploads_are_stored_whole_or_not_at_all(start_server: Callable[..., Server], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "own.md").write_text("own")
    paths = {"DATA_PATH": str(data), "KNOWLEDGE_INDEX": str(tmp_path / "index")}
    (tmp_path / "keys.toml").write_text(KEYS)
    paths["API_KEYS"] = str(tmp_path / "keys.toml")
    url = start_server(KNOWLEDGE="on", KNOWLEDGE_UPLOADS="on", **paths).wait_until().url
    for text in ("one", "two"):
        stored = put(url, "a%20b.md", text.encode())
        assert (stored.status_code, stored.json()) == (201, {"name": "uploads/a b.md", "bytes": 3})
    for name in ("..%2Fown.md", "%2E%2E%5Cown.md", ".hidden.md", "a.exe", "a.md%00.md", "x" * 300 + ".md"):
        rejected = put(url, name, b"x")
        assert rejected.status_code in (400, 404), name
        assert "error" in rejected.json()
    large = put(url, "large.txt", (b"x" * (1 << 20) for _ in range((MOST_BYTES >> 20) + 1)))
    assert large.status_code == 413
    forbidden = put(url, "c.md", b"x", key="eye")
    assert forbidden.status_code == 403
    message = "key reader does not allow uploads; set uploads = true in its table"
    assert forbidden.json()["error"]["message"] == message
    uploads = data / "uploads"
    assert {path.name: path.read_text() for path in uploads.iterdir()} == {"a b.md": "two"}
    assert (data / "own.md").read_text() == "own"
    for key, may_upload in (("pen", True), ("eye", False)):
        contexts = httpx.get(f"{url}/contexts", headers={"x-api-key": key}).json()
        assert contexts["uploads"] is may_upload
    described = httpx.get(f"{url}/openapi.json").json()["paths"]
    assert "put" in described["/v1/knowledge/documents/{name}"]
