"""Noisy and target hold the two texts in the same slots, and what needn't change doesn't."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.editing.alignment import align, capacity, changed_blocks, with_nulls

NULL = 99
words = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), max_size=14)


def flat(text: list[list[int]]) -> list[int]:
    return [t for w in text for t in w]


def text_of(slots: np.ndarray) -> list[int]:
    return slots[slots != NULL].tolist()


def singles(*tokens: int) -> list[list[int]]:
    return [[t] for t in tokens]


def test_a_null_after_every_n_tokens() -> None:
    assert with_nulls(np.arange(5), 2, NULL).tolist() == [0, 1, NULL, 2, 3, NULL, 4]
    assert with_nulls(np.arange(0), 2, NULL).tolist() == []
    assert [capacity(n, 8) for n in (8, 9, 16, 32)] == [8, 8, 15, 29]


@settings(deadline=None)
@given(words, words, st.integers(1, 9))
def test_dropping_nulls_gives_both_texts(before: list[list[int]], after: list[list[int]], every: int) -> None:
    found = align(before, after, every, NULL)
    if found is None:
        assert before != after
        return
    noisy, target = found
    assert len(noisy) == len(target)
    assert noisy.tolist() == with_nulls(np.array(flat(before), np.int64), every, NULL).tolist()
    assert text_of(target) == flat(after)
    if before == after:
        assert (noisy == target).all()


@settings(deadline=None)
@given(words, words, st.integers(1, 9), st.integers(1, 40))
def test_a_canvas_holds_a_beginning_of_both(
    before: list[list[int]], after: list[list[int]], every: int, slots: int
) -> None:
    found = align(before, after, every, NULL, slots)
    if found is None:
        assert before != after
        return
    noisy, target = found
    assert len(noisy) == len(target) == slots
    old, new = text_of(noisy), text_of(target)
    assert old == flat(before)[: capacity(slots, every)]
    assert new == flat(after)[: len(new)]
    if len(flat(before)) <= capacity(slots, every):
        assert new == flat(after)
    else:  # what follows the cut is the rest of the change, in both
        rest_old, rest_new = flat(before)[len(old) :], flat(after)[len(new) :]
        blocks = [b for b in changed_blocks(before, after) if b[1] > len(old) or b[0] >= len(old)]
        assert len(rest_new) - len(rest_old) == sum(a1 - a0 - (b1 - b0) for b0, b1, a0, a1 in blocks)


@settings(deadline=None)
@given(words, words)
def test_blocks_turn_one_text_into_the_other(before: list[list[int]], after: list[list[int]]) -> None:
    old, new, made, at = flat(before), flat(after), [], 0
    for b0, b1, a0, a1 in changed_blocks(before, after):
        made += old[at:b0] + new[a0:a1]
        at = b1
    assert made + old[at:] == new


@pytest.mark.parametrize(
    ("before", "after", "target"),
    [
        ([[1], [2, 3, 4], [5]], [[1], [6], [5]], [1, 6, NULL, NULL, 5]),  # shorter: from the left
        ([[1], [1], [2]], [[1], [2]], [1, NULL, 2]),  # the second of a doubled word goes
        (singles(2, 1, 3), singles(1, 2, 3), [1, 2, 3]),  # swapped words stay where they are
    ],
)
def test_words_that_change_take_their_own_slots(
    before: list[list[int]], after: list[list[int]], target: list[int]
) -> None:
    found = align(before, after, 8, NULL)
    assert found is not None
    assert found[1].tolist() == target


def test_what_is_missing_moves_the_rest_to_its_own_null() -> None:
    before, after = singles(*range(8)), singles(0, 1, 50, *range(2, 8))
    found = align(before, after, 4, NULL)
    assert found is not None
    assert found[0].tolist() == [0, 1, 2, 3, NULL, 4, 5, 6, 7, NULL]
    assert found[1].tolist() == [0, 1, 50, 2, 3, 4, 5, 6, 7, NULL]
    found = align(
        before, singles(*range(4), 50, *range(4, 8)), 4, NULL
    )  # on the border: into the null before it
    assert found is not None
    assert found[1].tolist() == [0, 1, 2, 3, 50, 4, 5, 6, 7, NULL]
    found = align(before, singles(0, 50, 51, *range(1, 8)), 4, NULL)  # two: on into the next segment
    assert found is not None
    assert found[1].tolist() == [0, 50, 51, *range(1, 8)]
    assert align(before, singles(0, 50, 51, 52, *range(1, 8)), 4, NULL) is None


def test_what_stays_never_moves_to_the_left() -> None:
    """Into room that a shorter word leaves: what is missing further on must find room of its own."""
    before, after = [[1, 2, 3], [4], [5], [6]], [[7], [4], [5], [50], [6]]
    assert align(before, after, 8, NULL) is None
    found = align(before, after, 8, NULL, 8)
    assert found is not None
    assert found[1].tolist() == [7, NULL, NULL, 4, 5, 50, 6, NULL]


def test_a_change_across_the_cut_is_refused() -> None:
    before, after = [[1], [2], [3, 4], [5]], [[1], [2], [6, 7], [5]]
    assert align(before, after, 8, NULL, 3) is None
    found = align(before, after, 8, NULL, 4)
    assert found is not None
    assert found[1].tolist() == [1, 2, 6, 7]
