"""Files that a running server reads again: keys, the TLS certificate, contexts."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

from app.cli.certificate import Certificate
from app.config.errors import UserError
from app.machine.watched_files import WatchedFiles
from app.service import Service

logger = logging.getLogger("tokenstream")


class Renewal:
    """Reads changed files again. An invalid file is reported, and the previous contents remain in use."""

    def __init__(self, service: Service, certificate: Certificate | None) -> None:
        keys = service.keys
        # Contexts alone do not change the effect of SIGHUP: the end of the terminal ends the process.
        self._files = [WatchedFiles([service.settings.contexts_file], service.reload_contexts)]
        self._is_requested = False
        if keys.path is not None:
            self._watch(WatchedFiles([keys.path], _reporting(keys.reload, "keys of API_KEYS")))
        if certificate is not None:
            self._watch(WatchedFiles(certificate.paths, _reporting(certificate.reload, "TLS certificate")))

    def _watch(self, files: WatchedFiles) -> None:
        self._files.append(files)
        if hasattr(signal, "SIGHUP"):  # without files to read, SIGHUP ends the process
            signal.signal(signal.SIGHUP, lambda *_: self._request())

    def _request(self) -> None:
        self._is_requested = True

    def check(self) -> None:
        """Read changed files; after SIGHUP, all files."""
        force, self._is_requested = self._is_requested, False
        for files in self._files:
            files.check(force=force)


def _reporting(reload: Callable[[], None], name: str) -> Callable[[], None]:
    def reload_and_report() -> None:
        try:
            reload()
        except UserError as error:
            logger.error("the previous %s stay in use: %s", name, error)
        else:
            logger.info("read again: %s", name)

    return reload_and_report
