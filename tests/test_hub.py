"""A model's name becomes a checked file, against a hub on loopback; each case in a process of its own."""

from __future__ import annotations

import fcntl
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_driver import Driver, command, environment
from hub_server import FakeHub, HubServer, closed_port, serving, split_gguf, tiny_gguf

from app import hub, settings

REPO = "someone/tiny-GGUF"
TINY = tiny_gguf()

# These are read when huggingface_hub is imported.
READ_AT_IMPORT = {"HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_ETAG_TIMEOUT"}


@dataclass
class Outcome:
    path: Path | None
    error: str
    warnings: list[str]
    hub_imported: bool


@pytest.fixture(scope="module")
def hub_server() -> Iterator[HubServer]:
    with serving() as server:
        yield server


@pytest.fixture
def server(hub_server: HubServer) -> FakeHub:
    return hub_server.fresh()


@pytest.fixture(scope="module")
def warm(hub_server: HubServer, tmp_path_factory) -> Iterator[Driver]:
    home = str(tmp_path_factory.mktemp("home"))
    with Driver("--warm", HF_ENDPOINT=hub_server.url, HF_HOME=home) as driver:
        yield driver


@pytest.fixture(scope="module")
def cold() -> Iterator[Driver]:
    with Driver() as driver:
        yield driver


@pytest.fixture
def resolve(warm: Driver, cold: Driver, server: FakeHub, tmp_path: Path):
    """Resolve in an empty folder with these variables; everything on stderr is accounted for."""

    def run(*, fresh_import: bool = False, **variables: str) -> Outcome:
        driver = cold if fresh_import or READ_AT_IMPORT & set(variables) else warm
        hub_here = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        done = driver.run(tmp_path, environment(**(hub_here | variables)), tmp_path)
        return outcome_of(done.returncode, done.stdout, done.stderr, tmp_path)

    return run


def outcome_of(status: int, output: str, errors: str, folder: Path) -> Outcome:
    lines: dict[str, list[str]] = {"error:": [], "WARNING": [], "INFO": []}
    for line in errors.splitlines():
        kind, _, text = line.partition(" ")
        assert kind in lines, errors
        lines[kind].append(text)
    assert status == len(lines["error:"]) <= 1, errors
    printed = output.splitlines()
    path = folder / printed[0] if printed else None
    return Outcome(path, "".join(lines["error:"]), lines["WARNING"], "hub imported" in printed)


# --- files on this machine


def test_the_default_model_is_the_packages_and_needs_no_hub(resolve) -> None:
    outcome = resolve(HF_ENDPOINT=closed_port())
    assert outcome.path
    assert outcome.path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert not outcome.hub_imported


def test_without_the_default_models_package_the_error_names_the_command(monkeypatch) -> None:
    monkeypatch.setattr(hub, "DEFAULT_PACKAGE", "llm_not_installed")
    with pytest.raises(hub.ModelError, match="llm_not_installed is not installed: run `make install`"):
        hub.resolve_model(settings.load(None))


def local(**overrides: object) -> Path:
    return hub.resolve_model(settings.load(None, **overrides))


def complaint(**overrides: object) -> str:
    with pytest.raises(hub.ModelError) as caught:
        local(**overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_model_path_is_taken_as_it_is_and_goes_before_the_repository(tmp_path: Path) -> None:
    write(tmp_path, {"a.gguf": TINY})
    assert local(model_path=tmp_path / "a.gguf", model_repo=REPO) == tmp_path / "a.gguf"


def test_model_path_that_is_not_there(tmp_path: Path) -> None:
    assert complaint(model_path=tmp_path / "a.gguf") == f"MODEL_PATH={tmp_path}/a.gguf: there is no such file"


def test_model_path_that_is_a_folder_lists_its_models(tmp_path: Path) -> None:
    write(tmp_path, {"b.gguf": TINY, "notes.txt": b"", **split_gguf("a", 2)})
    expected = f"MODEL_PATH={tmp_path} is a folder; name a GGUF file: a-00001-of-00002.gguf (2 parts), b.gguf"
    assert complaint(model_path=tmp_path) == expected


def test_any_part_of_a_split_model_stands_for_its_first(tmp_path: Path) -> None:
    write(tmp_path, split_gguf("a", 3))
    assert local(model_path=tmp_path / "a-00003-of-00003.gguf") == tmp_path / "a-00001-of-00003.gguf"


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    write(tmp_path, split_gguf("a", 3))
    (tmp_path / "a-00002-of-00003.gguf").unlink()
    assert "a-00002-of-00003.gguf" in complaint(model_path=tmp_path / "a-00001-of-00003.gguf")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (TINY[:-1], "cut off"),
        (TINY[:40], "header is damaged or cut off"),
        (b"<html>Not found</html>", "not a GGUF file"),
        (b'\x10\x00\x00\x00\x00\x00\x00\x00{"a": 1}', "not a GGUF file"),  # safetensors
        (b"", "not a GGUF file"),
    ],
)
def test_a_file_that_is_no_whole_gguf(tmp_path: Path, content: bytes, reason: str) -> None:
    write(tmp_path, {"a.gguf": content})
    message = complaint(model_path=tmp_path / "a.gguf")
    assert message.startswith(f"MODEL_PATH={tmp_path}/a.gguf: a.gguf cannot be used, it")
    assert reason in message


