"""What saves a pass over the vocabulary gives what the pass would have given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.errors import RedraftError
from redraft.sampling import (
    NoiseKey,
    SamplerSettings,
    SlotVocabulary,
    WarpSettings,
    advance,
    begin,
    choose,
    gumbel,
    warp,
)
from redraft.sampling.reading import read
from redraft.sampling.warp import bend, untouched_argmax

V = 12
KEY = NoiseKey(4)
VOCABULARY = SlotVocabulary(V, mask_id=11, null_id=10, eos_ids=(0,), banned=(9,))
# few values, so that ties between touched and untouched tokens are common
values = st.sampled_from([-np.inf, -2.0, 0.0, 0.5, 3.0])
rows = st.lists(st.lists(values, min_size=V, max_size=V), min_size=1, max_size=5)
biases = st.lists(st.tuples(st.integers(0, V - 1), st.sampled_from([-1e6, -1.0, 0.0, 2.0])), max_size=3)


@given(rows, biases, st.lists(st.integers(0, V - 1), max_size=3))
def test_an_argmax_that_was_not_touched_is_that_of_the_bent_logits(
    logits: list[list[float]], bias: list[tuple[int, float]], banned: list[int]
) -> None:
    settings, array = WarpSettings(logit_bias=tuple(bias)), np.array(logits, np.float32)
    top = untouched_argmax(array, settings, banned)
    if top is not None:
        assert np.array_equal(top, bend(array, settings, banned=banned).argmax(-1))


@given(rows, biases)
def test_ar_chooses_the_argmax_of_what_warp_makes(
    logits: list[list[float]], bias: list[tuple[int, float]]
) -> None:
    settings = WarpSettings(logit_bias=tuple(bias))
    for row in np.array(logits, np.float32):
        warped = warp(row, settings, banned=(11, 9, 10))
        if not np.isfinite(warped.max()):
            with pytest.raises(RedraftError, match="not finite"):
                choose(row, settings, VOCABULARY, KEY, 0)
        else:
            assert choose(row, settings, VOCABULARY, KEY, 0) == int(warped.argmax())


@pytest.mark.parametrize("seed", range(8))
def test_a_reading_is_the_same_with_and_without_a_copy_of_the_vocabulary(seed: int) -> None:
    """An array that allows everything takes the long way."""
    logits = np.random.default_rng(seed).normal(size=(6, V)).astype(np.float32) * 3
    logits[:, [9, 11]] = -20 if seed % 2 else 20  # the best or not
    logits[2, 5] = -np.inf
    settings = SamplerSettings(canvas_length=6, logit_bias=((3, -2.0),), temperature=seed % 3 / 2)
    canvas = begin(settings, VOCABULARY, KEY, 5)
    short, long = read(canvas, logits), read(canvas, logits, np.ones(V, dtype=bool))
    for name in ("rows", "choice", "best", "bent"):
        assert np.array_equal(getattr(short, name), getattr(long, name))
    for name in ("probability", "peak", "entropy"):
        assert np.allclose(getattr(short, name), getattr(long, name), rtol=1e-5, atol=1e-6)
    assert not np.isin(short.choice, (9, 11)).any()


def test_canvases_of_one_length_share_what_they_begin_with_and_nobody_changes_it() -> None:
    settings = SamplerSettings(canvas_length=6, threshold=0.3)
    first = begin(settings, VOCABULARY, KEY, 0)
    logits = np.random.default_rng(0).normal(size=(6, V)).astype(np.float32) * 3
    while not first.finished:
        first = advance(first, logits)
    fresh = begin(settings, VOCABULARY, KEY, 0)
    given = begin(replace(settings), VOCABULARY, KEY, 0, initial=[-1] * 6)  # made slot by slot
    for name in ("tokens", "shown", "state", "probability", "entropy", "settled", "locked", "live"):
        assert np.array_equal(getattr(fresh, name), getattr(given, name))
        assert getattr(fresh, name).dtype == getattr(given, name).dtype
    assert (fresh.opened, fresh.time, fresh.finished) == (given.opened, given.time, given.finished)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("bias", [(), ((3, 1.5),)])
def test_a_guess_stands_where_it_is_nearly_as_likely(
    temperature: float, bias: tuple[tuple[int, float], ...]
) -> None:
    """Every guess, banned ones too, at several tolerances, against the rule in words."""
    rng = np.random.default_rng(5)
    settings = WarpSettings(temperature, logit_bias=bias)
    outcomes = set()
    for position, row in enumerate(rng.normal(size=(12, VOCABULARY.vocab_size)).astype(np.float32)):
        warped = warp(row, settings, banned=VOCABULARY.never_text)
        if temperature:
            warped = warped + gumbel(KEY, position, VOCABULARY.vocab_size)
        best = int(warped.argmax())
        for guess in range(VOCABULARY.vocab_size):
            for ratio in (0.3, 0.7, 1.0):
                near = guess == best or (ratio < 1 and warped[guess] >= warped[best] + np.log(ratio))
                told = choose(row, settings, VOCABULARY, KEY, position, guess=guess, ratio=ratio)
                assert told == (guess if near else best)
                outcomes.add((near, guess == best))
    assert outcomes == {(True, True), (True, False), (False, False)}
