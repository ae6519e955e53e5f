"""The picture of the web page in the README. ``UPDATE_PICTURES=1`` replaces it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from tests.ui.chat_page import ChatPage

SIZE = {"width": 1200, "height": 800}
QUESTIONS = (
    "Write a Python function that adds two numbers.",
    "Make a Markdown table with the animal and its sound: cat, dog, cow.",
)
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "page.png"


def test_a_picture_of_a_conversation_can_be_made(chat: ChatPage, tmp_path: Path) -> None:
    chat.page.set_viewport_size(SIZE)
    for question in QUESTIONS:
        chat.ask(question)
        chat.wait_until_done()
    path = PICTURE if os.environ.get("UPDATE_PICTURES") == "1" else tmp_path / PICTURE.name
    path.parent.mkdir(exist_ok=True)
    chat.page.screenshot(path=path, animations="disabled", caret="hide")
    header = path.read_bytes()[:24]
    assert struct.unpack(">II", header[16:24]) == (SIZE["width"], SIZE["height"])
    assert path.stat().st_size > 20_000, "the picture of an empty page is smaller"
