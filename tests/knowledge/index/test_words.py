"""Search by words in any script, part numbers and arbitrary text."""

from __future__ import annotations

import pytest

from app.knowledge.index.store import Store
from tests.knowledge.index.stores import (
    put,
    search_words,
    some_vectors,
)

TEXTS = [
    "Order the pump XK-4471-B from the yard.",
    "Order the pump XK-4472-B from the yard.",
    "The gauge answers at 192.168.7.4 at night.",
    "The gauge answers at 192.168.4.7 at night.",
    "Ёлка стоит у моста.",
    "La crème brûlée coûte 5 €.",
    "水道橋は六時に開きます。",
    "新しい駅は七時に閉まります。",
    "पुल सुबह खुलता है।",
    "สะพานเปิดหกโมงเช้า",
    "Η γέφυρα ανοίγει στις έξι.",
    "The lanterns are hung out at dusk.",
]


@pytest.mark.parametrize(
    ("query", "number"),
    [
        ("what is XK-4471-B?", 0),
        ("xk4472b", 1),
        ("XK 4471 B", 0),
        ("who is 192.168.7.4", 2),
        ("192.168.4.7?", 3),
        ("елка", 4),
        ("CREME BRULEE", 5),
        ("水道橋", 6),
        ("駅はどこ", 7),
        ("पुल", 8),
        ("สะพาน", 9),
        ("ΓΕΦΥΡΑ", 10),
        ("hanging a lantern", 11),
    ],
)
def test_words_of_any_script_and_part_numbers_are_found(store: Store, query: str, number: int) -> None:
    put(store, "a", TEXTS)
    assert search_words(store, query)[:1] == [TEXTS[number]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t",
        '"',
        "'; drop table chunks; --",
        "NEAR(",
        "a AND OR NOT (",
        "heron*",
        "text:heron ^heron {heron}",
        "\0",
        "he\0ron",
        "🦆🦆",
        "\ud800",
        "the of and",
        "x" * 100_000,
        "heron " * 20_000,
        " ".join(f"word{n}" for n in range(20_000)),
        "-" * 10_000,
        "_" * 100,
        "𝒽𝑒𝓇𝑜𝓃 ﬁ ß İ",
        "٣٤ ५६",
    ],
)
def test_any_text_is_a_valid_query(store: Store, text: str) -> None:
    put(store, "a", ["a heron", "the crane of the yard", "and"])
    assert len(store.search(some_vectors(1)[0], text, top_k=3, threshold=-1)) == 3


def test_a_rare_word_is_found_beside_frequent_ones(store: Store) -> None:
    for file in range(7):
        put(store, f"{file}", [f"the yard has the number n{file}x{n}" for n in range(1000)])
    assert search_words(store, "what number has the yard n3x77", top_k=1) == ["the yard has the number n3x77"]
    assert search_words(store, "the yard") == []  # each word is in more chunks than a search reads
