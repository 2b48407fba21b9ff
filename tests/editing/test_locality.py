"""Locality, at length: over more than a thousand random edits and fills nothing outside what was selected changes.

Texts mix any Unicode with what is easily broken: emoji of several code points, combining marks, line ends of every
kind, tabs, bytes a tokenizer splits, no newline at the end. Weights are random, so that what is written is the worst.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redraft.api import Model

CLUSTERS = ["👩\u200d👧", "🏳\ufe0f\u200d🌈", "e\u0301", "Z\u0351\u0352", "ﷺ", "\u200f"]
CONTROLS = ["\r\n", "\n", "\r", "\t", "\u2028", "\ufeff", "\x00"]
FRAGILE = [*CLUSTERS, *CONTROLS, " the table", "Zürich ", "if (x[0]) {"]
PIECE = st.one_of(st.sampled_from(FRAGILE), st.text(max_size=8))
TEXT = st.lists(PIECE, min_size=1, max_size=6).map("".join).filter(bool)
SEED = st.integers(0, 10**6)
MANY = settings(max_examples=350, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False)

pytestmark = pytest.mark.slow


def pieces(text: str, data: st.DataObject, most: int) -> tuple[list[tuple[int, int]], list[str]]:
    """Spans of a text, and what lies outside them."""
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=2 * most, unique=True)))
    spans = list(zip(ends[::2], ends[1::2], strict=False))
    bounds = [0, *(end for span in spans for end in span), len(text)]
    return spans, [text[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True)]


def kept(text: str, outside: list[str]) -> bool:
    """Whether a text is what lay outside, byte for byte, with something between."""
    data, at = text.encode(), len(outside[0].encode())
    if not (data.startswith(outside[0].encode()) and data[at:].endswith(outside[-1].encode())):
        return False
    end = len(data) - len(outside[-1].encode())
    for piece in outside[1:-1]:
        found = data.find(piece.encode(), at, end)
        if found < 0:
            return False
        at = found + len(piece.encode())
    return at <= end


def test_what_counts_as_kept() -> None:
    assert kept("aXbYc", ["a", "b", "c"])
    assert kept("abc", ["a", "b", "c"])
    assert not kept("aXbYd", ["a", "b", "c"])
    assert not kept("ab", ["ab", "b"])
    assert not kept("acb", ["a", "b", "c"])


@MANY
@given(TEXT.filter(lambda text: len(text) > 1), st.data(), SEED, st.sampled_from([0.0, 1.0]))
def test_a_selection_written_anew(
    random_model: Model, text: str, data: st.DataObject, seed: int, temperature: float
) -> None:
    spans, outside = pieces(text, data, 2)
    done = random_model.edit(text, spans=spans, seed=seed, temperature=temperature)
    assert kept(done.text, outside)
    assert all(any(a <= h.start <= h.end <= b for a, b in spans) for h in done.hunks)


@MANY
@given(TEXT.filter(lambda text: len(text) > 1), st.data(), SEED)
def test_a_selection_changed_by_an_instruction(
    random_model: Model, text: str, data: st.DataObject, seed: int
) -> None:
    spans, outside = pieces(text, data, 2)
    done = random_model.edit(text, "make it 🙂", spans, threshold=0.02, seed=seed)
    assert kept(done.text, outside)


@MANY
@given(TEXT, st.data(), SEED, st.integers(1, 3))
def test_gaps(random_model: Model, text: str, data: st.DataObject, seed: int, candidates: int) -> None:
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=1, max_size=2)))
    around = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    done = random_model.fill(around, seed=seed, candidates=candidates, max_tokens=6, temperature=1.0)
    assert done.full_text.encode() == b"".join(
        part.encode() for pair in zip(around, [*done.texts, ""], strict=True) for part in pair
    )
    assert kept(done.full_text, around)
