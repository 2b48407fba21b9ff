"""Where keys and values live: few copies, and memory that goes when its requests do."""

from __future__ import annotations

import gc
import os
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.denoiser.config import LAYOUTS
from redraft.denoiser.layouts import Rows, allowed, canvas_start, clean_start
from redraft.engine.backend import Pass
from redraft.engine.backends import onnx_cache
from redraft.engine.backends.onnx_backend import OnnxBackend, physical_cores
from redraft.engine.backends.onnx_rows import Share, visible
from tests.engine.onnx_models import denoiser, onnx, tokens

NONE = np.empty(0, np.int64)


@pytest.fixture(scope="module")
def backend() -> OnnxBackend:
    return onnx(denoiser())


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of live rows of each copy of a lane."""
    copied: list[int] = []
    move = onnx_cache.OnnxContext.move

    def counting(self: onnx_cache.OnnxContext, arena: onnx_cache.Arena, lane: int) -> None:
        copied.append(self.length)
        move(self, arena, lane)

    monkeypatch.setattr(onnx_cache.OnnxContext, "move", counting)
    return copied


def test_steps_copy_nothing(backend: OnnxBackend, moves: list[int]) -> None:
    """Alone never, together once; then encoding and denoising extend the lanes in place."""
    contexts = [backend.new_context(64) for _ in range(3)]
    for seed, context in enumerate(contexts):
        backend.forward([Pass(context, tokens(5 + seed, seed))])
    assert moves == []
    for seed in range(4):
        backend.forward([Pass(c, tokens(2, seed), canvas=tokens(8, seed)) for c in contexts])
        backend.forward([Pass(c, NONE, canvas=tokens(8)) for c in contexts])
    assert moves == [5, 6, 7]


def test_one_sits_out_one_leaves_one_joins(backend: OnnxBackend, moves: list[int]) -> None:
    contexts = [backend.new_context(64) for _ in range(4)]
    everyone = [Pass(c, tokens(3)) for c in contexts]
    backend.forward(everyone)
    assert len(moves) == 4
    backend.forward([Pass(contexts[i], tokens(2)) for i in (3, 0)])
    backend.forward([Pass(contexts[1], tokens(2))])
    backend.forward(everyone)
    assert len(moves) == 4
    joined = backend.new_context(64)
    backend.forward([Pass(c, tokens(1)) for c in (*contexts[:3], joined)])
    assert len(moves) == 4 + 4 + 1  # the one left behind moves out, so that the old arena can go


def test_a_newcomer_takes_the_lane_of_one_that_has_gone(backend: OnnxBackend, moves: list[int]) -> None:
    contexts = [backend.new_context(64) for _ in range(4)]
    backend.forward([Pass(c, tokens(3)) for c in contexts])
    arena = contexts[0].arena
    assert len(moves) == 4
    del contexts[1:3]
    newcomers = [backend.new_context(64) for _ in range(2)]
    for newcomer in newcomers:
        backend.forward([Pass(newcomer, tokens(7))])
    backend.forward([Pass(c, tokens(1)) for c in (*contexts, *newcomers)])
    assert moves[4:] == [7]  # one may stay where it is, as a group of its own
    assert (newcomers[1].arena, newcomers[1].lane) == (arena, 1)


def test_lanes_are_parted_by_length(backend: OnnxBackend, moves: list[int]) -> None:
    """Short contexts beside long ones: two arenas, a graph of two groups, and the bits of each context alone. As they
    grow, the arena that has become too short is the only one that is copied."""
    lengths = (5, 150, 9, 140, 52)
    alone, together = ([backend.new_context(256) for _ in lengths] for _ in range(2))
    for contexts in (alone, together):
        for seed, (context, length) in enumerate(zip(contexts, lengths, strict=True)):
            backend.forward([Pass(context, tokens(length, seed))])
    moves.clear()
    for step, count in enumerate((1, 2, 1, 3)):
        passes = [
            [Pass(c, tokens(count, step), "all", tokens(2 + i, step + i)) for i, c in enumerate(contexts)]
            for contexts in (alone, together)
        ]
        order = (3, 0, 4, 2, 1) if step % 2 else (1, 2, 0, 3, 4)
        results = dict(zip(order, backend.forward([passes[1][i] for i in order]), strict=True))
        assert len(moves) == (8 if step == 3 else 5)
        for i, p in enumerate(passes[0]):
            single = backend.forward([p])[0]
            assert np.array_equal(results[i].encode, single.encode)
            assert np.array_equal(results[i].canvas, single.canvas)
    assert {c.arena for c in together} == {together[0].arena, together[1].arena}
    assert [(c.arena.lanes, c.arena.rows) for c in together] == [(3, 128), (2, 192)] * 2 + [(3, 128)]
    assert 2 in {kind.groups for kind, _ in backend._runners}


def test_rows_that_nobody_wrote_may_hold_anything(
    backend: OnnxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is not cleared before it is read: what it happens to hold, NaN here, reaches no result."""

    def steps() -> list[np.ndarray]:
        contexts = [backend.new_context(8) for _ in range(4)]
        out = []
        for step in range(3):
            passes = [
                Pass(c, tokens(1 + 70 * (i == step), step + i), "all", tokens(3))
                for i, c in enumerate(contexts)
            ]
            out += [r.canvas for r in backend.forward(passes)]
            out += [r.canvas for r in backend.forward([passes[step]])]
        return out

    usual = steps()
    made = onnx_cache.Arena.__init__

    def spoilt(self: onnx_cache.Arena, *arguments: Any) -> None:
        made(self, *arguments)
        for array in self.arrays:
            array.fill(np.nan)

    monkeypatch.setattr(onnx_cache.Arena, "__init__", spoilt)
    assert all(np.array_equal(a, b) for a, b in zip(usual, steps(), strict=True))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=7), st.integers(1, 3))
