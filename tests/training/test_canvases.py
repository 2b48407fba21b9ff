"""What canvases hold: text where it stands, nulls on the noisy side alone, locked slots that stay right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.training.batch import corrupt_canvases, times
from redraft.training.canvases import Canvases, lay
from redraft.training.packing import Row
from redraft.training.recipe import Canvas
from tests.training.toys import EOS, MASK, NULL, PLAIN, VOCAB, process


def row_of(*texts: list[int], length: int = 40, first: int = 0) -> Row:
    """Documents side by side; canvases may cover each from its token `first` on."""
    tokens, document = np.zeros(length, np.int64), np.full(length, -1)
    position, supervise, at = np.zeros(length, np.int64), np.zeros(length, bool), 0
    for number, text in enumerate(texts):
        end = at + len(text)
        tokens[at:end], document[at:end], position[at:end] = text, number, np.arange(len(text))
        supervise[at + first : end] = True
        at = end
    return Row(tokens, document, position, supervise, 0)


def laid(row: Row, length: int, seed: int = 0, count: int = 40, grid: bool = False, **kinds: Any) -> Canvases:
    of = PLAIN.model_copy(update=kinds)
    return lay(row, count, length, of, NULL, (EOS,), np.random.default_rng(seed), grid)


def text_at(row: Row, canvases: Canvases, i: int) -> list[int]:
    """The document from the canvas's anchor on."""
    inside = row.document == canvases.document[i]
    return row.tokens[inside][canvases.anchor[i] :].tolist()


kinds = st.fixed_dictionaries(
    {name: st.sampled_from([0.0, 0.5, 1.0]) for name in ("gap_share", "insert_share", "pin_share")}
)
texts = st.lists(
    st.lists(st.integers(1, NULL - 1), max_size=15).map(lambda t: [*t, EOS]), min_size=1, max_size=2
)


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(1, 9), kinds, st.integers(0, 99), st.booleans())
def test_a_canvas_holds_the_text_that_follows_and_nulls(
    documents: list[list[int]], length: int, shares: dict[str, float], seed: int, grid: bool
) -> None:
    row = row_of(*documents)
    canvases = laid(row, length, seed, insert_every=2, grid=grid, **shares)
    used = np.flatnonzero(canvases.document >= 0)
    assert len(used)
    for i in used:
        text = text_at(row, canvases, i)
        held = canvases.target[i][canvases.target[i] != NULL].tolist()
        assert held == text[: len(held)]
        assert held
        assert not canvases.locked[i].all()
        assert MASK not in canvases.target[i]
        if len(held) < length and EOS not in held:
            assert shares["gap_share"] or shares["insert_share"]  # plain canvases have nulls after EOS alone
    unused = canvases.document < 0
    assert (canvases.target[unused] == NULL).all()
    assert not canvases.locked[unused].any()


@pytest.mark.parametrize("grid", [False, True])
def test_plain_canvases_cover_every_token(grid: bool) -> None:
    row = row_of([*range(1, 15), EOS], [3, EOS])
    for seed in range(10):
        canvases = laid(row, 4, seed, grid=grid)
        covered = {
            (int(d), int(a) + j)
            for d, a in zip(canvases.document, canvases.anchor, strict=True)
            for j in range(4)
            if d >= 0
        }
        assert covered >= {(0, p) for p in range(15)} | {(1, p) for p in range(2)}
        for i in np.flatnonzero(canvases.document >= 0):
            after = text_at(row, canvases, i) + [NULL] * 4
            assert canvases.target[i].tolist() == after[:4]
        if grid:
            assert not (canvases.anchor % 4).any()


def test_every_offset_is_a_start_sometimes() -> None:
    row = row_of([*range(1, 20), EOS])
    anchors = {int(a) for s in range(60) for a in laid(row, 4, s).anchor}
    assert anchors == set(range(20))


def test_more_canvases_than_places_are_drawn_evenly() -> None:
    row = row_of([*range(1, 20), EOS])
    every = [laid(row, 4, s, count=2) for s in range(300)]
    assert all((c.document >= 0).all() for c in every)
    assert all(c.anchor[0] < c.anchor[1] for c in every)
    late = np.mean([c.anchor >= 10 for c in every])
    assert 0.4 < late < 0.6


def test_no_canvas_runs_over_the_end_of_a_cut_text() -> None:
    cut = row_of([*range(1, 15)], [*range(1, 4)])  # neither ends with EOS
    for seed in range(20):
        for grid in (False, True):
            canvases = laid(cut, 4, seed, grid=grid)
            assert (canvases.document >= 0).any()
            assert NULL not in canvases.target[canvases.document >= 0]
            assert not (canvases.document == 1).any()


