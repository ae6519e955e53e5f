"""Files of a Hugging Face repository on this disk: resumable downloads, and local copies without the hub.

The folder has the layout of huggingface_hub's cache (``models--owner--name/snapshots/<commit>/<file>``), so
other programs can share it. huggingface_hub is imported in functions, because the import takes half a second.
Models on this disk do not need it.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from app.weights.download_progress import progress_bar
from app.weights.errors import (
    FileNotInRepository,
    HubError,
    ModelError,
    explained_disk,
    explained_hub,
    readable_size,
)

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

logger = logging.getLogger("tokenstream.hub")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"[\w.-]+")
_RETRIES = 5  # consecutive attempts without progress, as in huggingface_hub


@functools.cache
def prepare_library() -> None:
    """Import huggingface_hub without its telemetry, and route its warnings to our log.

    Raises:
        ModelError: HF_ENDPOINT is not a URL.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        url = urlsplit(endpoint)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ModelError(
            f"HF_ENDPOINT={endpoint}: should be the URL of a hub, such as https://huggingface.co"
        )
    # Read at import. Without it, the first request is for a list of "agent harnesses".
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub.utils.logging  # noqa: F401  (sets a log handler, which is replaced below)

    library = logging.getLogger("huggingface_hub")
    library.handlers = [_FirstLine()]
    library.propagate = False
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every request


class _FirstLine(logging.Handler):
    """Logs the first line of huggingface_hub's messages about retries at level INFO."""

    def emit(self, record: logging.LogRecord) -> None:
        logger.info("%s", record.getMessage().partition("\n")[0])


