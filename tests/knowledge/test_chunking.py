"""Documents are split into chunks within a number of tokens, under their headings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.knowledge.chunk import Chunk
from app.knowledge.chunking import embedded_text, split_into_chunks
from app.knowledge.reading.document import Block, Document


def count_words(text: str) -> int:
    """Count tokens like BERT: words, punctuation marks, and two special tokens."""
    return len(re.findall(r"\w+|[^\w\s]", text)) + 2


def split(
    *blocks: Block, max_tokens: int = 42, overlap: int = 0, n_tokens: Callable[[str], int] = count_words
) -> list[Chunk]:
    return [
        *split_into_chunks(
            Document(blocks), file="a.md", n_tokens=n_tokens, max_tokens=max_tokens, overlap=overlap
        )
    ]


def words(number: int, name: str = "word") -> str:
    return " ".join(f"{name}{index}" for index in range(number))


def test_sections_are_chunks_under_their_headings() -> None:
    chunks = split(
        Block(words(20, "intro")),
        Block("Bridges", 1),
        Block("Wren", 2),
        Block(words(20, "wren"), page=3),
        Block("Heron", 2),
        Block(words(20, "heron")),
        Block("Ferries", 1),
        Block(words(20, "ferry")),
    )
    assert [(chunk.position, chunk.heading, chunk.text.split()[0], chunk.page) for chunk in chunks] == [
        (0, "", "intro0", None),
        (1, "Bridges › Wren", "wren0", 3),
        (2, "Bridges › Heron", "heron0", None),
        (3, "Ferries", "ferry0", None),
    ]
    assert embedded_text(chunks[1]).startswith("Bridges › Wren\nwren0 ")
    assert embedded_text(chunks[0]) == chunks[0].text


def test_small_sections_under_one_heading_share_a_chunk() -> None:
    chunks = split(
        Block("Bridges", 1),
        Block("All of them."),
        Block("Wren", 2),
        Block("It opens at six."),
        Block("Heron", 2),
        Block("It opens at seven."),
        Block("Ferries", 1),
        Block("Trout", 2),
        Block("It leaves at ten."),
    )
    assert [(chunk.heading, chunk.text) for chunk in chunks] == [
        ("Bridges", "All of them.\n\nWren\n\nIt opens at six.\n\nHeron\n\nIt opens at seven."),
        ("Ferries › Trout", "It leaves at ten."),
    ]


def test_headings_without_text_are_in_a_chunk() -> None:
    chunks = split(
        Block("Handbook", 1),
        Block("Bridges", 2),
        Block("Old ones", 3),
        Block("Ferries", 2),
        Block("Lost", 3),
        Block("Trout", 3),
        Block(words(20)),
        Block("Afterword", 2),
    )
    assert [(chunk.heading, chunk.text.split("\n\n")[0]) for chunk in chunks] == [
        ("Handbook › Bridges", "Old ones"),
        ("Handbook › Ferries › Trout", "Lost"),
        ("Handbook", "Afterword"),
    ]


def test_long_sections_are_split_between_paragraphs_or_sentences() -> None:
    paragraphs = [words(25, name) + "." for name in ("a", "b", "c")]
    chunks = split(*map(Block, paragraphs))
    assert [chunk.text for chunk in chunks] == paragraphs
    sentences_ = [f"S{index} {words(10)}." for index in range(8)]
    chunks = split(Block(" ".join(sentences_)))
    assert [chunk.text for chunk in chunks] == [
        " ".join(sentences_[:3]),
        " ".join(sentences_[3:6]),
        " ".join(sentences_[6:]),
    ]


def test_the_overlap_consists_of_whole_sentences_of_a_section() -> None:
    first = [f"S{index} {words(10)}." for index in range(5)]
    chunks = split(Block(" ".join(first)), Block("Next", 1), Block(words(30)), overlap=15)
    assert [chunk.text for chunk in chunks] == [
        " ".join(first[:3]),
        " ".join(first[2:5]),
        words(30),
    ]
    assert split(Block(" ".join(first)), overlap=11)[1].text == " ".join(first[3:])


def test_a_word_is_split_only_if_it_is_too_large() -> None:
    characters = split(Block("x" * 1000), n_tokens=len, max_tokens=300)
    assert "".join(chunk.text for chunk in characters) == "x" * 1000
    assert all(len(chunk.text) <= 300 for chunk in characters)
    assert len(characters) <= 5
    long = words(1000)
    chunks = split(Block(long))
    assert " ".join(chunk.text for chunk in chunks) == long
    assert len(chunks) <= 35


def test_a_long_word_of_one_token_is_several_chunks() -> None:
    chunks = split(Block("A" * 20_000))
    assert len(chunks) > 20
    assert "".join(chunk.text for chunk in chunks) == "A" * 20_000


def test_a_cluster_of_code_points_is_not_split() -> None:
    family = "👩\u200d👩\u200d👧"
    chunks = split(Block(family * 40), n_tokens=len, max_tokens=33)
    assert all(len(chunk.text) % len(family) == 0 for chunk in chunks)


def test_a_heading_that_is_too_long_is_text_of_one_chunk() -> None:
    title = words(30, "title")
    chunks = split(Block(title, 1), Block("Part", 2), Block(words(60)), Block("Other", 2), Block(words(30)))
    assert {chunk.heading for chunk in chunks} == {"Part", "Other"}
    assert sum("title0" in chunk.text for chunk in chunks) == 1
    assert all(count_words(embedded_text(chunk)) <= 42 for chunk in chunks)


def test_the_page_of_a_chunk_is_that_of_its_first_word() -> None:
    chunks = split(Block("Heading", 1, 1), Block(words(30, "a"), page=2), Block(words(30, "b"), page=3))
    assert [chunk.page for chunk in chunks] == [2, 3]


@pytest.mark.parametrize("max_tokens", [0, 2])
def test_limits_without_room_for_text_are_rejected(max_tokens: int) -> None:
    with pytest.raises(ValueError, match="have no room for text: 2 are special"):
        split(Block("a"), max_tokens=max_tokens)
    with pytest.raises(ValueError, match="overlap of 40 tokens is not within 0 to 39"):
        split(Block("a"), overlap=40)


@pytest.mark.parametrize(
    "block",
    [
        "The bridge opens at six, and closes at nine. " * 22_000,
        "word " * 200_000,
        "x" * 1_000_000,
        "- item of a list\n" * 60_000,
        "." * 1_000_000,
        " \n" * 500_000 + "x",
    ],
    ids=["sentences", "no end", "one word", "list", "dots", "blank"],
)
@pytest.mark.slow
def test_the_number_of_counted_characters_is_linear(block: str) -> None:
    calls = characters = 0

    def n_tokens(text: str) -> int:
        nonlocal calls, characters
        calls += 1
        characters += len(text)
        return count_words(text)

    chunks = split(Block(block), max_tokens=200, overlap=40, n_tokens=n_tokens)
    assert calls < 50_000 * max(len(block) / 1e6, 1)  # 20 µs each: one second per megabyte
    assert characters < 5 * len(block)
    assert chunks


PIECES = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(["Bridge", "opens.", "at", "六時。", "e.g.", "\n", "- x", "|", "é", "👩\u200d👧"]),
        max_size=60,
    ).map(" ".join),
)
BLOCKS = st.lists(
    st.builds(Block, PIECES.filter(lambda text: bool(text.strip())), st.sampled_from([0, 0, 0, 1, 2, 3, 6])),
    max_size=15,
)
# Additive and other counts of tokens.
COUNTERS = [
    count_words,
    len,
    lambda text: len(text) // 4 + 1,
    lambda text: len(text.encode("utf-8", "replace")),
]


@settings(max_examples=300, deadline=None)
@given(
    blocks=BLOCKS, max_tokens=st.integers(8, 60), overlap=st.integers(0, 5), counter=st.sampled_from(COUNTERS)
)
def test_random_documents_are_split_within_the_limit_without_loss(
    blocks: list[Block], max_tokens: int, overlap: int, counter: Callable[[str], int]
) -> None:
    chunks = split(*blocks, max_tokens=max_tokens, overlap=overlap, n_tokens=counter)
    assert chunks == split(*blocks, max_tokens=max_tokens, overlap=overlap, n_tokens=counter)
    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    for chunk in chunks:
        assert chunk.text == chunk.text.strip() != ""
        embedded = embedded_text(chunk)
        assert counter(embedded) <= max_tokens or is_cluster(chunk.text)
    # Without overlap and headings, the chunks have all characters in order.
    plain = [block for block in blocks if not block.level]
    texts_only = split(*plain, max_tokens=max_tokens, n_tokens=counter)
    assert letters(chunk.text for chunk in texts_only) == letters(block.text for block in plain)
    # With them, some characters are repeated.
    all_letters = iter(letters(chunk.text for chunk in chunks))
    assert all(letter in all_letters for letter in letters(block.text for block in plain))
    chunks = split(*blocks, max_tokens=max_tokens, n_tokens=counter)
    texts = letters(chunk.text for chunk in chunks)
    for block in blocks:
        if block.level:
            assert any(block.text in chunk.heading for chunk in chunks) or letters([block.text]) in texts


def is_cluster(text: str) -> bool:
    """Whether ``text`` is one character with its combining code points."""
    return all(
        unicodedata.combining(character) or character in "\u200d\ufe0e\ufe0f" or before == "\u200d"
        for before, character in pairwise(text)
    )


def letters(texts: Iterable[str]) -> str:
    return "".join("".join(texts).split())


def test_a_long_section_is_split_in_parts_under_one_heading() -> None:
    counted: list[str] = []

    def n_tokens(text: str) -> int:
        counted.append(text)
        return count_words(text)

    text = " ".join(f"Sentence number {index} is here." for index in range(5000))
    document = Document((Block("Bridges", 1), Block(text)))
    chunks = split_into_chunks(document, file="a.md", n_tokens=n_tokens, max_tokens=42, overlap=0)
    first = next(chunks)
    assert len(counted) < 4500, "the first chunk needs only a part of the section"
    everything = [first, *chunks]
    assert {chunk.heading for chunk in everything} == {"Bridges"}
    assert " ".join(chunk.text for chunk in everything) == text
    assert [chunk.position for chunk in everything] == [*range(len(everything))]
