"""Drafts equal those of a plain search. Accepted tokens determine their length and the pauses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.prompt_lookup import PromptLookup

NO_LIMIT = 100  # tokens: more than any draft


def drafts(text: list[int], prompt: int, lookup: PromptLookup) -> Iterator[tuple[int, list[int], int]]:
    """Decode ``text`` after its prompt like an engine. Yields position, draft and accepted tokens."""
    position = prompt
    while position < len(text):
        draft = lookup.propose(text[:position], limit=len(text) - position - 1)
        accepted = 0
        while accepted < len(draft) and draft[accepted] == text[position + accepted]:
            accepted += 1
        lookup.report(len(draft), accepted)
        yield position, draft, accepted
        position += accepted + 1


def expected_draft(text: list[int], length: int) -> list[int]:
    """The draft of at most ``length`` tokens by a plain search."""
    for n in (4, 3):
        for match in range(len(text) - 1, n - 1, -1):
            if text[match - n : match] == text[-n:]:
                while not (match >= 2 * length and text[match - 2 * length : match] == text[-2 * length :]):
                    length //= 2
                extended = list(text)
                for i in range(length):
                    extended.append(extended[match + i])
                return extended[len(text) :]
    return []


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=30),
    st.integers(1, 20),
)
def test_a_draft_continues_the_latest_match_of_the_end(pieces: list[list[int]], limit: int) -> None:
    lookup, text, length = PromptLookup(), [], 1
    for piece in pieces:
        text += piece
        draft = lookup.propose(text, limit)
        assert draft == expected_draft(text, min(limit, length))
        lookup.report(len(draft), len(draft))
        if draft:
            length = min(16, max(length, 2 * len(draft)))


def test_the_first_output_token_finds_a_match_in_the_prompt() -> None:
    prompt = [10, 11, 12, 13, 14, 15, 16, 90, 91, 11, 12]
    assert PromptLookup().propose([*prompt, 13], NO_LIMIT) == [14]


def test_text_without_repetition_has_no_draft() -> None:
    text = list(range(50))
    lookup = PromptLookup()
    assert all(lookup.propose(text[:n], NO_LIMIT) == [] for n in range(len(text) + 1))


def test_two_equal_tokens_are_no_match() -> None:
    assert PromptLookup().propose([1, 2, 3, 4, 5, 6, 2, 3], NO_LIMIT) == []


def test_four_equal_tokens_precede_three_nearer_ones() -> None:
    assert PromptLookup().propose([1, 2, 3, 4, 70, 9, 2, 3, 4, 80, 1, 2, 3, 4], NO_LIMIT) == [70]


def test_the_latest_of_equal_matches_is_used() -> None:
    assert PromptLookup().propose([2, 3, 4, 70, 2, 3, 4, 80, 2, 3, 4], NO_LIMIT) == [80]


def test_a_draft_is_no_longer_than_the_limit() -> None:
    lookup, text = PromptLookup(), [1, 2, 3] * 20
    assert lookup.propose(text, 0) == []
    lookup.report(8, 8)
    assert lookup.propose(text, 3) == [1, 2, 3]


@pytest.mark.parametrize("period", [1, 2, 7, 40])
def test_drafts_in_a_loop_reach_the_maximum(period: int) -> None:
    text = list(range(100, 100 + period)) * (1000 // period)
    steps = list(drafts(text, 50, PromptLookup(max_draft=16)))
    lengths = [len(draft) for _, draft, _ in steps]
    assert all(accepted == len(draft) for _, draft, accepted in steps)
    assert lengths[:5] == sorted(lengths[:5])  # the length doubles …
    assert lengths[5:-1] == [16] * len(lengths[5:-1])  # … up to the maximum


def test_most_of_a_copied_passage_is_drafted() -> None:
    passage = random.Random(3).choices(range(49_152), k=300)
    text = [*passage, *range(50_000, 50_020), *passage]
    steps = list(drafts(text, 320, PromptLookup()))
    assert sum(accepted for _, _, accepted in steps) > 270


def test_a_draft_is_at_most_half_as_long_as_the_match() -> None:
    lookup = PromptLookup()
    lookup.report(8, 8)  # now 16 tokens are allowed
    passage = list(range(40))
    lengths = [len(lookup.propose([*passage, 99, *passage[:n]], NO_LIMIT)) for n in (3, 4, 8, 9, 16, 32, 39)]
    assert lengths == [1, 2, 4, 4, 8, 16, 16]


def test_a_rejected_token_halves_the_next_draft() -> None:
    lookup, text = PromptLookup(), [1, 2, 3] * 20
    lookup.report(8, 8)
    lengths = []
    for _ in range(6):
        draft = lookup.propose(text, NO_LIMIT)
        lengths.append(len(draft))
        lookup.report(len(draft), min(1, len(draft) - 1) if len(draft) > 1 else 1)
        text = [*text, text[-3]]
    assert lengths == [16, 8, 4, 2, 1, 2]


def pauses(lookup: PromptLookup, n: int, accept: Callable[[int], int]) -> list[int]:
    """The number of tokens before each of ``n`` drafts, on a text that always has a match.

    ``accept`` returns the number of accepted tokens of the i-th draft.
    """
    text, lengths, n_tokens = [1, 2, 3] * 20, [], 0
    while len(lengths) < n:
        draft = lookup.propose(text, NO_LIMIT)
        if draft:
            lookup.report(len(draft), accept(len(lengths)))
            lengths.append(n_tokens)
            n_tokens = -1  # the step of a draft generates a token
        n_tokens += 1
        text.append(text[-3])
    return lengths


def test_pauses_double_up_to_a_maximum() -> None:
    assert pauses(PromptLookup(), 9, lambda i: 0) == [0, 2, 4, 8, 16, 32, 64, 64, 64]


def test_an_accepted_token_resets_the_pause() -> None:
    # One token of the fifth draft is accepted, and none of the others.
    assert pauses(PromptLookup(), 8, lambda i: int(i == 4)) == [0, 2, 4, 8, 16, 0, 2, 4]


@pytest.mark.parametrize("vocabulary", [12, 100, 49_152])
def test_random_text_has_few_rejected_drafts(vocabulary: int) -> None:
    text = random.Random(vocabulary).choices(range(vocabulary), k=6000)
    steps = list(drafts(text, 2000, PromptLookup()))
    assert sum(len(draft) - accepted for _, draft, accepted in steps) < 0.04 * 4000
    assert sum(bool(draft) for _, draft, _ in steps) < 0.05 * len(steps)


@pytest.mark.parametrize(("proposed", "accepted"), [(2, 3), (0, 1), (2, -1)])
def test_an_impossible_report_is_rejected(proposed: int, accepted: int) -> None:
    with pytest.raises(ValueError, match=f"n_accepted={accepted}: should be 0 to n_proposed={proposed}"):
        PromptLookup().report(proposed, accepted)


def test_a_maximum_draft_of_0_is_rejected() -> None:
    with pytest.raises(ValueError, match="max_draft=0: should be at least 1"):
        PromptLookup(max_draft=0)
