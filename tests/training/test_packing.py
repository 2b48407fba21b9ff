"""Rows hold every token once an epoch, and are a pure function of the seed and their number."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.errors import RequestError
from redraft.training import packing
from redraft.training.packing import Rows, pack
from tests.training import toys

lengths = st.lists(st.integers(0, 40), min_size=1, max_size=60).map(lambda x: np.array(x, np.int64))


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 16), st.integers(0, 9), st.integers(0, 3))
def test_every_token_once_and_no_row_overflows(
    sizes: np.ndarray, row_length: int, seed: int, epoch: int
) -> None:
    rows = pack(sizes, row_length, seed, epoch)
    seen: Counter[tuple[int, int]] = Counter()
    for row in rows:
        assert 0 < sum(p.last - p.first for p in row) <= row_length
        for piece in row:
            seen.update((piece.document, token) for token in range(piece.first, piece.last))
    assert seen == Counter({(d, t): 1 for d, n in enumerate(sizes) for t in range(n)})
    assert pack(sizes, row_length, seed, epoch) == rows


@settings(max_examples=30, deadline=None)
@given(lengths.filter(lambda x: x.sum() > 0), st.integers(8, 40))
def test_rows_are_well_filled(sizes: np.ndarray, row_length: int) -> None:
    """Best fit leaves at most one row in two half empty: two such rows would have shared one, and few stay open."""
    rows = pack(sizes, row_length, 0, 0)
    filled = sorted(sum(p.last - p.first for p in row) for row in rows)
    halves = [n for n in filled if 2 * n <= row_length]
    assert len(halves) <= 1


def test_epochs_differ(tmp_path: Path) -> None:
    sizes = np.arange(1, 30)
    assert pack(sizes, 16, 0, 0) != pack(sizes, 16, 0, 1)
    assert pack(sizes, 16, 0, 0) != pack(sizes, 16, 1, 0)


def test_rows_go_on_from_epoch_to_epoch(tmp_path: Path) -> None:
    texts = toys.documents(20, longest=30)
    rows = toys.rows(tmp_path, texts)
    first, second = (len(pack(rows.corpora[0].lengths, 16, 0, e)) for e in (0, 1))
    for epoch, start, count in ((0, 0, first), (1, first, second)):
        assert rows.epoch_of(0, start) == (epoch, 0)
        assert rows.epoch_of(0, start + count - 1) == (epoch, count - 1)
        tokens = Counter()
        for i in range(start, start + count):
            row = rows[i]
            tokens.update(row.tokens[row.document >= 0].tolist())
        assert tokens == Counter(t for text in texts for t in text)


def test_a_row_says_whose_token_each_is(tmp_path: Path) -> None:
    texts = [[5, 6, 7, 8, 0], [9, 0], list(range(1, 21))]
    rows = toys.rows(tmp_path, texts, row_length=8, starts=[2, 0, 10])
    pieces = {}
    for i in range(len(pack(rows.corpora[0].lengths, 8, 0, 0))):
        row = rows[i]
        assert (row.document[row.tokens > 0] >= 0).all()
        assert not row.supervise[row.document < 0].any()
        for d in range(row.document.max() + 1):
            at = np.flatnonzero(row.document == d)
            assert row.position[at].tolist() == list(range(len(at)))
            pieces[tuple(row.tokens[at].tolist())] = row.supervise[at].tolist()
    assert pieces == {
        (5, 6, 7, 8, 0): [False, False, True, True, True],
        (9, 0): [True, True],
        tuple(range(1, 9)): [False] * 8,
        tuple(range(9, 17)): [False, False] + [True] * 6,
        (17, 18, 19, 20): [True] * 4,
    }


def test_corpora_take_turns_by_their_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "TURNS", 50)
    weights = [1.0, 2.5, 0.5]
    corpora = [toys.corpus(tmp_path / str(i), toys.documents(5, seed=i)) for i in range(3)]
    rows = Rows(corpora, weights, 16, 0)
    places = [rows.locate(i) for i in range(700)]
    counts: Counter[int] = Counter()
    for i, (corpus, n) in enumerate(places, 1):
        assert n == counts[corpus]
        counts[corpus] += 1
        for c, w in enumerate(weights):
            assert abs(counts[c] - i * w / sum(weights)) < 3
    # The same from anywhere: a resumed run asks for a late row first.
    again = Rows(corpora, weights, 16, 0)
    assert [again.locate(i) for i in (699, 0, 50, 49)] == [places[i] for i in (699, 0, 50, 49)]
    assert rows[699].corpus == places[699][0]


def test_rows_are_the_same_from_anywhere(tmp_path: Path) -> None:
    texts = toys.documents(20, longest=30)
    forwards, backwards = toys.rows(tmp_path / "a", texts), toys.rows(tmp_path / "b", texts)
    late = [backwards[i] for i in reversed(range(60))]
    for i, row in enumerate(reversed(late)):
        for a, b in zip(vars(forwards[i]).values(), vars(row).values(), strict=True):
            assert np.array_equal(a, b)


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no documents"):
        toys.rows(tmp_path, [])
