"""States of the canvas in adaptation: what is shown, what is due, and who teaches it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.training.adaptation_canvases import (
    DRAFT,
    HOLE,
    PREFIX,
    REVEALED,
    Drafts,
    Tokens,
    draw,
    draw_kinds,
)
from redraft.training.adaptation_recipe import Losses, States
from redraft.training.packing import Row

MASK, NULL, EOS = 99, 98, 1
TOKENS = Tokens(MASK, NULL, (EOS,))


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


def states_of(states: States, seed: int, rows: int = 3) -> list[tuple[list[int], int]]:
    """Of each row of a step the states of its canvases, and how many slots these have."""
    found = []
    for row_ in range(rows):
        rng = np.random.default_rng((seed, row_ + 1))
        kinds, length = draw_kinds(states, rng, np.random.default_rng((seed, 0)))
        found.append((kinds.tolist(), length))
    return found


def test_steps_hold_drafts_alone_or_none_where_they_are_kept_apart() -> None:
    """The shares are the recipe's; what isn't a draft has the canvas's full length, in about as many slots."""
    states = States(length=8, slots=4, per_row=12, draft=0.6, prefix=0.0, revealed=0.1, hole=0.3, apart=True)
    steps = [states_of(states, seed) for seed in range(300)]
    drafts = [step for step in steps if step[0][0][0] == DRAFT]
    others = [step for step in steps if step[0][0][0] != DRAFT]
    assert 0.5 < len(drafts) / len(steps) < 0.7
    assert all(kinds == [DRAFT] * 12 and length == 4 for step in drafts for kinds, length in step)
    assert all(len(kinds) == 6 and length == 8 for step in others for kinds, length in step)
    drawn_ = np.concatenate([kinds for step in others for kinds, _ in step])
    assert set(drawn_) == {REVEALED, HOLE}
    assert 0.7 < (drawn_ == HOLE).mean() < 0.8
    together = states_of(states.model_copy(update={"apart": False}), 0, rows=100)
    kinds = np.concatenate([kinds for kinds, _ in together])
    assert {length for _, length in together} == {4}
    assert 0.5 < (kinds == DRAFT).mean() < 0.7


@pytest.mark.parametrize(("draft", "kind"), [(1.0, DRAFT), (0.0, HOLE)])
def test_a_share_of_all_or_none_is_that(draft: float, kind: int) -> None:
    states = States(length=8, draft=draft, prefix=0, revealed=0, hole=1 - draft, apart=True)
    assert all(set(kinds) == {kind} for seed in range(20) for kinds, _ in states_of(states, seed))


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
