"""Downloads from a repository are complete, or end with one error line. Each has its own process."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import pty
import socket
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any

import pytest

from app.machine import progress
from app.weights import download_progress
from tests.weights.hub_driver import Resolve, command, environment
from tests.weights.hub_server import REPO, TINY, FakeHub, closed_port, tiny_gguf

# --- downloads


def test_a_file_is_downloaded_once(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY})
    first = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf")
    assert first.path
    assert first.path.read_bytes() == TINY
    assert first.path.name == "a.gguf"
    assert not first.warnings
    assert len(fake_hub.gets()) == 1
    fake_hub.requests.clear()
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").path == first.path
    assert [request.method for request in fake_hub.requests] == ["HEAD"]


def test_a_long_download_reports_progress(
    fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 25)
    fake_hub.add(REPO, {"a.gguf": bytes(100)})
    url = f"{fake_hub.url}/{REPO}/resolve/main/a.gguf"
    bar: Any = functools.partial(download_progress.ProgressLines, "downloading a.gguf")
    with (tmp_path / "a.gguf").open("wb") as target:
        http_get(url, target, tqdm_class=bar)
    lines = [message.partition(",")[0] for message in caplog.messages if "a.gguf: " in message]
    assert lines == [f"downloading a.gguf: {percent} %" for percent in (25, 50, 75)]


def test_only_the_model_is_requested(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY})
    resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", AGENT="someone", fresh_import=True)
    assert {request.path.rpartition("/")[2] for request in fake_hub.requests} == {"a.gguf"}


def test_a_local_copy_of_a_commit_needs_no_hub(resolve: Resolve, fake_hub: FakeHub) -> None:
    commit = fake_hub.add(REPO, {"a-Q4.gguf": TINY, "a-Q8.gguf": TINY})
    for file in ("a-Q4.gguf", "*q4*"):
        first = resolve(MODEL_REPO=REPO, MODEL_FILE=file, MODEL_REVISION=commit, fresh_import=True)
        fake_hub.requests.clear()
        second = resolve(MODEL_REPO=REPO, MODEL_FILE=file, MODEL_REVISION=commit, fresh_import=True)
        assert second.path == first.path
        assert not second.warnings
        assert not second.hub_imported
        assert not fake_hub.requests


def test_each_revision_is_its_own_file(resolve: Resolve, fake_hub: FakeHub) -> None:
    other = tiny_gguf(seed=1)
    fake_hub.add(REPO, {"a.gguf": TINY})
    fake_hub.add(REPO, {"a.gguf": other}, revision="v2")
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").path.read_bytes() == TINY
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", MODEL_REVISION="v2").path.read_bytes() == other
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").path.read_bytes() == TINY


BIG = tiny_gguf(floats=6_000_000)  # 24 MB: huggingface_hub writes in pieces of 10 MiB
CUT = 15_000_000
WRITTEN = 10 * 1024 * 1024


def test_a_cut_connection_is_resumed(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"a.gguf": BIG})
    fake_hub.cut_after = CUT
    outcome = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf")
    assert outcome.path
    assert outcome.path.read_bytes() == BIG
    cut, rest = fake_hub.gets()
    assert "range" not in {name.lower() for name in cut.headers}
    assert rest.headers["range"] == f"bytes={WRITTEN}-"
    assert rest.sent == len(BIG) - WRITTEN


def test_a_reset_connection_is_resumed(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"a.gguf": BIG})
    fake_hub.cut_after, fake_hub.reset = CUT, True
    outcome = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf")
    assert outcome.path
    assert outcome.path.read_bytes() == BIG
    assert len(fake_hub.gets()) == 2


def test_the_next_start_resumes_a_failed_download(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"a.gguf": BIG})
    fake_hub.cut_after, fake_hub.fail_after_cut = CUT, True
    failed = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf")
    assert failed.error.startswith(
        f"{fake_hub.url} responds with 500 Internal Server Error for MODEL_REPO={REPO}"
    )
    fake_hub.status = None
    fake_hub.requests.clear()
    outcome = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf")
    assert outcome.path
    assert outcome.path.read_bytes() == BIG
    (rest,) = fake_hub.gets()
    assert rest.headers["range"] == f"bytes={WRITTEN}-"
    assert rest.sent == len(BIG) - WRITTEN


def test_a_partial_file_with_other_content_is_detected(
    resolve: Resolve, fake_hub: FakeHub, tmp_path: Path
) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY})
    path = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").path
    blob = path.resolve()
    path.unlink()
    blob.unlink()
    blob.with_name(f"{blob.name}.incomplete").write_bytes(b"GGUF rubbish")
    assert "was damaged in transfer" in resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").error
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").path.read_bytes() == TINY


def test_a_damaged_local_file_is_downloaded_again(resolve: Resolve, fake_hub: FakeHub) -> None:
    commit = fake_hub.add(REPO, {"a.gguf": TINY})
    for revision in ("main", commit):
        path = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", MODEL_REVISION=revision).path
        path.write_bytes(TINY[:-1])
        outcome = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", MODEL_REVISION=revision)
        assert outcome.path
        assert outcome.path.read_bytes() == TINY


def test_a_terminal_shows_a_progress_bar(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.add(REPO, {"a.gguf": BIG})
    terminal, other_end = pty.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        command("--once"),
        env=environment(HF_ENDPOINT=fake_hub.url, MODEL_REPO=REPO, MODEL_FILE="a.gguf"),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=other_end,
    )
    os.close(other_end)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while data := os.read(terminal, 4096):
            shown += data
    os.close(terminal)
    assert process.wait() == 0
    assert "a.gguf: 100%" in shown.decode()
    assert "24.0M/24.0M" in shown.decode()


# --- rejected requests


def test_an_unknown_repository_is_reported_with_the_remedy(resolve: Resolve, fake_hub: FakeHub) -> None:
    error = resolve(MODEL_REPO="someone/nothing", MODEL_FILE="a.gguf").error
    assert error.startswith(
        f"MODEL_REPO=someone/nothing is not a repository of {fake_hub.url}, or a private one"
    )
    assert "set HF_TOKEN" in error
    assert resolve(MODEL_REPO="someone/nothing").error == error


def test_an_invalid_repository_name_is_rejected(resolve: Resolve) -> None:
    error = resolve(MODEL_REPO="https://huggingface.co/a/b").error
    assert error == "MODEL_REPO=https://huggingface.co/a/b is not the name of a repository: use owner/name"


def test_the_error_for_an_unknown_file_lists_the_others(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY, "b.gguf": TINY, "config.json": b"{}"})
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="c.gguf").error
    setting = f"MODEL_REPO={REPO} (revision main)"
    assert error == f"MODEL_FILE=c.gguf is not in {setting}; GGUF files there: a.gguf, b.gguf"


@pytest.mark.parametrize("file", ["a.gguf", ""])
def test_an_unknown_revision_is_reported(resolve: Resolve, fake_hub: FakeHub, file: str) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY})
    error = resolve(MODEL_REPO=REPO, MODEL_FILE=file, MODEL_REVISION="v9").error
    assert error.startswith(f"MODEL_REPO={REPO} has no branch, tag or commit v9")


def test_a_gated_repository_needs_a_token_with_access(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY})
    fake_hub.gated[REPO] = "hf_good"
    fake_hub.known_tokens |= {"hf_good", "hf_other"}
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").error
    page = f"{fake_hub.url}/{REPO}"
    remedy = "then set HF_TOKEN to a token of that account"
    assert error == f"MODEL_REPO={REPO} is gated: request access at {page}, {remedy}"
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", HF_TOKEN="hf_other").error
    assert (
        error
        == f"MODEL_REPO={REPO} is gated, and the account of HF_TOKEN has no access: request it at {page}"
    )
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        assert resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", **{name: "hf_good"}).path.read_bytes() == TINY


def test_the_error_for_a_rejected_token_does_not_contain_it(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY})
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", HF_TOKEN="hf_secret").error
    assert "rejects HF_TOKEN" in error
    assert "hf_secret" not in error


def test_a_token_with_invalid_characters_is_rejected(resolve: Resolve) -> None:
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", HF_TOKEN="hf_ä b").error
    assert error == "HF_TOKEN: contains characters that are invalid in an access token; copy it again"


# --- an unavailable hub


def test_an_unreachable_hub_is_reported_without_a_local_copy(resolve: Resolve) -> None:
    unreachable = closed_port()
    for file in ("a.gguf", "*"):
        error = resolve(MODEL_REPO=REPO, MODEL_FILE=file, HF_ENDPOINT=unreachable).error
        assert error.startswith(f"{unreachable} cannot be reached (Connection refused): check the network")


@pytest.mark.parametrize("file", ["a.gguf", "*a*", ""])
def test_an_unavailable_hub_is_a_warning_with_a_local_copy(
    resolve: Resolve, fake_hub: FakeHub, file: str
) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY})
    path = resolve(MODEL_REPO=REPO, MODEL_FILE=file).path
    unreachable = closed_port()
    fake_hub.status = 503
    cases = {
        f"{unreachable} cannot be reached (Connection refused)": {"HF_ENDPOINT": unreachable},
        f"{fake_hub.url} responds with 503 Service Unavailable for MODEL_REPO={REPO}": {},
        "HF_HUB_OFFLINE is set": {"HF_HUB_OFFLINE": "1"},
    }
    for reason, variables in cases.items():
        outcome = resolve(MODEL_REPO=REPO, MODEL_FILE=file, **variables)
        assert outcome.path == path
        (warning,) = outcome.warnings
        assert warning.startswith(f"{reason}; using the local copy of {REPO} in ")


def test_a_host_without_an_address_is_reported(resolve: Resolve) -> None:
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", HF_ENDPOINT="http://hub.invalid").error
    assert error.startswith("http://hub.invalid cannot be reached (")


def test_a_hub_without_an_answer_times_out(resolve: Resolve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for file in ("a.gguf", "*"):
            error = resolve(MODEL_REPO=REPO, MODEL_FILE=file, HF_ENDPOINT=url, HF_HUB_ETAG_TIMEOUT="1").error
            assert error.startswith(f"{url} cannot be reached (no answer within 1 s)")


@pytest.mark.parametrize("file", ["a.gguf", "*"])
def test_a_page_of_a_proxy_is_reported(resolve: Resolve, fake_hub: FakeHub, file: str) -> None:
    fake_hub.html = True
    error = resolve(MODEL_REPO=REPO, MODEL_FILE=file).error
    assert error.startswith(f"{fake_hub.url} is not a Hugging Face hub")


@pytest.mark.parametrize("endpoint", ["localhost:8080", "http://", "http://a:99999"])
def test_an_endpoint_other_than_a_url_is_rejected(resolve: Resolve, endpoint: str) -> None:
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", HF_ENDPOINT=endpoint).error
    assert error.startswith(f"HF_ENDPOINT={endpoint}: should be the URL of a hub")


def test_a_failed_download_of_a_newer_commit_keeps_the_local_copy(
    resolve: Resolve, fake_hub: FakeHub
) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY})
    older = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").path
    fake_hub.add(REPO, {"a.gguf": BIG})
    fake_hub.cut_after, fake_hub.fail_after_cut = CUT, True
    for _ in ("while it is downloaded", "and at the next start"):
        outcome = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf")
        assert outcome.path == older
        assert "responds with 500 Internal Server Error" in outcome.warnings[0]
    fake_hub.status = None
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").path.read_bytes() == BIG


def test_a_local_copy_of_another_file_is_not_used(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY, "b.gguf": TINY})
    resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf")
    fake_hub.status = 500
    for file in ("b.gguf", "b*"):
        outcome = resolve(MODEL_REPO=REPO, MODEL_FILE=file)
        assert outcome.error.startswith(f"{fake_hub.url} responds with 500 Internal Server Error")
        assert not outcome.warnings


# --- damaged files and full disks


@pytest.mark.parametrize("content", [TINY[:-1], b"<html>quota exceeded</html>"])
def test_a_downloaded_file_that_is_no_gguf_is_rejected(
    resolve: Resolve, fake_hub: FakeHub, content: bytes
) -> None:
    fake_hub.add(REPO, {"a.gguf": content})
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").error
    assert error.startswith(f"MODEL_REPO={REPO}: a.gguf cannot be used, it is ")
    assert error.endswith(
        "choose another file, or delete models/models--someone--tiny-GGUF to download it again"
    )


def test_too_little_disk_space_is_reported_before_the_download(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY})
    fake_hub.claimed_size = 10**18
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").error
    assert error.startswith(f"MODELS_DIR=models: a.gguf of {REPO} needs 1,000,000,000.0 GB and ")
    assert "is free: free some space, or set MODELS_DIR" in error
    assert not fake_hub.gets()


def test_a_disk_that_fills_during_the_download_is_reported(
    resolve: Resolve, fake_hub: FakeHub, tmp_path: Path
) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY})
    fake_hub.etag = "some-etag"
    blobs = tmp_path / "models" / "models--someone--tiny-GGUF" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "some-etag.incomplete").symlink_to("/dev/full")  # every write fails with ENOSPC
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").error
    assert error.startswith(f"MODELS_DIR=models: No space left on device while downloading {REPO}, ")
    assert "free some space" in error


def test_an_unwritable_folder_is_reported(resolve: Resolve, fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY})
    (tmp_path / "models").write_bytes(b"")
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").error
    assert (
        error == "MODELS_DIR=models: cannot be written (Not a directory): set MODELS_DIR to a writable folder"
    )


def test_a_process_waits_for_the_download_of_another(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY})
    fake_hub.etag = "some-etag"
    locks = tmp_path / "models" / ".locks" / "models--someone--tiny-GGUF"
    locks.mkdir(parents=True)
    with (locks / "some-etag.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            command("--once"),
            env=environment(HF_ENDPOINT=fake_hub.url, MODEL_REPO=REPO, MODEL_FILE="a.gguf"),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        assert process.stderr.readline() == "INFO another process downloads a.gguf; waiting for it\n"
        assert not fake_hub.gets()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / output.splitlines()[0]).read_bytes() == TINY
