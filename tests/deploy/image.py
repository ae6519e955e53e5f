"""``make image-test``: the container image, built and run without a daemon.

Needs root, and Debian's buildah and mmdebstrap. WHEELS: path of the archive with the native builds.
In the build, pip uses the index and the certificates of pip outside. They are mounted for the build only.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.machine.folders import cache_folder
from app.machine.identity import cpu, cpu_flags
from tests.conftest import ROOT, free_port

SUITE = "trixie"
BASE, IMAGE = "localhost/tokenstream-base", "localhost/tokenstream"
USER = 10001
# Settings of pip for the way to its index. Others may name files that the build lacks.
PIP_SETTINGS = ("index-url", "extra-index-url", "proxy", "trusted-host", "timeout", "cert")
COMPILERS = ("cc", "gcc", "c++", "g++", "make", "ld", "as")
# In namespaces of its own: the image read-only, with volumes for models and temporary files.
START = """
mount --bind {root} {root} && mount -o remount,bind,ro {root}
mount -t proc proc {root}/proc && mount --bind {cpuinfo} {root}/proc/cpuinfo && mount --rbind /dev {root}/dev
mount -t tmpfs -o mode=1777 tmp {root}/tmp && mount -t tmpfs -o uid={user} models {root}{work}/models
exec env -i {variables} chroot --userspec={user}:{user} {root} sh -c 'cd {work} && exec "$@"' sh {command}
"""

pytestmark = pytest.mark.timeout(7200)


@dataclass
class Image:
    """An image in a storage of its own."""

    storage: Path
    root: Path = field(init=False)
    config: dict[str, Any] = field(init=False)
    seconds: float = 0

    def buildah(self, *arguments: str, stdout: int | None = subprocess.PIPE) -> str:
        command = [
            "buildah",
            "--root",
            f"{self.storage}/layers",
            "--runroot",
            f"{self.storage}/run",
            *arguments,
        ]
        environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self.storage)}
        done = subprocess.run(command, stdout=stdout, env=environment, text=True, check=True)
        return (done.stdout or "").strip()

    def mounted(self, name: str) -> Path:
        return Path(self.buildah("mount", self.buildah("from", "--pull-never", name)))

    def size(self, name: str) -> int:
        """Bytes of the files of an image."""
        used = subprocess.check_output(
            ["du", "--summarize", "--one-file-system", "--bytes", self.mounted(name)]
        )
        return int(used.split()[0])

    def run(
        self, command: list[str], folder: Path, cpuinfo: str = "/proc/cpuinfo", **settings: str
    ) -> subprocess.Popen[bytes]:
        """Start a command as the image's user, with the image's variables.

        Args:
            command: Program and arguments.
            folder: Its output is appended to the file ``log``.
            cpuinfo: A file that stands for /proc/cpuinfo.
            settings: More variables.
        """
        variables = [*self.config["Env"], *(f"{name}={value}" for name, value in settings.items())]
        script = START.format(
            root=self.root,
            cpuinfo=cpuinfo,
            user=self.config["User"].partition(":")[0],
            work=self.config["WorkingDir"],
            variables=" ".join(map(repr, variables)),
            command=" ".join(map(_quoted, command)),
        )
        unshared = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", script]
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(unshared, stdout=log, stderr=log)


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def base_archive() -> Path:
    """The base system as a tar file; cached."""
    path = cache_folder() / "images" / f"{SUITE}.tar"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished.tar")
        subprocess.run(["mmdebstrap", "--variant=minbase", SUITE, unfinished], check=True)
        unfinished.replace(path)
    return path


def pip_mounts(folder: Path) -> list[str]:
    """Options that give pip in the build the index of pip outside."""
    listed = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    # Variables (":env:") are last, so they take precedence.
    pairs = [
        line.partition("=") for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":"))
    ]
    settings = {name.rpartition(".")[2]: value.strip("'\"") for name, _, value in pairs}
    kept = {name: value for name, value in settings.items() if name in PIP_SETTINGS and "file:" not in value}
    mounts = []
    if certificates := kept.get("cert"):
        kept["cert"] = "/etc/pip-certificates.pem"
        mounts.append(f"--volume={Path(certificates).resolve()}:{kept['cert']}:ro")
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in kept.items()))
    return [f"--volume={file}:/etc/pip.conf:ro", *mounts]


@pytest.fixture(scope="module")
def wheels() -> Iterator[str]:
    """URL of the archive of builds."""
    archive = Path(os.environ["WHEELS"]).resolve()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(archive.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/{archive.name}"
        server.shutdown()


@pytest.fixture(scope="module")
def image(wheels: str) -> Iterator[Image]:
    image = Image(Path(tempfile.mkdtemp(prefix="tokenstream-image-")))
    container = image.buildah("from", "scratch")
    image.buildah("add", "--quiet", container, str(base_archive()), "/")
    image.buildah("commit", "--quiet", container, BASE)
    started = time.monotonic()
    arguments = [f"--build-arg=BASE={BASE}", f"--build-arg=WHEELS={wheels}", f"--tag={IMAGE}"]
    # Only Docker's format has health checks.
    image.buildah(
        *("build", "--format=docker", "--pull-never", *arguments, *pip_mounts(image.storage), str(ROOT)),
        stdout=None,
    )
    image.seconds = time.monotonic() - started
    image.config = json.loads(image.buildah("inspect", "--type=image", IMAGE))["Docker"]["config"]
    image.root = image.mounted(IMAGE)
    yield image
    image.buildah("umount", "--all")
    image.buildah("rm", "--all")
    shutil.rmtree(image.storage)


@pytest.fixture(scope="module")
def url(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in the container."""
    folder, address = tmp_path_factory.mktemp("container"), f"127.0.0.1:{free_port()}"
    process = image.run(image.config["Cmd"], folder, HTTP_ADDRESS=address, PREFIX_CACHE_MB="64")
    end = time.monotonic() + 300
    while not _is_ready(f"http://{address}"):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.5)
    print(f"\n{(folder / 'log').read_text()}")
    yield f"http://{address}"
    (server,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(server), signal.Signals[image.config["StopSignal"]])
    assert process.wait(60) == 0, (folder / "log").read_text()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_the_image_has_no_compiler_and_no_pip(image: Image) -> None:
    assert [name for name in COMPILERS if os.path.lexists(image.root / "usr/bin" / name)] == []
    assert not list(image.root.glob("usr/bin/*-linux-gnu-g*"))
    assert not list(image.root.glob("srv/tokenstream/.venv/bin/pip*"))


