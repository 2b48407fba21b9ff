"""States of the canvas in adaptation: what is shown, what is due, and who teaches it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.training.adaptation_canvases import Drafts, Tokens, draw
from redraft.training.adaptation_recipe import Losses
from redraft.training.packing import Row

MASK, NULL, EOS = 99, 98, 1
TOKENS = Tokens(MASK, NULL, (EOS,))
DRAFT, PREFIX, REVEALED, HOLE = range(4)


def row(lengths: list[int], whole: bool = True, padding: int = 3) -> Row:
    tokens, document, position = [], [], []
    for number, length in enumerate(lengths):
        text = list(range(10, 10 + length))
        tokens += [*text[:-1], EOS if whole else text[-1]]
        document += [number] * length
        position += list(range(length))
    pad = [0] * padding
    tokens, document, position = tokens + pad, document + [-1] * padding, position + pad
    arrays = (np.array(a, np.int64) for a in (tokens, document, position))
    return Row(*arrays, np.array(document) >= 0, 0)


def drawn(of: Row, kind: int, seed: int = 0, length: int = 8, count: int = 12, shift: bool = False) -> Drafts:
    kinds = np.full(count, kind)
    return draw(of, kinds, length, Losses(decay=4), TOKENS, np.random.default_rng(seed), shift)


def at(of: Row, drafts: Drafts, n: int) -> int:
    """The row's token where canvas n starts."""
    return int(np.flatnonzero((of.document == drafts.document[n]) & (of.position == drafts.position[n]))[0])


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=4)


@settings(deadline=None)  # a busy machine is no fault
@given(lengths, st.integers(0, 3), st.integers(0, 99), st.booleans(), st.integers(2, 9))
def test_every_state_shows_and_asks_for_what_it_should(
    sizes: list[int], kind: int, seed: int, whole: bool, length: int
) -> None:
    of = row(sizes, whole)
    drafts = drawn(of, kind, seed, length)
    for n in np.flatnonzero(drafts.document >= 0):
        anchor = at(of, drafts, n)
        assert drafts.position[n] >= 1  # some text comes before it
        assert of.document[anchor] == drafts.document[n]
        visible = drafts.shown[n] != MASK
        assert (drafts.shown[n] == drafts.target[n])[visible].all()
        supervised = (drafts.weight[n] > 0) | (drafts.fill[n] > 0)
        assert not (supervised & visible).any()
        assert not (drafts.locked[n] & ~visible).any()
        assert not ((drafts.weight[n] > 0) & (drafts.fill[n] > 0)).any()
        for j in np.flatnonzero(drafts.teacher[n] >= 0):
            teacher = drafts.teacher[n, j]
            assert of.tokens[teacher + 1] == drafts.target[n, j]
            assert of.document[teacher] == drafts.document[n]
            assert not visible[j + 1 :].any()  # else the canvas knows more than the AR self
        if not whole:  # a document that was cut doesn't end here
            assert not (supervised & (drafts.target[n] == NULL)).any() or kind == HOLE
    assert (drafts.shown[drafts.document < 0] == MASK).all()
    assert (drafts.weight[drafts.document < 0] == 0).all()


def test_a_draft_shows_nothing_and_weighs_by_place() -> None:
    of = row([20])
    drafts = drawn(of, DRAFT)
    assert (drafts.shown == MASK).all()
    first = drafts.weight[drafts.document >= 0][0]
    np.testing.assert_allclose(first[:4], np.exp(-np.arange(4) / 4), rtol=1e-6)


def test_after_a_whole_documents_end_nulls_are_due_and_after_a_cut_nothing_is() -> None:
    for whole in (True, False):
        of = row([6], whole)
        drafts = drawn(of, DRAFT)
        n = int(np.argmax(drafts.position))
        held = 6 - int(drafts.position[n])
        assert (drafts.target[n, held:] == NULL).all()
        assert (drafts.weight[n, held:] > 0).all() == whole
        assert (drafts.teacher[n, held:] == -1).all()


def test_the_weights_restart_behind_a_visible_prefix() -> None:
    drafts = drawn(row([30]), PREFIX)
    for n in range(len(drafts.shown)):
        visible = drafts.shown[n] != MASK
        prefix = int(visible.sum())
        assert 1 <= prefix < 8
        assert visible[:prefix].all()
        assert drafts.weight[n, prefix] == 1


def test_early_slots_are_revealed_more_often_and_both_kinds_of_teaching_occur() -> None:
    drafts = drawn(row([30]), REVEALED, count=400)
    shown = (drafts.shown != MASK).mean(0)
    assert shown[0] > 2 * shown[4] > 0
    assert (drafts.fill > 0).any()
    assert (drafts.weight > 0).any()


def test_holes_have_locked_text_and_surplus_slots() -> None:
    drafts = drawn(row([30]), HOLE, count=100)
    assert drafts.locked.any()
    assert (drafts.weight == 0).all()
    assert ((drafts.target == NULL) & (drafts.fill > 0)).any()
    assert (drafts.fill > 0).any(1).all()


def test_with_a_shift_the_first_slot_is_nobodys_lesson() -> None:
    for kind in range(4):
        drafts = drawn(row([30]), kind, shift=True)
        assert (drafts.weight[:, 0] == 0).all()
        assert (drafts.fill[:, 0] == 0).all()


@pytest.mark.parametrize("sizes", [[1], [2], [1, 1, 1]])
def test_text_too_short_for_a_canvas_gives_none(sizes: list[int]) -> None:
    assert (drawn(row(sizes), DRAFT).document == -1).all()
