"""Errors of finding and downloading models. Each message is one line with a remedy."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app.config.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


class ModelError(UserError):
    """The model cannot be found, downloaded or read. The message is one line with a remedy."""


class HubError(ModelError):
    """The hub did not answer, or rejected the request. A local copy may still be usable."""

    def __init__(self, reason: str, advice: str) -> None:
        self.reason = " ".join(reason.split())
        super().__init__(f"{self.reason}: {advice}")


class FileNotInRepository(ModelError):
    """The repository exists on the hub but does not contain this file."""

    def __init__(self, file: str, repository: str) -> None:
        self.file = file
        super().__init__(f"{file} is not in {repository}")


def readable_size(size: int) -> str:
    """Format a number of bytes: ``4.7 GB``, ``98.0 MB``, ``512 bytes``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} bytes"


@contextmanager
def explained_hub(variable: str, repository: str, revision: str, file: str = "") -> Iterator[None]:
    """Convert exceptions of huggingface_hub to HubError or FileNotInRepository. Disk errors pass through.

    Args:
        variable: The setting that names the repository.
        repository: ``owner/name``.
        revision: Branch, tag or commit.
        file: The requested file, if any.
    """
    import httpx2
    from huggingface_hub.errors import (
        FileMetadataError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    wanted = f"{file or 'the list of files'} of {variable}={repository} (revision {revision})"
    try:
        yield
    except HfHubHTTPError as error:
        raise _rejection(error, variable, repository, revision, file) from error
    except HFValidationError as error:
        raise HubError(
            f"{variable}={repository} is not the name of a repository", "use owner/name"
        ) from error
    except LocalEntryNotFoundError as error:
        raise _no_answer(error.__cause__ or error, wanted) from error
    except OSError as error:
        if error.errno is not None and not isinstance(error, OfflineModeIsEnabled):
            raise
        raise _no_answer(error, wanted) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
        raise _no_answer(error, wanted) from error
    except (FileMetadataError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(
            f"{_endpoint()} is not a Hugging Face hub ({error})",
            "check HF_ENDPOINT and the proxy",
        ) from error


@contextmanager
def explained_disk(folder: Path, what: str) -> Iterator[None]:
    """Convert an OSError of a download to ``folder`` to a ModelError; ``what``: name of the download."""
    try:
        yield
    except OSError as error:
        problem, advice = f"cannot be written ({error.strerror})", "set MODELS_DIR to a writable folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = readable_size(shutil.disk_usage(folder).free)
            problem = f"{error.strerror} while downloading {what}, {free} free"
            advice = "free some space, or set MODELS_DIR to another disk; the download will resume"
        raise ModelError(f"MODELS_DIR={folder}: {problem}: {advice}") from error


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _no_answer(error: BaseException, wanted: str) -> HubError:
    """The hub did not answer; ``wanted``: name of the missing file."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return HubError("HF_HUB_OFFLINE is set", f"unset it to download {wanted}")
    reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
    if isinstance(error, httpx2.TimeoutException):
        reason = f"no answer within {constants.HF_HUB_ETAG_TIMEOUT} s"
    return HubError(
        f"{_endpoint()} cannot be reached ({reason})",
        f"check the network and HF_ENDPOINT, or name local files instead of {wanted}",
    )


def _rejection(error: HfHubHTTPError, variable: str, repository: str, revision: str, file: str) -> ModelError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    what, page = f"{variable}={repository}", f"{_endpoint()}/{repository}"
    has_token = "authorization" in error.response.request.headers
    other_token = "set HF_TOKEN to a token with read access"
    if isinstance(error, GatedRepoError):
        if has_token:
            return HubError(
                f"{what} is gated, and the account of HF_TOKEN has no access", f"request it at {page}"
            )
        advice = f"request access at {page}, then set HF_TOKEN to a token of that account"
        return HubError(f"{what} is gated", advice)
    if isinstance(error, RevisionNotFoundError):
        advice = f"choose one of {page}/tree/main"
        return HubError(f"{what} has no branch, tag or commit {revision}", advice)
    if status == 401 and has_token and not isinstance(error, RepositoryNotFoundError):
        return HubError(f"{_endpoint()} rejects HF_TOKEN for {what} (401)", other_token)
    if status in (401, 404) and (not file or status == 401 or isinstance(error, RepositoryNotFoundError)):
        advice = f"check the name, or {other_token}"
        return HubError(f"{what} is not a repository of {_endpoint()}, or a private one", advice)
    if status == 404:
        return FileNotInRepository(file, repository)
    if status == 403:
        return HubError(f"{_endpoint()} denies access to {what} (403: {error.server_message})", other_token)
    reason = f"{status} {error.response.reason_phrase}".strip()
    return HubError(
        f"{_endpoint()} responds with {reason} for {what}",
        f"try again later, or name local files instead of {file or 'its files'}",
    )
