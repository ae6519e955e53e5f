"""Drafts against a plain search, and how their length and the rests follow from what becomes of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.prompt_lookup import PromptLookup

ENOUGH = 100  # tokens: a limit that limits nothing


def drafts(text: list[int], prompt: int, lookup: PromptLookup) -> Iterator[tuple[int, list[int], int]]:
    """Decode ``text`` behind its first tokens as an engine would: position, draft, accepted of each step."""
    at = prompt
    while at < len(text):
        draft = lookup.propose(text[:at], limit=len(text) - at - 1)
        accepted = 0
        while accepted < len(draft) and draft[accepted] == text[at + accepted]:
            accepted += 1
        lookup.report(len(draft), accepted)
        yield at, draft, accepted
        at += accepted + 1


def expected_draft(text: list[int], length: int) -> list[int]:
    """The draft of at most ``length`` tokens by its definition, searched for place by place."""
    for n in (4, 3):
        for place in range(len(text) - 1, n - 1, -1):
            if text[place - n : place] == text[-n:]:
                while not (place >= 2 * length and text[place - 2 * length : place] == text[-2 * length :]):
                    length //= 2
                grown = list(text)
                for i in range(length):
                    grown.append(grown[place + i])
                return grown[len(text) :]
    return []


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=30),
    st.integers(1, 20),
)
def test_a_draft_continues_the_latest_place_that_is_like_the_end(pieces: list[list[int]], limit: int) -> None:
    lookup, text, length = PromptLookup(), [], 1
    for piece in pieces:
        text += piece
        draft = lookup.propose(text, limit)
        assert draft == expected_draft(text, min(limit, length))
        lookup.report(len(draft), len(draft))
        if draft:
            length = min(16, max(length, 2 * len(draft)))


def test_the_first_output_tokens_find_the_prompt() -> None:
    prompt = [10, 11, 12, 13, 14, 15, 16, 90, 91, 11, 12]
    assert PromptLookup().propose([*prompt, 13], ENOUGH) == [14]


def test_the_end_of_the_text_does_not_find_itself() -> None:
    text = list(range(50))
    lookup = PromptLookup()
    assert all(lookup.propose(text[:n], ENOUGH) == [] for n in range(len(text) + 1))


def test_two_tokens_alike_are_no_match() -> None:
    assert PromptLookup().propose([1, 2, 3, 4, 5, 6, 2, 3], ENOUGH) == []


def test_four_tokens_alike_go_before_three_that_are_nearer() -> None:
    assert PromptLookup().propose([1, 2, 3, 4, 70, 9, 2, 3, 4, 80, 1, 2, 3, 4], ENOUGH) == [70]


def test_of_equal_places_the_latest_counts() -> None:
    assert PromptLookup().propose([2, 3, 4, 70, 2, 3, 4, 80, 2, 3, 4], ENOUGH) == [80]


def test_nothing_is_drafted_that_is_of_no_use() -> None:
    lookup, text = PromptLookup(), [1, 2, 3] * 20
    assert lookup.propose(text, 0) == []
    lookup.report(8, 8)
    assert lookup.propose(text, 3) == [1, 2, 3]


@pytest.mark.parametrize("period", [1, 2, 7, 40])
def test_a_loop_gets_full_drafts(period: int) -> None:
    text = list(range(100, 100 + period)) * (1000 // period)
    steps = list(drafts(text, 50, PromptLookup(max_draft=16)))
    lengths = [len(draft) for _, draft, _ in steps]
    assert all(accepted == len(draft) for _, draft, accepted in steps)
    assert lengths[:5] == sorted(lengths[:5])  # they grow …
    assert lengths[5:-1] == [16] * len(lengths[5:-1])  # … to the longest, and stay


def test_a_copy_of_the_prompt_is_drafted_almost_whole() -> None:
    passage = random.Random(3).choices(range(49_152), k=300)
    text = [*passage, *range(50_000, 50_020), *passage]
    steps = list(drafts(text, 320, PromptLookup()))
    assert sum(accepted for _, _, accepted in steps) > 270


def test_a_draft_is_at_most_half_as_long_as_the_match() -> None:
    lookup = PromptLookup()
    lookup.report(8, 8)  # 16 are allowed now
    passage = list(range(40))
    lengths = [len(lookup.propose([*passage, 99, *passage[:n]], ENOUGH)) for n in (3, 4, 8, 9, 16, 32, 39)]
    assert lengths == [1, 2, 4, 4, 8, 16, 16]


def test_a_draft_that_goes_wrong_halves_the_next() -> None:
    lookup, text = PromptLookup(), [1, 2, 3] * 20
    lookup.report(8, 8)
    lengths = []
    for _ in range(6):
        draft = lookup.propose(text, ENOUGH)
        lengths.append(len(draft))
        lookup.report(len(draft), min(1, len(draft) - 1) if len(draft) > 1 else 1)
        text = [*text, text[-3]]
    assert lengths == [16, 8, 4, 2, 1, 2]


def rests(lookup: PromptLookup, n: int, accept: Callable[[int], int]) -> list[int]:
    """The tokens without a draft between ``n`` drafts on a text that always has a match.

    ``accept`` says how many of the i-th draft's tokens are right.
    """
    text, lengths, since = [1, 2, 3] * 20, [], 0
    while len(lengths) < n:
        draft = lookup.propose(text, ENOUGH)
        if draft:
            lookup.report(len(draft), accept(len(lengths)))
            lengths.append(since)
            since = -1  # the step of the draft itself yields a token too
        since += 1
        text.append(text[-3])
    return lengths


def test_rests_double_up_to_a_bound() -> None:
    assert rests(PromptLookup(), 9, lambda i: 0) == [0, 2, 4, 8, 16, 32, 64, 64, 64]


def test_a_success_makes_the_rests_short_again() -> None:
    # Of the fifth draft a token is right, of all others none.
    assert rests(PromptLookup(), 8, lambda i: int(i == 4)) == [0, 2, 4, 8, 16, 0, 2, 4]


@pytest.mark.parametrize("vocabulary", [12, 100, 49_152])
def test_text_without_repetition_pays_nearly_nothing(vocabulary: int) -> None:
    text = random.Random(vocabulary).choices(range(vocabulary), k=6000)
    steps = list(drafts(text, 2000, PromptLookup()))
    assert sum(len(draft) - accepted for _, draft, accepted in steps) < 0.04 * 4000
    assert sum(bool(draft) for _, draft, _ in steps) < 0.05 * len(steps)


@pytest.mark.parametrize(("proposed", "accepted"), [(2, 3), (0, 1), (2, -1)])
def test_a_report_that_cannot_be(proposed: int, accepted: int) -> None:
    with pytest.raises(ValueError, match=f"n_accepted={accepted}: should be 0 to n_proposed={proposed}"):
        PromptLookup().report(proposed, accepted)


def test_a_longest_draft_of_none() -> None:
    with pytest.raises(ValueError, match="max_draft=0: should be at least 1"):
        PromptLookup(max_draft=0)