def test_a_later_part_that_is_cut_off_is_named(tmp_path: Path) -> None:
    parts = split_gguf("a", 2)
    write(tmp_path, {**parts, "a-00002-of-00002.gguf": parts["a-00002-of-00002.gguf"][:-1]})
    assert "a-00002-of-00002.gguf cannot be used" in complaint(model_path=tmp_path / "a-00001-of-00002.gguf")


def test_model_file_alone_is_looked_for_on_this_machine(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    write(models, {"a-Q4_0.gguf": TINY, "a-Q8_0.gguf": TINY})
    assert local(model_file=str(models / "a-Q4_0.gguf"), models_dir=tmp_path) == models / "a-Q4_0.gguf"
    assert local(model_file="a-Q8_0.gguf", models_dir=models) == models / "a-Q8_0.gguf"
    assert local(model_file="*q8*", models_dir=models) == models / "a-Q8_0.gguf"
    assert "matches 2 models" in complaint(model_file="a-*", models_dir=models)
    message = complaint(model_file="c.gguf", models_dir=models)
    assert message.startswith(f"MODEL_FILE=c.gguf is not in MODELS_DIR={models}: set MODEL_REPO")


def test_the_name_for_people() -> None:
    assert hub.model_name(Path("models/a-Q4_0.gguf")) == "a-Q4_0"
    assert hub.model_name(Path("models/a-00001-of-00002.gguf")) == "a"


# --- downloads


def test_a_download_arrives_and_is_not_repeated(resolve, server: FakeHub) -> None:
    server.add(REPO, {"a.gguf": TINY})
    first = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf")
    assert first.path
    assert first.path.read_bytes() == TINY
    assert first.path.name == "a.gguf"
    assert not first.warnings
    assert len(server.gets()) == 1
    server.requests.clear()
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").path == first.path
    assert [request.method for request in server.requests] == ["HEAD"]


def test_nothing_but_the_model_is_asked_for(resolve, server: FakeHub) -> None:
    server.add(REPO, {"a.gguf": TINY})
    resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", AGENT="someone", fresh_import=True)
    assert {request.path.rpartition("/")[2] for request in server.requests} == {"a.gguf"}


def test_a_pinned_commit_that_is_here_needs_no_hub(resolve, server: FakeHub) -> None:
    commit = server.add(REPO, {"a-Q4.gguf": TINY, "a-Q8.gguf": TINY})
    for file in ("a-Q4.gguf", "*q4*"):
        first = resolve(MODEL_REPO=REPO, MODEL_FILE=file, MODEL_REVISION=commit, fresh_import=True)
        server.requests.clear()
        second = resolve(MODEL_REPO=REPO, MODEL_FILE=file, MODEL_REVISION=commit, fresh_import=True)
        assert second.path == first.path
        assert not second.warnings
        assert not second.hub_imported
        assert not server.requests


def test_a_revision_is_another_file(resolve, server: FakeHub) -> None:
    other = tiny_gguf(seed=1)
    server.add(REPO, {"a.gguf": TINY})
    server.add(REPO, {"a.gguf": other}, revision="v2")
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").path.read_bytes() == TINY
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", MODEL_REVISION="v2").path.read_bytes() == other
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").path.read_bytes() == TINY


BIG = tiny_gguf(floats=6_000_000)  # 24 MB: huggingface_hub writes in pieces of 10 MiB
CUT = 15_000_000
WRITTEN = 10 * 1024 * 1024


def test_a_cut_connection_is_resumed(resolve, server: FakeHub) -> None:
    server.add(REPO, {"a.gguf": BIG})
    server.cut_after = CUT
    outcome = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf")
    assert outcome.path
    assert outcome.path.read_bytes() == BIG
    cut, rest = server.gets()
    assert "range" not in {name.lower() for name in cut.headers}
    assert rest.headers["range"] == f"bytes={WRITTEN}-"
    assert rest.sent == len(BIG) - WRITTEN


def test_the_next_start_resumes_a_download_that_failed(resolve, server: FakeHub) -> None:
    server.add(REPO, {"a.gguf": BIG})
    server.cut_after, server.fail_after_cut = CUT, True
    failed = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf")
    assert failed.error.startswith(f"{server.url} answers 500 Internal Server Error for MODEL_REPO={REPO}")
    server.status = None
    server.requests.clear()
    outcome = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf")
    assert outcome.path
    assert outcome.path.read_bytes() == BIG
    (rest,) = server.gets()
    assert rest.headers["range"] == f"bytes={WRITTEN}-"
    assert rest.sent == len(BIG) - WRITTEN


def test_a_partial_file_with_other_content_is_found_out(resolve, server: FakeHub, tmp_path: Path) -> None:
    server.add(REPO, {"a.gguf": TINY})
    path = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").path
    blob = path.resolve()
    path.unlink()
    blob.unlink()
    blob.with_name(f"{blob.name}.incomplete").write_bytes(b"GGUF rubbish")
    assert "arrived damaged" in resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").error
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").path.read_bytes() == TINY


def test_a_damaged_file_on_this_disk_is_downloaded_again(resolve, server: FakeHub) -> None:
    commit = server.add(REPO, {"a.gguf": TINY})
    for revision in ("main", commit):
        path = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", MODEL_REVISION=revision).path
        path.write_bytes(TINY[:-1])
        outcome = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", MODEL_REVISION=revision)
        assert outcome.path
        assert outcome.path.read_bytes() == TINY


# --- which file


def test_a_pattern_finds_the_one_model_it_matches(resolve, server: FakeHub) -> None:
    server.add(REPO, {"Q4/a-Q4_K_M.gguf": TINY, "a-Q8_0.gguf": TINY, "mmproj-a-Q8_0.gguf": TINY})
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="*Q4_K_M*.gguf").path.name == "a-Q4_K_M.gguf"
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="*q8*").path.name == "a-Q8_0.gguf"