def test_the_image_serves_as_a_user_on_a_read_only_root(image: Image, url: str) -> None:
    answer = httpx.post(f"{url}/token_stream", json={"query": "Where is located Paris ?"}, timeout=120)
    assert answer.status_code == 200, answer.text
    assert "France" in answer.text
    listening = [path for path in Path("/proc").glob("[0-9]*") if _root_of(path) == image.root]
    assert listening
    assert {path.stat().st_uid for path in listening} == {USER}


def _root_of(process: Path) -> Path | None:
    try:
        return (process / "root").readlink()
    except OSError:
        return None


def test_the_health_check_follows_the_server(image: Image, url: str, tmp_path: Path) -> None:
    kind, *command = image.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    address = url.removeprefix("http://")
    assert image.run(command, tmp_path, HTTP_ADDRESS=address).wait(60) == 0, (tmp_path / "log").read_text()
    assert image.run(command, tmp_path, HTTP_ADDRESS=f"127.0.0.1:{free_port()}").wait(60) != 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64")
def test_an_older_cpu_gets_an_older_build(image: Image, tmp_path: Path) -> None:
    """The CPU has only the flags of a build."""
    choose = "from app.fit import builds; builds.choose('auto')"
    script = f"import os; {choose}; print(os.environ['LLAMA_CPP_LIB_PATH'])"
    for folder in image.root.glob("srv/tokenstream/.venv/native-builds/*"):
        needed = [
            flag
            for flags in json.loads((folder / "native-build.json").read_text())["cpuinfo_flags"].values()
            for flag in flags
        ]
        if not set(needed) <= cpu_flags(cpu()):
            continue
        masked = tmp_path / folder.name
        masked.write_text(f"processor\t: 0\nflags\t\t: {' '.join(needed)}\n")
        process = image.run(["python", "-c", script], tmp_path, str(masked))
        assert process.wait(300) == 0, (tmp_path / "log").read_text()
        assert (tmp_path / "log").read_text().split()[-1].endswith(f"/{folder.name}")


def test_the_image_is_small(image: Image) -> None:
    above = image.size(IMAGE) - image.size(BASE)
    models = sum(path.stat().st_size for path in image.root.rglob("*.gguf"))
    print(
        f"\n{above / 1e6:.0f} MB above the base, {models / 1e6:.0f} MB of them the default model; "
        f"built in {image.seconds / 60:.1f} minutes"
    )
    assert above - models < 250e6
