"""Beam search over a canvas against all fills that there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from redraft.sampling import Canvas, NoiseKey, SamplerSettings, SlotState, SlotVocabulary, begin
from redraft.sampling.beam import filled, likeliest, log_p, parted
from tests.sampling.networks import arbitrary, run

SIZE = 5
MASK, NULL = 4, 3
VOCABULARY = SlotVocabulary(SIZE, MASK, NULL, (), (NULL,))  # three tokens are left
OPEN = -1


def canvas_of(initial: tuple[int, ...], locked: dict[int, int], **settings: float | int) -> Canvas:
    chosen = SamplerSettings(canvas_length=len(initial), **{"threshold": 1.0, **settings})
    return begin(chosen, VOCABULARY, NoiseKey(0, 0), 0, locked, initial)


def search(start: Canvas, width: int, slots: int, seed: int = 0) -> list[Canvas]:
    network, found = arbitrary(SIZE, seed, scale=0.6), [start]
    while not all(filled(canvas, slots) for canvas in found):
        made: list[Canvas] = []
        for canvas in found:
            logits = network(canvas)[canvas.wanted]
            made += [canvas] if filled(canvas, slots) else parted(canvas, logits, width, slots)
        found = likeliest(made, width, slots)
    return found


def test_a_beam_as_wide_as_all_fills_finds_each_and_their_chances_sum_to_one() -> None:
    start = canvas_of((OPEN, 2, OPEN, OPEN, 1), {1: 2, 4: 1})
    found = search(start, 27, 4)
    fills = [tuple(canvas.tokens.tolist()) for canvas in found]
    assert sorted(fills) == sorted((a, 2, b, c, 1) for a, b, c in itertools.product(range(3), repeat=3))
    chances = np.exp([log_p(canvas, 4) for canvas in found])
    assert chances.sum() == pytest.approx(1.0, abs=1e-4)
    assert (np.diff(chances) <= 0).all()
    for canvas in found:
        assert canvas.state[[1, 4]].tolist() == [SlotState.LOCKED] * 2
        assert canvas.step == 3


def test_a_beam_of_one_is_threshold_decoding_one_by_one() -> None:
    for seed in range(6):
        start = canvas_of((OPEN, OPEN, 0, OPEN), {2: 0})
        (alone,) = search(start, 1, 4, seed)
        usual = run(
            arbitrary(SIZE, seed, scale=0.6),
            start.settings,
            VOCABULARY,
            NoiseKey(0, 0),
            locked={2: 0},
            initial=(OPEN, OPEN, 0, OPEN),
        )
        assert alone.tokens.tolist() == usual.tokens.tolist()
        assert log_p(alone, 4) == pytest.approx(np.log(usual.probability).sum(), abs=1e-5)


def test_sure_slots_settle_without_another_way_and_the_last_step_settles_all() -> None:
    logits = np.full((3, SIZE), -9.0, np.float32)
    logits[[0, 1, 2], [0, 1, 2]] = [9.0, 1.0, 9.0]
    logits[1, 0] = 0.0
    start = canvas_of((OPEN,) * 3, {}, threshold=0.9)
    ways = parted(start, logits, 2, 3)
    assert [way.tokens.tolist() for way in ways] == [[0, 1, 2], [0, 0, 2]]
    assert np.exp(log_p(ways[1], 3)) == pytest.approx(1 / (1 + np.e), abs=1e-3)
    (last,) = parted(start.after(settings=SamplerSettings(canvas_length=3, max_steps=1)), logits, 2, 3)
    assert last.tokens.tolist() == [0, 1, 2]
    only_two = parted(start, logits, 2, 2)  # the third is there to be seen alone
    assert [way.tokens.tolist() for way in only_two] == [[0, 1, MASK], [0, 0, MASK]]
    assert [way.shown.tolist() for way in only_two] == [[0, 1, 2], [0, 0, 2]]


def test_what_no_slot_may_hold_is_no_way_to_fill_it() -> None:
    start = canvas_of((OPEN, 1), {1: 1})
    allowed = np.ones((2, SIZE), bool)
    allowed[0, 0] = False
    ways = parted(start, np.zeros((1, SIZE), np.float32), 9, 1, allowed)
    assert [way.tokens.tolist() for way in ways] == [[1, 1], [2, 1]]