@settings(deadline=None)
def test_parting_wastes_least(blocks: list[int], groups: int) -> None:
    """Against all ways to cut; and never another arena for less than a fifth."""
    rows = sorted(64 * b for b in blocks)
    parts = onnx_cache.part_by_length(rows, groups)
    assert [n for part in parts for n in part] == rows
    assert all(parts)
    assert len(parts) <= groups
    padded = sum(len(part) * part[-1] for part in parts)
    if groups == 2:
        ways = [cut * rows[cut - 1] + (len(rows) - cut) * rows[-1] for cut in range(1, len(rows))]
        whole = len(rows) * rows[-1]
        best = min(ways, default=whole)
        assert padded == (best if best <= onnx_cache.PARTING_PAYS * whole else whole)


def test_contexts_outgrow_their_room(backend: OnnxBackend) -> None:
    texts = [tokens(150, seed) for seed in range(2)]
    whole = [backend.forward([Pass(backend.new_context(256), t, "all")])[0].encode for t in texts]
    small = [backend.new_context(1) for _ in texts]
    parts: list[list[np.ndarray]] = [[], []]
    for start in range(0, 150, 30):
        passes = [Pass(c, t[start : start + 30], "all") for c, t in zip(small, texts, strict=True)]
        for i, result in enumerate(backend.forward(passes)):
            parts[i].append(result.encode)
    alone = backend.new_context(1)
    for start in range(0, 150, 30):
        backend.forward([Pass(alone, texts[0][start : start + 30])])
    assert np.array_equal(np.concatenate(parts[0]), whole[0])
    assert np.array_equal(np.concatenate(parts[1]), whole[1])
    canvas = tokens(8)
    a, b = (backend.forward([Pass(c, NONE, canvas=canvas)])[0].canvas for c in (alone, small[0]))
    assert np.array_equal(a, b)