def test_a_pattern_that_matches_several_or_none_lists_them(resolve, server: FakeHub) -> None:
    server.add(REPO, {"a-Q4_0.gguf": TINY, "a-Q4_K_M.gguf": TINY, **split_gguf("a-Q8_0", 2)})
    several = resolve(MODEL_REPO=REPO, MODEL_FILE="*Q4*").error
    assert (
        several
        == "MODEL_FILE=*Q4* matches 2 models; set MODEL_FILE to one of them: a-Q4_0.gguf, a-Q4_K_M.gguf"
    )
    none = resolve(MODEL_REPO=REPO, MODEL_FILE="*Q5*").error
    assert none.startswith(f"MODEL_FILE=*Q5* matches nothing in MODEL_REPO={REPO} (revision main)")
    assert none.endswith("a-Q4_0.gguf, a-Q4_K_M.gguf, a-Q8_0-00001-of-00002.gguf (2 parts)")


def test_without_model_file_the_only_model_is_taken(resolve, server: FakeHub) -> None:
    server.add(REPO, {"config.json": b"{}", **split_gguf("a", 2)})
    outcome = resolve(MODEL_REPO=REPO)
    assert outcome.path
    assert outcome.path.name == "a-00001-of-00002.gguf"


def test_without_model_file_several_models_are_listed(resolve, server: FakeHub) -> None:
    server.add(REPO, {"a.gguf": TINY, "b.gguf": TINY})
    error = resolve(MODEL_REPO=REPO).error
    assert error.startswith(
        f"MODEL_REPO={REPO} (revision main) holds 2 models; set MODEL_FILE to one of them"
    )
    assert error.endswith("a.gguf, b.gguf")


def test_a_repository_without_gguf_files(resolve, server: FakeHub) -> None:
    server.add(REPO, {"model.safetensors": b"\x08"})
    assert f"MODEL_REPO={REPO} (revision main) holds no GGUF file" in resolve(MODEL_REPO=REPO).error
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="model.safetensors").error
    assert error == "MODEL_FILE=model.safetensors is not a GGUF file; GGUF files there: none"
    assert not server.gets()


@pytest.mark.parametrize("file", ["a-00001-of-00003.gguf", "a-*"])
def test_a_split_model_brings_all_its_parts(resolve, server: FakeHub, file: str) -> None:
    parts = split_gguf("a", 3)
    server.add(REPO, parts)
    path = resolve(MODEL_REPO=REPO, MODEL_FILE=file).path
    assert path.name == "a-00001-of-00003.gguf"
    assert {name: path.with_name(name).read_bytes() for name in parts} == parts


