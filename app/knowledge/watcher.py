"""Calls a function after every change in a folder."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from watchfiles import watch

from app.knowledge.folder import Folder

logger = logging.getLogger("tokenstream.knowledge")

# Seconds between scans without change events: network file systems and some container mounts send none.
_RESCAN_AFTER = 60.0
_WATCH_TIMEOUT = 5000  # milliseconds


class Watcher:
    """A thread that calls ``scan`` at its start, after every change, and every minute."""

    def __init__(self, folder: Folder, scan: Callable[[], None]) -> None:
        """``scan`` must not raise."""
        self._folder = folder
        self._scan = scan
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        self._scan()
        while not self._ends.is_set():
            folder = self._folder.identity
            try:
                if folder is not None:
                    self._watch(folder)
                elif not self._ends.wait(1.0) and self._folder.identity is not None:
                    self._scan()  # the folder exists again
            except BaseException as error:  # for example no free inotify watches, or a panic of watchfiles
                logger.warning(
                    "%s cannot be watched, next scan in %.0f s: %s", self._folder.path, _RESCAN_AFTER, error
                )
                if not self._ends.wait(_RESCAN_AFTER):
                    self._scan()

    def _watch(self, identity: tuple[int, int]) -> None:
        """Scan after every change, until the folder is replaced."""
        scanned_at = -math.inf  # scan immediately: files may have changed before the watch began
        for changes in watch(
            self._folder.path,
            stop_event=self._ends,
            raise_interrupt=False,
            rust_timeout=_WATCH_TIMEOUT,
            yield_on_timeout=True,
        ):
            if changes or time.monotonic() - scanned_at > _RESCAN_AFTER:
                self._scan()
                scanned_at = time.monotonic()
            if self._folder.identity != identity:
                return
