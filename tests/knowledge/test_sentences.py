"""Splitting text into sentences."""

from __future__ import annotations

import pytest

from app.knowledge.sentences import sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It opens at 6.40. Then it closes! Why?", ["It opens at 6.40. ", "Then it closes! ", "Why?"]),
        ("Ask Dr. Wren, e.g. Today.", ["Ask Dr. Wren, e.g. Today."]),
        ("これは橋です。六時に開きます！本当？", ["これは橋です。", "六時に開きます！", "本当？"]),
        ("a line\nof prose. Another", ["a line\nof prose. ", "Another"]),
        ("- one\n- two", ["- one\n", "- two"]),
        ("Pump | Flow\nXK-1 | 3", ["Pump | Flow\n", "XK-1 | 3"]),
        ("1. First item. 2. Second.", ["1. First item. ", "2. Second."]),
    ],
)
def test_text_is_split_into_sentences(text: str, expected: list[str]) -> None:
    assert list(sentences(text)) == expected
