"""Splits text into words of the full-text index.

SQLite's tokenizer has three defects. Text without spaces becomes one word. Part numbers become frequent
fragments. "ё" differs from "е", and "й" from "и". So this module splits the text, and SQLite only splits the
result at spaces.
"""

from __future__ import annotations

import functools
import re
import threading
import unicodedata

import snowballstemmer  # type: ignore[import-untyped]

MAX_WORD_LENGTH = 64
"""Characters. Longer runs are data, not words."""

TOKENIZER = "unicode61 remove_diacritics 0 categories 'L* N* M* Co' tokenchars '_'"
"""SQLite tokenizer that keeps these words unchanged."""

# Combining marks, such as Indian vowel signs, are part of a word; \w does not match them.
_MARKS = "".join(
    chr(code)
    for first, last in ((0x0370, 0x1DFF), (0x3099, 0x309A), (0xA66F, 0xABFF))
    for code in range(first, last + 1)
    if unicodedata.category(chr(code))[0] == "M"
)
_WORD_CHARACTER = rf"(?:[^\W_]|[{_MARKS}])"
_TERM = re.compile(rf"{_WORD_CHARACTER}+(?:[-./_:+]{_WORD_CHARACTER}+)*")
_WORD = re.compile(rf"{_WORD_CHARACTER}+")
# Chinese, Japanese kana, Thai, Lao, Burmese, Khmer: no spaces between words.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+)"
)
_ENGLISH = re.compile("[a-z]{3,}")
_STEMMER = snowballstemmer.stemmer("english")
_stemming = threading.Lock()  # a stemmer is not thread-safe
_ACCENTS = re.compile("[\u0300-\u036f]")


def split_into_words(text: str) -> list[str]:
    """The words of a text in order, without case, accents and English suffixes.

    Runs of a script without spaces become bigrams of characters. Terms with digits and inner punctuation
    ("XK-4471-B", "192.168.7.4") become their parts plus a word for the whole.
    """
    if not text.isascii():
        bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
        text = unicodedata.normalize("NFC", bare)
    words: list[str] = []
    for term in _TERM.findall(text.casefold()):
        if term.isascii() and term.isalnum():  # nearly all
            words.append(_stem(term))
            continue
        parts = _WORD.findall(term)
        for part in parts:
            words += [_stem(part)] if part.isascii() else _pairs(part)
        if len(parts) > 1 and any(character.isdigit() for character in term):
            # With letters, the whole also matches "XK4471B". Digits only keep a separator: 1.5 is not 15.
            words.append(("" if any(character.isalpha() for character in term) else "_").join(parts))
    return [word for word in words if len(word) <= MAX_WORD_LENGTH]


@functools.lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    """Porter 2 stem of an English word: "open" for "opened" and "opens"."""
    if not _ENGLISH.fullmatch(word):
        return word
    with _stemming:
        return str(_STEMMER.stemWord(word))


def _pairs(word: str) -> list[str]:
    pieces: list[str] = []
    for number, run in enumerate(_UNSPACED.split(word)):
        if number % 2 == 0 or len(run) == 1:
            pieces += [run] if run else []
        else:
            pieces += [run[at : at + 2] for at in range(len(run) - 1)]
    return pieces
