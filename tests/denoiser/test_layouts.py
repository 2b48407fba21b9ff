"""The one predicate against each layout written out by hand, on every small case."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.denoiser.layouts import Rows, allowed, canvas_start, clean_start

LAYOUTS = ("causal_context", "block_causal", "full")


@dataclass(frozen=True)
class Row:
    """What the tests know about a row: which document and position, and for a slot which canvas it belongs to."""

    document: int
    position: int
    canvas: int | None = None  # number of the canvas, unique over all documents
    anchor: int = 0  # where that canvas begins


def sees(layout: str, block_length: int, query: Row, key: Row) -> bool:
    """Each layout as its papers draw it."""
    if query.document != key.document or -1 in (query.document, key.document):
        return False
    if query.canvas is not None and key.canvas is not None:
        return query.canvas == key.canvas
    if query.canvas is None and key.canvas is not None:
        return False
    if layout == "full":
        return query.canvas is None
    if layout == "causal_context":
        return key.position <= query.position if query.canvas is None else key.position < query.anchor
    key_block = key.position // block_length
    if query.canvas is None:
        return key_block <= query.position // block_length
    return key_block < query.anchor // block_length


def arrays(layout: str, block_length: int, rows: list[Row]) -> Rows:
    canvas = np.array([r.canvas is not None for r in rows])
    position, anchor = np.array([r.position for r in rows]), np.array([r.anchor for r in rows])
    clean, noisy = clean_start(layout, position, block_length), canvas_start(layout, anchor, block_length)
    return Rows(
        canvas=canvas,
        document=np.array([r.document for r in rows]),
        position=position,
        start=np.where(canvas, noisy, clean),
        block=np.array([-1 if r.canvas is None else r.canvas for r in rows]),
    )


def document(layout: str, number: int, length: int, block_length: int, first_canvas: int) -> list[Row]:
    """A document's clean rows and a canvas over each block (one over everything under `full`)."""
    rows = [Row(number, i) for i in range(length)]
    size = max(length, 1) if layout == "full" else block_length
    for i, anchor in enumerate(range(0, length, size)):
        rows += [Row(number, anchor + j, first_canvas + i, anchor) for j in range(size)]
    return rows


def check(layout: str, block_length: int, rows: list[Row]) -> np.ndarray:
    ours = arrays(layout, block_length, rows)
    got = allowed(ours.queries(), ours.keys())
    want = np.array([[sees(layout, block_length, q, k) for k in rows] for q in rows])
    np.testing.assert_array_equal(got, want)
    return got


@pytest.mark.parametrize("block_length", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_small_case(layout: str, block_length: int) -> None:
    for first in range(1, 6):
        for second in range(4):
            rows = document(layout, 0, first, block_length, 0)
            rows += document(layout, 1, second, block_length, 100)
            check(layout, block_length, [*rows, Row(-1, 0), Row(-1, 1)])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_canvases_anywhere_in_shuffled_rows(data: st.DataObject) -> None:
    """Offsets of canvases are free under causal_context (the next may start before the last one's slots end)."""
    layout = data.draw(st.sampled_from(LAYOUTS))
    block_length = data.draw(st.integers(1, 4))
    rows: list[Row] = []
    for number in range(data.draw(st.integers(1, 3))):
        length = data.draw(st.integers(1, 7))
        rows += [Row(number, i) for i in range(length)]
        anchors = (
            [0] if layout == "full" else data.draw(st.lists(st.integers(0, length), max_size=3, unique=True))
        )
        if layout == "block_causal":
            anchors = sorted({a // block_length * block_length for a in anchors})
        for i, anchor in enumerate(anchors):
            slots = data.draw(st.integers(1, 5))
            rows += [Row(number, anchor + j, 100 * number + i, anchor) for j in range(slots)]
    rows += [Row(-1, i) for i in range(data.draw(st.integers(0, 2)))]
    check(layout, block_length, data.draw(st.permutations(rows)))


@pytest.mark.parametrize("layout", ["causal_context", "block_causal"])
def test_block_length_one_is_autoregression(layout: str) -> None:
    """A canvas of one slot sees exactly the text before it: what the chain rule conditions on."""
    length = 5
    got = check(layout, 1, document(layout, 0, length, 1, 0))
    before = np.tril(np.ones((length, length), bool), -1)
    np.testing.assert_array_equal(got[length:, :length], before)
    np.testing.assert_array_equal(got[length:, length:], np.eye(length, dtype=bool))
    np.testing.assert_array_equal(got[:length, :length], np.tril(np.ones((length, length), bool)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_sees_nothing_and_is_seen_by_none(layout: str) -> None:
    rows = [*document(layout, 0, 3, 2, 0), Row(-1, 0), Row(-1, 1, 7, 0)]
    got = check(layout, 2, rows)
    assert not got[-2:].any()
    assert not got[:, -2:].any()


def test_numpy_and_torch_agree() -> None:
    rows = arrays("block_causal", 2, document("block_causal", 0, 5, 2, 0))
    tensors = Rows(
        *(torch.from_numpy(a) for a in (rows.canvas, rows.document, rows.position, rows.start, rows.block))
    )
    got = allowed(tensors.queries(), tensors.keys())
    np.testing.assert_array_equal(got.numpy(), allowed(rows.queries(), rows.keys()))
    for layout in LAYOUTS:
        for start in (clean_start, canvas_start):
            position = torch.arange(9)
            np.testing.assert_array_equal(
                start(layout, position, 4).numpy(), start(layout, position.numpy(), 4)
            )
