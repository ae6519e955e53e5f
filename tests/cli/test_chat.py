"""``tokenstream chat``."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
import termios
import time

import pytest

from tests.conftest import ROOT, SETTINGS, clean_environment

pytestmark = pytest.mark.slow  # each command loads the model

N_TOKENS = 1800  # of an answer
CHAT = [sys.executable, "-m", "app", "chat"]


def test_lines_are_turns_of_one_conversation() -> None:
    question = "Where is located Paris ?"
    lines = [question, question, "/new", question, "/context", "/context sql", "/new", "List all users"]
    lines += ["/context cooking", "/quit", "not read"]
    finished = subprocess.run(
        [*CHAT, "-n", "16"],
        cwd=ROOT,
        env=clean_environment(**SETTINGS),
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    first, second, third, *contexts, sql = finished.stdout.splitlines()
    assert first == third != second
    assert contexts == ["* general", "  sql", "  classifier", "  math"]
    assert "SELECT" in sql
    assert "context 'cooking' is not defined; defined are: general, sql" in finished.stderr


class Terminal:
    """The command on a pseudo-terminal."""

    def __init__(self) -> None:
        self.shown = ""
        self._ours, theirs = pty.openpty()
        environment = clean_environment(**SETTINGS, LOG_LEVEL="warning", TERM="dumb")
        self.process = subprocess.Popen(
            [*CHAT, "--temperature", "0", "-n", str(N_TOKENS)],  # greedy: the answer is long
            cwd=ROOT,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C sends SIGINT
        )
        os.close(theirs)

    def type(self, line: str) -> None:
        os.write(self._ours, line.encode())

    def wait_for(self, text: str, n_characters: int = 0) -> str:
        """Read until ``text`` and ``n_characters`` behind it are shown. Returns the text before it."""
        end = time.monotonic() + 200
        while len(self.shown.partition(text)[2]) < n_characters or text not in self.shown:
            assert time.monotonic() < end, self.shown
            self.shown += os.read(self._ours, 1024).decode()
        before, _, self.shown = self.shown.partition(text)
        return before


@pytest.mark.parametrize("stop", ["/stop\n", "\x03"])
def test_an_answer_is_stopped_and_the_conversation_goes_on(stop: str) -> None:
    terminal = Terminal()
    try:
        terminal.wait_for("> ")
        question = "Write a long story about the sea."
        terminal.type(f"{question}\n")
        terminal.wait_for(question, n_characters=40)
        terminal.type(stop)
        # A token has about four characters.
        assert len(terminal.wait_for("> ")) < 2 * N_TOKENS
        terminal.type("Hello\n")
        terminal.wait_for("Hello", n_characters=4)
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(120) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
