"""What goes wrong between a hub and this disk, each as one line that says what to do."""

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
    """The model cannot be had; the message is one line that says what is wrong and what to do."""


class HubError(ModelError):
    """The hub gave no answer, or refused; a copy on this disk may still serve."""

    def __init__(self, reason: str, advice: str) -> None:
        self.reason = " ".join(reason.split())
        super().__init__(f"{self.reason}: {advice}")


class FileNotInRepository(ModelError):
    """The hub knows the repository, but not this file in it."""

    def __init__(self, file: str, repository: str) -> None:
        self.file = file
        super().__init__(f"{file} is not in {repository}")


def readable_size(size: int) -> str:
    """A number of bytes as a reader wants it: ``4.7 GB``, ``98.0 MB``, ``512 bytes``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} bytes"


@contextmanager
def explained_hub(variable: str, repository: str, revision: str, file: str = "") -> Iterator[None]:
    """Turn what huggingface_hub raises into a HubError or FileNotInRepository; OSErrors of the disk pass.

    Args:
        variable: The setting that named the repository.
        repository: ``owner/name``.
        revision: Branch, tag or commit.
        file: The file that is asked for, if one is.
    """
    import httpx2
    from huggingface_hub.errors import (
        FileMetadataError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except HfHubHTTPError as error:
        raise _refusal(error, variable, repository, revision, file) from error
    except HFValidationError as error:
        raise HubError(f"{variable}={repository} is not a repository's name", "it is owner/name") from error
    except LocalEntryNotFoundError as error:
        raise _no_answer(error.__cause__ or error) from error
    except OSError as error:
        if error.errno is not None and not isinstance(error, OfflineModeIsEnabled):
            raise
        raise _no_answer(error) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
        raise _no_answer(error) from error
    except (FileMetadataError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(
            f"{_endpoint()} does not answer as a Hugging Face hub does ({error})",
            "check HF_ENDPOINT, and whether a proxy answers in its place",
        ) from error


@contextmanager
def explained_disk(folder: Path, what: str) -> Iterator[None]:
    """Turn an OSError while ``what`` is written to ``folder`` into a ModelError."""
    try:
        yield
    except OSError as error:
        problem, advice = f"cannot be written ({error.strerror})", "set MODELS_DIR to a folder that can"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = readable_size(shutil.disk_usage(folder).free)
            problem = f"{error.strerror} while downloading {what}, {free} free"
            advice = (
                "free some space, or set MODELS_DIR to another disk; the download goes on where it stopped"
            )
        raise ModelError(f"MODELS_DIR={folder}: {problem}: {advice}") from error


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _no_answer(error: BaseException) -> HubError:
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return HubError("HF_HUB_OFFLINE is set", "unset it to download what is not on this disk yet")
    said = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
    if isinstance(error, httpx2.TimeoutException):
        said = f"no answer within {constants.HF_HUB_ETAG_TIMEOUT} s"
    return HubError(
        f"{_endpoint()} cannot be reached ({said})",
        "check the network and HF_ENDPOINT, or name files on this machine instead",
    )


def _refusal(error: HfHubHTTPError, variable: str, repository: str, revision: str, file: str) -> ModelError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    what, page = f"{variable}={repository}", f"{_endpoint()}/{repository}"
    has_token = "authorization" in error.response.request.headers
    other_token = "set HF_TOKEN to a token that may read it"
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
        return HubError(f"{_endpoint()} does not accept HF_TOKEN for {what} (401)", other_token)
    if status in (401, 404) and (not file or status == 401 or isinstance(error, RepositoryNotFoundError)):
        advice = f"check the name, or {other_token}"
        return HubError(f"{what} is not a repository of {_endpoint()}, or a private one", advice)
    if status == 404:
        return FileNotInRepository(file, repository)
    if status == 403:
        return HubError(f"{_endpoint()} refuses {what} (403: {error.server_message})", other_token)
    said = f"{status} {error.response.reason_phrase}".strip()
    return HubError(
        f"{_endpoint()} answers {said} for {what}", "try again later, or name files on this machine instead"
    )