class Repository:
    """One repository at one revision, and the folder of its downloaded files."""

    def __init__(
        self,
        name: str,
        *,
        folder: Path,
        revision: str = "main",
        token: str | None = None,
        variable: str = "MODEL_REPO",
    ) -> None:
        """Set the parameters, without access to hub or disk.

        Args:
            name: ``owner/name`` on the hub.
            folder: The cache folder; created by the first download.
            revision: Branch, tag or commit.
            token: Access token. None: the token stored by ``hf auth login``, if any.
            variable: The setting that names the repository, for messages.
        """
        self.name = name
        self.revision = revision
        self.storage = folder / f"models--{name.replace('/', '--')}"
        self.pinned = bool(_COMMIT.fullmatch(revision))
        self._folder = folder
        self._token = token
        self.variable = variable
        self._commit = revision if self.pinned else None
        self.failure: ModelError | None = None  # once set, only local files are used

    def files(self) -> list[str]:
        """Names of the files in the repository, or of the local files if the hub is unavailable.

        Raises:
            HubError: The hub is unavailable or rejects the request, and no file is on this disk.
        """
        try:
            return self._request_files()
        except HubError as failure:
            here = self.files_here()
            if not here:
                raise
            self.failure = failure
            return here

    def files_here(self) -> list[str]:
        """Names of the local files of the last downloaded commit."""
        snapshot = self._snapshot()
        if snapshot is None:
            return []
        return sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())

    def path_here(self, file: str) -> Path | None:
        """A local file of the last downloaded commit; None if it is not on this disk."""
        snapshot = self._snapshot()
        path = snapshot / file if snapshot else None
        return path if path and path.is_file() else None

    def delete(self, files: Collection[str]) -> int:
        """Delete local files, and the whole repository if it has no other GGUF files.

        Returns:
            The freed bytes.

        Raises:
            ModelError: The files cannot be deleted.
        """
        prepare_library()
        from huggingface_hub import scan_cache_dir

        cache = scan_cache_dir(self._folder)
        revisions = [
            revision for one in cache.repos if one.repo_id == self.name for revision in one.revisions
        ]
        cached = {
            file: file.file_path.relative_to(revision.snapshot_path).as_posix()
            for revision in revisions
            for file in revision.files
        }
        wanted = [file for file, name in cached.items() if name in files]
        others = [file for file, name in cached.items() if name not in files]
        try:
            if any(file.file_name.lower().endswith(".gguf") for file in others):
                blobs = {file.blob_path: file.size_on_disk for file in wanted}
                for other in others:
                    blobs.pop(other.blob_path, None)
                for path in (*(file.file_path for file in wanted), *blobs):
                    path.unlink(missing_ok=True)
                return sum(blobs.values())
            deletion = cache.delete_revisions(*(revision.commit_hash for revision in revisions))
            deletion.execute()
        except OSError as error:
            raise ModelError(f"{self.storage}: cannot be deleted: {error.strerror}") from error
        if any(file.file_path.exists() for file in wanted):  # the library only logs errors
            raise ModelError(f"{self.storage}: cannot be deleted: is MODELS_DIR writable?")
        return deletion.expected_freed_size

    def fetch(self, files: Sequence[str], *, verify: bool = False) -> list[Path]:
        """Return the paths of ``files`` of one commit. Missing files are downloaded.

        Args:
            files: Their names in the repository.
            verify: Download local files again if their sizes differ from the hub's.

        Raises:
            FileNotInRepository: The repository has no such file.
            HubError: The hub is unavailable or rejects the request, and a file is not on this disk.
            ModelError: The files cannot be written, and one is not on this disk.
        """
        failure = self.failure
        if failure is None:
            try:
                return self._fetch_online(files, verify)
            except FileNotInRepository:
                raise
            except ModelError as error:
                failure = error
                # Discard a newer commit whose download failed.
                self._commit = self.revision if self.pinned else None
        snapshot = self._snapshot()
        if snapshot is None or not set(files).issubset(self.files_here()):
            raise failure
        self.failure = failure
        reason = failure.reason if isinstance(failure, HubError) else str(failure)
        logger.warning("%s; using the local copy of %s in %s", reason, self.name, snapshot)
        return [snapshot / file for file in files]

    def _snapshot(self) -> Path | None:
        """Folder of the local files; None if there are none."""
        commit = self._commit
        reference = self.storage / "refs" / self.revision
        if commit is None and reference.is_file():
            commit = reference.read_text().strip()
        folder = self.storage / "snapshots" / commit if commit else None
        return folder if folder and folder.is_dir() else None

    # --- requests to the hub

    def _request_files(self) -> list[str]:
        prepare_library()
        from huggingface_hub import HfApi, constants

        with self._explained():
            info = HfApi(token=self._token).model_info(
                self.name, revision=self.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
            if not info.sha or info.siblings is None:
                raise ValueError("a response without commit or files")
        self._commit = info.sha
        return sorted(file.rfilename for file in info.siblings if _is_safe(file.rfilename))

    def _request_file(self, file: str, revision: str) -> HfFileMetadata:
        """Size, commit and ETag of a file."""
        prepare_library()
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

        with self._explained(file):
            found = get_hf_file_metadata(
                hf_hub_url(self.name, file, revision=revision),
                token=self._token,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
            )
            if not found.commit_hash or not _ETAG.fullmatch(found.etag or ""):
                raise ValueError("a response without X-Repo-Commit or ETag")
        return found

    def _fetch_online(self, files: Sequence[str], verify: bool) -> list[Path]:
        found: dict[str, HfFileMetadata] = {}
        if self._commit is None:
            found[files[0]] = self._request_file(files[0], self.revision)
            self._commit = found[files[0]].commit_hash
        commit = str(self._commit)
        snapshot = self.storage / "snapshots" / commit
        requested = [file for file in files if verify or not (snapshot / file).is_file()]
        for file in requested:
            found[file] = found.get(file) or self._request_file(file, commit)
        missing = {
            file: found[file] for file in requested if not _has_size(snapshot / file, found[file].size)
        }
        if missing:
            with explained_disk(self._folder, self.name):
                self._download(missing, commit)
        self._remember(commit)
        return [snapshot / file for file in files]

    # --- writing

    def _download(self, missing: dict[str, HfFileMetadata], commit: str) -> None:
        from huggingface_hub import constants, hf_hub_download

        (self.storage / "blobs").mkdir(parents=True, exist_ok=True)
        self._check_space(missing)
        for file, metadata in missing.items():
            blob = self._blob(metadata)
            with self._only_process(file, blob):
                if not _has_size(blob, metadata.size):
                    blob.unlink(missing_ok=True)
                    (self.storage / "snapshots" / commit / file).unlink(missing_ok=True)
                    if (metadata.size or 0) <= constants.MAX_HTTP_DOWNLOAD_SIZE:
                        self._receive(file, commit, metadata)
            with self._explained(file):  # links the snapshot to the blob
                hf_hub_download(self.name, file, revision=commit, cache_dir=self._folder, token=self._token)

    @contextmanager
    def _only_process(self, file: str, blob: Path) -> Iterator[None]:
        """Hold huggingface_hub's lock: only one process at a time appends to a partial file."""
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        lock = self._folder / ".locks" / self.storage.name / f"{blob.name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(WeakFileLock(lock, timeout=1))
            except Timeout:
                logger.info("another process downloads %s; waiting for it", file)
                held.enter_context(WeakFileLock(lock))
            yield

    def _receive(self, file: str, commit: str, metadata: HfFileMetadata) -> None:
        """Download one blob, resuming the partial file of an earlier process.

        huggingface_hub resumes after a broken connection, but deletes the partial file when the process
        ends. Here the partial file stays, and its SHA-256 is checked at the end.
        """
        import httpx2
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        blob = self._blob(metadata)
        partial = _partial(blob)
        # Sizes and ranges refer to the uncompressed file.
        headers = {**build_hf_headers(token=self._token), "accept-encoding": "identity"}
        size = f" ({readable_size(metadata.size)})" if metadata.size else ""
        logger.info("downloading %s%s of %s from %s", file, size, self.name, constants.ENDPOINT)
        bar = progress_bar(f"downloading {file}{size}")
        retries = _RETRIES
        while True:
            with partial.open("ab") as target, self._explained(file):
                if metadata.size is not None and target.tell() > metadata.size:
                    target.truncate(0)
                start = target.seek(0, os.SEEK_END)
                try:
                    http_get(
                        hf_hub_url(self.name, file, revision=commit),
                        target,
                        resume_size=start,
                        headers=headers,
                        expected_size=metadata.size,
                        tqdm_class=bar,
                    )
                    break
                except httpx2.ReadError:  # a reset connection; http_get handles other failures
                    retries = _RETRIES if target.tell() > start else retries - 1
                    if retries == 0:
                        raise
            time.sleep(1)
        self._check_digest(file, partial, metadata.etag or "")
        partial.replace(blob)

    def _check_digest(self, file: str, partial: Path, etag: str) -> None:
        from huggingface_hub.utils.sha import sha_fileobj

        if not _SHA256.fullmatch(etag):
            return  # small files are stored in git; their ETag is another kind of hash
        with partial.open("rb") as content:
            if sha_fileobj(content).hex() == etag:
                return
        partial.unlink()
        raise ModelError(f"{file} of {self.name} was damaged in transfer (SHA-256 mismatch): start again")

    def _check_space(self, missing: dict[str, HfFileMetadata]) -> None:
        needed = 0
        for metadata in missing.values():
            blob = self._blob(metadata)
            partial = _partial(blob)
            if not _has_size(blob, metadata.size):
                needed += (metadata.size or 0) - (partial.stat().st_size if partial.is_file() else 0)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise ModelError(
                f"MODELS_DIR={self._folder}: {', '.join(missing)} of {self.name} needs "
                f"{readable_size(needed)} and {readable_size(free)} is free: "
                "free some space, or set MODELS_DIR to another disk"
            )

    def _blob(self, metadata: HfFileMetadata) -> Path:
        return self.storage / "blobs" / str(metadata.etag)

    def _remember(self, commit: str) -> None:
        """Record the commit of the local files."""
        reference = self.storage / "refs" / self.revision
        if self.pinned or (reference.is_file() and reference.read_text().strip() == commit):
            return
        try:
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(commit)
        except OSError as error:  # a cache mounted read-only is still usable
            logger.debug("%s cannot be written: %s", reference, error)

    def _explained(self, file: str = "") -> AbstractContextManager[None]:
        return explained_hub(self.variable, self.name, self.revision, file)


def _is_safe(file: str) -> bool:
    """Whether a path from a hub stays inside the folder that it is joined to."""
    path = PurePosixPath(file)
    return not path.is_absolute() and ".." not in path.parts


def _has_size(path: Path, size: int | None) -> bool:
    return path.is_file() and size in (None, path.stat().st_size)


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")