def test_canvases_keep_off_given_text() -> None:
    row = row_of([*range(1, 15), EOS], first=6)
    free = laid(row, 4)
    assert free.anchor[free.document >= 0].min() == 6
    grid = laid(row, 4, grid=True)
    assert grid.anchor[grid.document >= 0].tolist() == [4, 8, 12]
    assert grid.target[0].tolist() == [5, 6, 7, 8]
    assert grid.locked[:3].tolist() == [[True, True, False, False], [False] * 4, [False] * 4]


def test_insert_canvases_have_a_null_after_every_few_tokens() -> None:
    canvases = laid(row_of([*range(1, 20), EOS]), 6, insert_share=1.0, insert_every=2)
    assert canvases.target[0].tolist() == [1, 2, NULL, 3, 4, NULL]


def test_gaps_are_text_then_nulls_between_locked_runs() -> None:
    row = row_of([*range(1, 20), EOS])
    found_surplus = found_run = False
    for seed in range(50):
        canvases = laid(row, 8, seed, gap_share=1.0)
        for target, locked in zip(canvases.target, canvases.locked, strict=True):
            assert not locked[0] or canvases.document[0] < 0
            assert NULL not in target[locked]
            inner = np.flatnonzero(target == NULL)
            found_surplus |= bool(len(inner)) and EOS not in target[: inner[0]]
            found_run |= bool(locked.any())
    assert found_surplus
    assert found_run


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 999),
    st.sampled_from(["absorbing", "uniform", "hybrid"]),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.floats(0.001, 0.999),
)
def test_locked_slots_stay_and_something_is_corrupted(
    seed: int, kind: str, length: int, share: float, t: float
) -> None:
    rng = np.random.default_rng(seed)
    row = row_of([*rng.integers(1, NULL, 12).tolist(), EOS])
    canvases = laid(row, length, seed, count=6, pin_share=share, gap_share=share / 2, draft_share=share)
    noise = process(kind, vocab=VOCAB)
    noisy, time = corrupt_canvases(canvases, np.full(6, t), 2, noise, rng)
    tiled = canvases.repeated(2)
    assert noisy.shape == tiled.target.shape
    assert (noisy[tiled.locked] == tiled.target[tiled.locked]).all()
    used = tiled.document >= 0
    assert (noisy != tiled.target).any(1)[used].all()
    draft = canvases.draft
    assert time.tolist() == [*np.where(draft, 1.0, t), *np.full(6, 1 - t)]
    if kind != "uniform":
        drafted = noisy[:6][draft]
        assert (drafted[~canvases.locked[draft]] == MASK).all()
    one, _ = corrupt_canvases(canvases, np.full(6, t), 1, noise, rng)
    assert one.shape == canvases.target.shape


def test_the_second_copy_shows_what_the_first_hides() -> None:
    rng = np.random.default_rng(0)
    row = row_of([*rng.integers(1, NULL, 38).tolist(), EOS])
    canvases = laid(row, 8, count=5, pin_share=0.5)
    hidden: list[bool] = []
    for _ in range(200):
        t = rng.uniform(0.2, 0.8, 5)
        noisy, _ = corrupt_canvases(canvases, t, 2, process("absorbing"), rng)
        first, second = noisy[:5] == MASK, noisy[5:] == MASK
        # Exact complements on free slots but for the slot that a canvas without any noise is given.
        forced = (first & second).sum(1)
        assert (forced <= 1).all()
        assert ((first | second) == ~canvases.locked).all()
        whole = (first | canvases.locked).all(1) | (second | canvases.locked).all(1)
        assert whole[forced == 1].all()
        hidden += first[~canvases.locked].tolist()
    assert 0.45 < np.mean(hidden) < 0.6


def test_times_are_stratified_over_the_whole_batch() -> None:
    def drawn(first: int, count: int) -> np.ndarray:
        return times(count, first, 6, 5, np.random.default_rng(3))

    t = drawn(0, 6)
    assert sorted((t.reshape(-1) * 30).astype(int)) == list(range(30))
    assert np.array_equal(np.concatenate((drawn(0, 2), drawn(2, 4))), t)
    every = np.concatenate([times(1, 0, 1, 3, np.random.default_rng(s)).reshape(-1) for s in range(400)])
    assert abs(every.mean() - 0.5) < 0.02
    assert every.min() >= 1e-3
    assert every.max() <= 1 - 1e-3


def test_settings_count_as_shares() -> None:
    row = row_of([*range(1, 20), *range(1, 19), EOS], length=40)
    of = Canvas(lengths=[4], length_weights=[1], draft_share=0.25)
    drafts = [lay(row, 10, 4, of, NULL, (EOS,), np.random.default_rng(s)).draft for s in range(200)]
    assert abs(np.mean(drafts) - 0.25) < 0.04