@pytest.mark.parametrize("file", ["a-00001-of-00003.gguf", "a-*", ""])
def test_a_part_that_the_repository_lacks_is_named(resolve, server: FakeHub, file: str) -> None:
    parts = split_gguf("a", 3)
    del parts["a-00002-of-00003.gguf"]
    server.add(REPO, parts)
    error = resolve(MODEL_REPO=REPO, MODEL_FILE=file).error
    assert error.endswith(f"its part a-00002-of-00003.gguf is not in MODEL_REPO={REPO} (revision main)")


# --- refusals


def test_a_wrong_repository(resolve, server: FakeHub) -> None:
    error = resolve(MODEL_REPO="someone/nothing", MODEL_FILE="a.gguf").error
    assert error.startswith(
        f"MODEL_REPO=someone/nothing is not a repository of {server.url}, or a private one"
    )
    assert "set HF_TOKEN" in error
    assert resolve(MODEL_REPO="someone/nothing").error == error


def test_a_name_that_no_repository_has(resolve) -> None:
    error = resolve(MODEL_REPO="https://huggingface.co/a/b").error
    assert error == "MODEL_REPO=https://huggingface.co/a/b is not a repository's name: it is owner/name"


def test_a_wrong_file_lists_what_is_there(resolve, server: FakeHub) -> None:
    server.add(REPO, {"a.gguf": TINY, "b.gguf": TINY, "config.json": b"{}"})
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="c.gguf").error
    where = f"MODEL_REPO={REPO} (revision main)"
    assert error == f"MODEL_FILE=c.gguf is not in {where}; GGUF files there: a.gguf, b.gguf"


@pytest.mark.parametrize("file", ["a.gguf", ""])
def test_a_wrong_revision(resolve, server: FakeHub, file: str) -> None:
    server.add(REPO, {"a.gguf": TINY})
    error = resolve(MODEL_REPO=REPO, MODEL_FILE=file, MODEL_REVISION="v9").error
    assert error.startswith(f"MODEL_REPO={REPO} has no branch, tag or commit v9")


def test_a_gated_repository(resolve, server: FakeHub) -> None:
    server.add(REPO, {"a.gguf": TINY})
    server.gated[REPO] = "hf_good"
    server.known_tokens |= {"hf_good", "hf_other"}
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").error
    page = f"{server.url}/{REPO}"
    then = "then set HF_TOKEN to a token of that account"
    assert error == f"MODEL_REPO={REPO} is gated: request access at {page}, {then}"
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", HF_TOKEN="hf_other").error
    assert (
        error
        == f"MODEL_REPO={REPO} is gated, and the account of HF_TOKEN has no access: request it at {page}"
    )
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        assert resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", **{name: "hf_good"}).path.read_bytes() == TINY


def test_a_token_that_the_hub_does_not_know(resolve, server: FakeHub) -> None:
    server.add(REPO, {"a.gguf": TINY})
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", HF_TOKEN="hf_secret").error
    assert "does not accept HF_TOKEN" in error
    assert "hf_secret" not in error


def test_a_token_that_is_none(resolve) -> None:
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", HF_TOKEN="hf_ä b").error
    assert error == "HF_TOKEN: holds characters that no access token has; copy it again"


# --- a hub that is away


def test_a_hub_that_is_away_without_a_copy(resolve) -> None:
    away = closed_port()
    for file in ("a.gguf", "*"):
        error = resolve(MODEL_REPO=REPO, MODEL_FILE=file, HF_ENDPOINT=away).error
        assert error.startswith(f"{away} cannot be reached (Connection refused): check the network")


@pytest.mark.parametrize("file", ["a.gguf", "*a*", ""])
def test_a_hub_that_is_away_with_a_copy(resolve, server: FakeHub, file: str) -> None:
    server.add(REPO, {"a.gguf": TINY})
    path = resolve(MODEL_REPO=REPO, MODEL_FILE=file).path
    away = closed_port()
    server.status = 503
    cases = {
        f"{away} cannot be reached (Connection refused)": {"HF_ENDPOINT": away},
        f"{server.url} answers 503 Service Unavailable for MODEL_REPO={REPO}": {},
        "HF_HUB_OFFLINE is set": {"HF_HUB_OFFLINE": "1"},
    }
    for reason, variables in cases.items():
        outcome = resolve(MODEL_REPO=REPO, MODEL_FILE=file, **variables)
        assert outcome.path == path
        (warning,) = outcome.warnings
        assert warning.startswith(f"{reason}; using the copy of {REPO} in ")


def test_a_name_that_does_not_resolve(resolve) -> None:
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", HF_ENDPOINT="http://hub.invalid").error
    assert error.startswith("http://hub.invalid cannot be reached (")


