"""Events and lines of streams."""

from __future__ import annotations

import json

import pytest

from app.api.http.events import event
from app.api.ollama.answers import line


@pytest.mark.parametrize("text", ["a\u2028b", "\u2029", "\x85", "é \U0001f642 \u2028", "plain"])
def test_a_part_of_a_stream_has_no_line_break_of_unicode(text: str) -> None:
    for part, begin in ((event(text), "data: "), (line(text), "")):
        [only] = filter(None, part.decode().splitlines())  # splits at all line breaks of Unicode
        assert json.loads(only.removeprefix(begin)) == text