def test_memory_goes_with_the_requests(backend: OnnxBackend) -> None:
    arenas = weakref.WeakSet()
    idle = backend.new_context(64)
    for _ in range(20):
        contexts = [backend.new_context(64) for _ in range(4)]
        backend.forward([Pass(c, tokens(3)) for c in (*contexts, idle)])
        arenas.update(c.arena for c in contexts)
    backend.forward([Pass(backend.new_context(8), tokens(3)), Pass(contexts[0], tokens(1))])
    del contexts
    gc.collect()
    # What is left is the one arena in which the idle context lives alone.
    assert [sorted(c.length for c in a.tenants) for a in {*arenas, idle.arena}] == [[idle.length]]
    assert idle.nbytes == sum(a.nbytes for a in idle.arena.arrays)


def test_a_copied_context_goes_on_by_itself(backend: OnnxBackend) -> None:
    text, more = tokens(100), tokens(5, seed=1)
    first, alone, copied = (backend.new_context(1) for _ in range(3))
    backend.forward([Pass(first, text)])
    backend.forward([Pass(alone, text[:90])])
    copied.copy(first, 90)
    assert (copied.length, copied.arena is first.arena) == (90, False)
    for seed in range(2):
        canvas = tokens(8, seed)
        results = [backend.forward([Pass(c, more, "all", canvas)])[0] for c in (alone, copied, first)]
        assert np.array_equal(results[0].encode, results[1].encode)
        assert np.array_equal(results[0].canvas, results[1].canvas)
    assert first.length == 110


def test_truncating() -> None:
    context = onnx(denoiser()).new_context(8)
    context.extend(5)
    context.truncate(9)
    assert context.length == 5
    context.truncate(2)
    assert context.length == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_rows_see(layout: str) -> None:
    """By the definition of each layout, spelt out: 5 cached rows, 3 encoded, 4 slots, blocks of 4, 16 cache rows."""
    config = denoiser(layout=layout, canvas_length=4).config
    seen = visible(config, Share(lane=0, encode=3, canvas=4, length=5), 16)
    assert seen.shape == (7, 16)
    for row, position in enumerate(range(5, 12)):
        if position < 8:
            clean = {"causal_context": position + 1, "block_causal": 8, "full": 8}[layout]
            expected = set(range(clean))
        else:
            clean = {"causal_context": 8, "block_causal": 8, "full": 0}[layout]
            expected = set(range(clean)) | {8, 9, 10, 11}
        assert set(np.flatnonzero(seen[row])) == expected


@given(
    layout=st.sampled_from(LAYOUTS),
    share=st.builds(Share, st.just(0), st.integers(0, 9), st.integers(0, 7), st.integers(0, 12), st.just(())),
    spare=st.integers(0, 5),
)
@settings(deadline=None)
def test_what_rows_see_is_the_predicate(layout: str, share: Share, spare: int) -> None:
    config = denoiser(layout=layout, canvas_length=4).config
    end, anchor = share.length + share.rows, share.length + share.encode
    at = np.arange(end + spare)
    start = np.where(at >= anchor, canvas_start(layout, anchor, 4), clean_start(layout, at, 4))
    every = Rows(at >= anchor, np.where(at < end, 0, -1), at, start, 0 * at)
    own = slice(share.length, end)
    queries = Rows(*(a[own, None] for a in (every.canvas, every.document, at, start, every.block)))
    assert np.array_equal(visible(config, share, end + spare), allowed(queries, every))


def test_a_branch_sees_the_text_before_it_and_itself() -> None:
    """5 cached rows, 3 encoded, two canvases of 2: behind the first encoded row and behind all three."""
    seen = visible(denoiser().config, Share(0, 3, 4, 5, (1, 3)), 14)
    due = [range(6), range(7), range(8), *[[*range(6), 8, 9]] * 2, *[[*range(8), 10, 11]] * 2]
    assert [list(np.flatnonzero(row)) for row in seen] == [list(own) for own in due]


def test_threads_default_to_cores() -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