def test_a_hub_that_never_answers(resolve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for file in ("a.gguf", "*"):
            error = resolve(MODEL_REPO=REPO, MODEL_FILE=file, HF_ENDPOINT=url, HF_HUB_ETAG_TIMEOUT="1").error
            assert error.startswith(f"{url} cannot be reached (no answer within 1 s)")


@pytest.mark.parametrize("file", ["a.gguf", "*"])
def test_a_proxy_that_answers_in_the_hubs_place(resolve, server: FakeHub, file: str) -> None:
    server.html = True
    error = resolve(MODEL_REPO=REPO, MODEL_FILE=file).error
    assert error.startswith(f"{server.url} does not answer as a Hugging Face hub does")


@pytest.mark.parametrize("endpoint", ["localhost:8080", "http://", "http://a:99999"])
def test_an_endpoint_that_is_no_address(resolve, endpoint: str) -> None:
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf", HF_ENDPOINT=endpoint).error
    assert error.startswith(f"HF_ENDPOINT={endpoint}: should be the address of a hub")


def test_a_newer_commit_that_cannot_be_had_leaves_the_copy_in_use(resolve, server: FakeHub) -> None:
    server.add(REPO, {"a.gguf": TINY})
    older = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").path
    server.add(REPO, {"a.gguf": BIG})
    server.cut_after, server.fail_after_cut = CUT, True
    for _ in ("while it is downloaded", "and at the next start"):
        outcome = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf")
        assert outcome.path == older
        assert "answers 500 Internal Server Error" in outcome.warnings[0]
    server.status = None
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").path.read_bytes() == BIG


def test_another_file_of_a_hub_that_is_away(resolve, server: FakeHub) -> None:
    server.add(REPO, {"a.gguf": TINY, "b.gguf": TINY})
    resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf")
    server.status = 500
    for file in ("b.gguf", "b*"):
        outcome = resolve(MODEL_REPO=REPO, MODEL_FILE=file)
        assert outcome.error.startswith(f"{server.url} answers 500 Internal Server Error")
        assert not outcome.warnings


# --- what arrives, and where it goes


@pytest.mark.parametrize("content", [TINY[:-1], b"<html>quota exceeded</html>"])
def test_a_download_that_is_no_whole_gguf(resolve, server: FakeHub, content: bytes) -> None:
    server.add(REPO, {"a.gguf": content})
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").error
    assert error.startswith(f"MODEL_REPO={REPO}: a.gguf cannot be used, it is ")
    assert error.endswith(
        "choose another file, or delete models/models--someone--tiny-GGUF to download it again"
    )


def test_too_little_room_is_seen_before_the_download(resolve, server: FakeHub) -> None:
    server.add(REPO, {"a.gguf": TINY})
    server.claimed_size = 10**18
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").error
    assert error.startswith(f"MODELS_DIR=models: a.gguf of {REPO} needs 1,000,000,000.0 GB and ")
    assert "is free: free some space, or set MODELS_DIR" in error
    assert not server.gets()


def test_a_disk_that_fills_up_during_the_download(resolve, server: FakeHub, tmp_path: Path) -> None:
    server.add(REPO, {"a.gguf": TINY})
    server.etag = "some-etag"
    blobs = tmp_path / "models" / "models--someone--tiny-GGUF" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "some-etag.incomplete").symlink_to("/dev/full")  # every write fails with ENOSPC
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").error
    assert error.startswith(f"MODELS_DIR=models: No space left on device while downloading {REPO}, ")
    assert "free some space" in error


def test_a_folder_that_cannot_be_written(resolve, server: FakeHub, tmp_path: Path) -> None:
    server.add(REPO, {"a.gguf": TINY})
    (tmp_path / "models").write_bytes(b"")
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="a.gguf").error
    assert (
        error == "MODELS_DIR=models: cannot be written (Not a directory): set MODELS_DIR to a folder that can"
    )


def test_a_file_that_another_process_downloads_is_waited_for(server: FakeHub, tmp_path: Path) -> None:
    server.add(REPO, {"a.gguf": TINY})
    server.etag = "some-etag"
    locks = tmp_path / "models" / ".locks" / "models--someone--tiny-GGUF"
    locks.mkdir(parents=True)
    with (locks / "some-etag.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            command("--once"),
            env=environment(HF_ENDPOINT=server.url, MODEL_REPO=REPO, MODEL_FILE="a.gguf"),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        assert process.stderr.readline() == "INFO another process downloads a.gguf; waiting for it\n"
        assert not server.gets()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / output.splitlines()[0]).read_bytes() == TINY
