"""A batch is the same for any number of processes, and in it nothing is seen that generation would not have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.training.batch import Batch, build
from redraft.training.objective import JointObjective
from redraft.training.packing import Rows
from redraft.training.recipe import Canvas, Mixture, Objective
from tests.training import toys
from tests.training.toys import EOS, MASK, NULL, PLAIN

RICH = Canvas(
    lengths=[3, 4, 6],
    length_weights=[1, 1, 1],
    gap_share=0.3,
    insert_share=0.2,
    pin_share=0.3,
    draft_share=0.2,
)


def logits(model: Any, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """AR logits [B, L, V] and canvas logits [B, M, C, V] of the training pass."""
    objective = JointObjective(model, toys.process(), Objective())
    with torch.no_grad():
        every = model.logits(objective.hidden(batch)).numpy()
    length = batch.clean.shape[1]
    return every[:, :length], every[:, length:].reshape(*batch.noisy.shape, -1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 500), st.integers(1, 3), st.sampled_from(["absorbing", "uniform", "hybrid"]))
def test_shares_of_processes_join_to_the_global_batch(
    tmp_path_factory: pytest.TempPathFactory, step: int, cut: int, kind: str
) -> None:
    data = toys.rows(tmp_path_factory.mktemp("c"), toys.documents(30))
    whole = toys.batch(data, RICH, kind, step=step, batch_rows=4)
    parts = [
        toys.batch(data, RICH, kind, step=step, batch_rows=4, rows=r) for r in (range(cut), range(cut, 4))
    ]
    for name, value in vars(whole).items():
        assert np.array_equal(np.concatenate([getattr(p, name) for p in parts]), value), name
    assert whole.tokens == sum(p.tokens for p in parts)
    again = toys.batch(data, RICH, kind, step=step, batch_rows=4)
    assert all(np.array_equal(a, b) for a, b in zip(vars(whole).values(), vars(again).values(), strict=True))


def test_steps_and_seeds_differ(tmp_path: Path) -> None:
    data = toys.rows(tmp_path, toys.documents(30))
    a, b, c = (toys.batch(data, PLAIN, step=s, seed=e) for s, e in ((0, 0), (1, 0), (0, 1)))
    assert not np.array_equal(a.noisy, b.noisy)
    assert not np.array_equal(a.noisy, c.noisy)
    assert not np.array_equal(a.time, c.time)


def test_slots_have_the_positions_of_the_text_they_stand_for(tmp_path: Path) -> None:
    data = toys.rows(tmp_path, toys.documents(30))
    batch = toys.batch(data, RICH, step=2)
    length = batch.clean.shape[1]
    slots = batch.positions[:, length:].reshape(batch.noisy.shape)
    assert (np.diff(slots, axis=-1) == 1).all()
    for b in range(len(batch.clean)):
        for m in np.flatnonzero(batch.canvas_document[b] >= 0):
            sees = batch.canvas_visible[b, m, 0, :length]
            # The clean rows before the anchor and no others, all of its document.
            assert batch.positions[b, :length][sees].tolist() == list(range(slots[b, m, 0]))
            assert (batch.canvas_visible[b, m] == batch.canvas_visible[b, m, :1]).all()
            assert batch.canvas_visible[b, m, :, length:].all()


def test_the_ar_loss_is_on_what_follows_in_the_same_document(tmp_path: Path) -> None:
    texts = [[5, 6, 7, EOS], [8, 9, EOS]]
    data = toys.rows(tmp_path, texts, row_length=16)
    batch = toys.batch(data, PLAIN, batch_rows=1)
    (clean,), (following,) = batch.clean, batch.next_token
    pairs = [(int(a), int(b)) for a, b in zip(clean, following, strict=True) if b >= 0]
    assert sorted(pairs) == [(5, 6), (6, 7), (7, EOS), (8, 9), (9, EOS)]
    assert batch.tokens == 7
    assert (toys.batch(data, PLAIN, batch_rows=1, ar=[False]).next_token == -1).all()
    for layout in ("block_causal", "full"):  # their clean rows see the next token
        seen = toys.batch(data, PLAIN, batch_rows=1, of=toys.config(layout=layout))
        assert (seen.next_token == -1).all()


def test_block_causal_canvases_sit_on_the_grid(tmp_path: Path) -> None:
    data = toys.rows(tmp_path, toys.documents(30))
    batch = toys.batch(data, RICH, of=toys.config(layout="block_causal"), length=4, step=3)
    length = batch.clean.shape[1]
    anchors = batch.positions[:, length:].reshape(batch.noisy.shape)[..., 0]
    assert not (anchors[batch.canvas_document >= 0] % 4).any()
    assert (batch.canvas_document >= 0).any()
    clean = batch.clean_visible[0]
    for q in np.flatnonzero(clean.any(-1)):
        ends = batch.positions[0, :length][clean[q]].max()
        assert ends <= batch.positions[0, q] // 4 * 4 + 3


@pytest.mark.parametrize("layout", ["causal_context", "block_causal", "full"])
def test_one_pass_is_each_canvas_alone_behind_its_context(tmp_path: Path, layout: str) -> None:
    """[x_0 ‖ x_t] in one pass against a separate dense pass for every canvas: position, visibility and roles."""
    data = toys.rows(tmp_path, toys.documents(30))
    of = toys.config(layout=layout)
    model = toys.network(layout=layout)
    batch = toys.batch(data, RICH, "hybrid", of=of, length=4, step=1)
    ar, canvas = logits(model, batch)
    length = batch.clean.shape[1]
    compared = 0
    for b, m in zip(*np.nonzero(batch.canvas_document >= 0), strict=True):
        anchor = int(batch.positions[b, length + m * 4])
        if layout == "full" and anchor:
            continue  # a dense pass would have to begin in the middle
        before = batch.canvas_visible[b, m, 0, :length]
        context = batch.clean[b][before].tolist()
        assert len(context) == (0 if layout == "full" else anchor)
        alone = toys.dense_logits(model, context, batch.noisy[b, m].tolist(), batch.locked[b, m].tolist())
        np.testing.assert_allclose(canvas[b, m], alone[len(context) :], atol=2e-5)
        if layout == "causal_context" and context:
            rows = np.flatnonzero(before)
            np.testing.assert_allclose(ar[b, rows], alone[: len(context)], atol=2e-5)
        compared += 1
    assert compared > 2


def changed_by(model: Any, batch: Batch, row: int, at: int) -> tuple[np.ndarray, np.ndarray]:
    """Which AR rows [L] and canvas slots [M, C] move when a clean token is another one."""
    clean = batch.clean.copy()
    clean[row, at] = clean[row, at] % (NULL - 2) + 1
    assert clean[row, at] != batch.clean[row, at]
    before, after = logits(model, batch), logits(model, replace(batch, clean=clean))
    return tuple((a[row] != b[row]).any(-1) for a, b in zip(before, after, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("layout", ["causal_context", "block_causal"])
def test_nothing_leaks(tmp_path: Path, layout: str) -> None:
    """Another document, text from the anchor on (the canvas's own answer) and padding never reach a slot's logits."""
    data = toys.rows(tmp_path, toys.documents(30), row_length=20)
    model = toys.network(layout=layout)
    batch = toys.batch(data, RICH, "hybrid", of=toys.config(layout=layout), length=4, batch_rows=1, step=4)
    length = batch.clean.shape[1]
    document = np.full(length, -1)
    for i in range(length):  # rows of one document see its first token
        seen = np.flatnonzero(batch.clean_visible[0, i])
        document[i] = seen[0] if len(seen) else -1
    assert len(set(document) - {-1}) > 1
    first = {d: n for n, d in enumerate(sorted(set(document) - {-1}))}
    anchors = batch.positions[0, length:].reshape(batch.noisy.shape[1:])[:, 0]
    moved = 0
    for at in range(length):
        ar, canvas = changed_by(model, batch, 0, at)
        position = batch.positions[0, at]
        for i in np.flatnonzero(ar & (document >= 0)):  # padding says anything, and nobody hears it
            assert document[i] == document[at]
            if layout == "causal_context":
                assert batch.positions[0, i] >= position
        for m in np.flatnonzero(canvas.any(-1)):
            if batch.canvas_document[0, m] < 0:
                continue
            assert document[at] >= 0
            assert batch.canvas_document[0, m] == first[document[at]]
            assert anchors[m] > position
            moved += 1
    assert moved > 5  # what comes before does reach it


def test_canvases_don_t_see_one_another_but_their_own_slots(tmp_path: Path) -> None:
    data = toys.rows(tmp_path, toys.documents(30), row_length=20)
    model = toys.network()
    batch = toys.batch(data, PLAIN, length=4, batch_rows=1)
    ar, canvas = logits(model, batch)
    for m in np.flatnonzero(batch.canvas_document[0] >= 0):
        noisy = batch.noisy.copy()
        noisy[0, m, 2] = 1 if noisy[0, m, 2] != 1 else 2
        ar_after, canvas_after = logits(model, replace(batch, noisy=noisy))
        assert np.array_equal(ar, ar_after)
        moved = (canvas != canvas_after).any(-1)[0]
        assert moved[m].all()
        assert not np.delete(moved, m, 0).any()


def test_the_answer_reaches_no_slot_that_is_hidden(tmp_path: Path) -> None:
    """Targets are for the loss alone: with other targets the network says the same."""
    data = toys.rows(tmp_path, toys.documents(30))
    model = toys.network()
    batch = toys.batch(data, RICH, "hybrid")
    other = replace(batch, target=(batch.target + 1) % MASK, next_token=batch.next_token * 0)
    for a, b in zip(logits(model, batch), logits(model, other), strict=True):
        assert np.array_equal(a, b)


def test_draft_corpora_hide_behind_the_draft_token(tmp_path: Path) -> None:
    corpora = [toys.corpus(tmp_path / name, toys.documents(20, seed=i)) for i, name in enumerate("ab")]
    data = Rows(corpora, [1.0, 1.0], 16, 0)
    of = toys.config(draft_token_id=MASK - 2)
    mixture = [Mixture(path="a"), Mixture(path="b", ar=False, draft=True)]
    arguments: dict[str, Any] = {"step": 0, "rows": range(6), "batch_rows": 6, "seed": 0}
    both = build(data, mixture, of, toys.process(), PLAIN, **arguments)
    plain = build(data, [Mixture(path=p) for p in "ab"], of, toys.process(), PLAIN, **arguments)
    drafted = np.array([data[i].corpus == 1 for i in range(6)])
    assert 0 < drafted.sum() < 6
    assert np.array_equal(both.noisy[~drafted], plain.noisy[~drafted])
    swapped = np.where(plain.noisy == MASK, MASK - 2, plain.noisy)
    assert np.array_equal(both.noisy[drafted], swapped[drafted])
    assert (both.next_token[drafted] == -1).all()
    assert np.array_equal(both.next_token[~drafted], plain.next_token[~drafted])
    assert np.array_equal(both.target, plain.target)
