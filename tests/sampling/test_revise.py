"""Error correction: token editing and ReMDM's remasking."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from redraft.corruption import SCHEDULES
from redraft.errors import RequestError
from redraft.sampling import (
    NoiseKey,
    SamplerSettings,
    SlotState,
    SlotVocabulary,
    advance,
    begin,
    outcome,
    wanted,
)
from redraft.sampling.revise import REMASK_SCHEDULES
from tests.sampling.networks import arbitrary, run

V, MASK, NULL, EOS = 9, 6, 7, 8
VOCABULARY = SlotVocabulary(V, mask_id=MASK, null_id=NULL, eos_ids=(EOS,))


def believing(*tokens: int, probability: float = 0.95) -> np.ndarray:
    """Logits that give each slot's token that probability."""
    p = np.full((len(tokens), V), (1 - probability) / (V - 2))
    p[:, MASK] = 1e-9
    p[np.arange(len(tokens)), tokens] = probability
    return np.log(p).astype(np.float32)


def test_a_doubted_token_is_overwritten() -> None:
    settings = SamplerSettings(canvas_length=3, threshold=0.9, edit_threshold=0.8)
    canvas = advance(begin(settings, VOCABULARY, NoiseKey(0), 0, locked={2: 5}), believing(1, 2, 3))
    assert canvas.tokens.tolist() == [1, 2, 5]
    assert not canvas.finished  # what was just settled has not been looked at yet
    assert wanted(canvas).tolist() == [0, 1]
    canvas = advance(canvas, believing(1, 4, 3))
    assert canvas.tokens.tolist() == canvas.shown.tolist() == [1, 4, 5]
    assert canvas.state.tolist() == [SlotState.SETTLED, SlotState.REVISED, SlotState.LOCKED]
    assert canvas.probability[1] == pytest.approx(0.95)
    canvas = advance(
        canvas, believing(0, 4, 3, probability=0.75)
    )  # a doubt below the threshold changes nothing
    assert canvas.tokens.tolist() == [1, 4, 5]
    assert canvas.finished


def test_a_doubt_spreads_over_the_slots_beside_it_that_differ_too() -> None:
    logits = believing(1, 4, 5, 3, 4)
    logits[1:3] = believing(4, 5, probability=0.4)  # unsure, beside slot 0 or not
    for slot, revised in ((0, [1, 4, 5, 3, 0]), (4, [0, 0, 0, 3, 4])):
        given = np.array([0, 0, 0, 3, 0])
        unsure = logits.copy()
        unsure[4 - slot] = believing(int(given[4 - slot]))[0]
        for spread in (False, True):
            settings = SamplerSettings(canvas_length=5, edit_threshold=0.8, edit_spread=spread)
            canvas = begin(settings, VOCABULARY, NoiseKey(0), 0, initial=tuple(given.tolist()))
            tokens = advance(canvas, unsure).tokens.tolist()
            alone = given.copy()
            alone[slot] = revised[slot]
            assert tokens == (revised if spread else alone.tolist())


def test_editing_without_an_end_is_ended() -> None:
    """A network that changes its mind at every step costs edit_steps evaluations more, and never more than
    max_steps."""
    for edit_steps, max_steps, want in ((0, 9, 1), (3, 9, 4), (99, 9, 9)):
        settings = SamplerSettings(
            canvas_length=2, edit_threshold=0.5, edit_steps=edit_steps, max_steps=max_steps
        )
        canvas = begin(settings, VOCABULARY, NoiseKey(0), 0)
        while not canvas.finished:
            canvas = advance(canvas, believing(canvas.step % 2, 2))
        assert canvas.step == want


def test_an_edit_can_delete_and_can_take_the_end_back() -> None:
    settings = SamplerSettings(canvas_length=3, edit_threshold=0.5)
    canvas = advance(begin(settings, VOCABULARY, NoiseKey(0), 0), believing(1, EOS, 3))
    assert canvas.live.tolist() == [True, True, False]
    canvas = advance(canvas, believing(NULL, 2, 3))
    assert canvas.live.all()
    assert not canvas.finished
    while not canvas.finished:
        canvas = advance(canvas, believing(NULL, 2, 3))
    assert outcome(canvas) == (2, 3)


def test_text_given_at_the_start_is_corrected() -> None:
    settings = SamplerSettings(edit_threshold=0.5)
    canvas = run(lambda canvas: believing(1, 2, 3), settings, VOCABULARY, NoiseKey(0), initial=[1, 5, -1])
    assert outcome(canvas) == (1, 2, 3)
    untouched = begin(SamplerSettings(), VOCABULARY, NoiseKey(0), 0, initial=[1, 5, 3])
    assert untouched.finished  # nothing is open and nothing may be revised
    assert outcome(untouched) == (1, 5, 3)


def test_a_doubted_token_goes_back_to_noise_and_is_filled_again() -> None:
    settings = SamplerSettings(canvas_length=3, accept="quota", steps=3, max_steps=9, doubt=0.3, edit_steps=1)
    canvas = begin(settings, VOCABULARY, NoiseKey(0), 0, locked={2: 5}, initial=[1, 2, -1])
    assert wanted(canvas).tolist() == [0, 1]  # what has settled is read
    canvas = advance(canvas, believing(1, 4, 3, probability=0.75))
    assert canvas.tokens.tolist() == [1, MASK, 5]
    assert canvas.state.tolist() == [SlotState.SETTLED, SlotState.REVISED, SlotState.LOCKED]
    assert not canvas.finished
    canvas = advance(canvas, believing(1, 3, 3))  # what stands around it says 3
    assert canvas.tokens.tolist() == [1, 3, 5]
    assert canvas.finished  # a single step may begin with nothing open
    assert outcome(canvas) == (1, 3, 5)


def test_no_doubt_ends_the_canvas() -> None:
    settings = SamplerSettings(canvas_length=3, doubt=0.3, edit_steps=5)
    canvas = begin(settings, VOCABULARY, NoiseKey(0), 0, initial=[1, 2, 3])
    canvas = advance(canvas, believing(1, 2, 3, probability=0.4))
    assert canvas.finished
    assert canvas.step == 1


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 8, 20])
def test_the_timetable_makes_up_for_doubts(budget: int) -> None:
    """Whatever is taken back, the budget holds, every slot ends settled, and the last step takes nothing back."""
    settings = SamplerSettings(
        canvas_length=8, accept="quota", steps=budget, max_steps=budget, doubt=0.6, edit_steps=0
    )
    network, vocabulary = arbitrary(V), SlotVocabulary(V, mask_id=MASK)
    taken = 0
    for seed in range(6):
        canvas = begin(settings, vocabulary, NoiseKey(seed), 7 * seed)
        while not canvas.finished:
            before = canvas.settled
            canvas = advance(canvas, network(canvas))
            taken += int((before & ~canvas.settled).sum())
            assert canvas.settled.sum() <= max(1, -(-8 * canvas.step // min(budget, 8))) or canvas.finished
        assert canvas.step <= budget
        assert canvas.settled.all()
        assert not (canvas.tokens == MASK).any()
    assert (taken > 0) == (budget > 2)


def test_no_doubt_at_a_bound_of_zero() -> None:
    plain = SamplerSettings(canvas_length=8, accept="quota", steps=4, max_steps=4)
    network, vocabulary = arbitrary(V), SlotVocabulary(V, mask_id=MASK)
    one = begin(plain, vocabulary, NoiseKey(0), 0)
    other = begin(replace(plain, doubt=0.0, edit_steps=0), vocabulary, NoiseKey(0), 0)
    while not one.finished:
        one, other = advance(one, network(one)), advance(other, network(other))
        assert np.array_equal(one.tokens, other.tokens)
    assert other.finished


@pytest.mark.parametrize(
    "other", [{"edit_threshold": 0.5}, {"remask": "conf"}, {"accept": "ancestral"}, {"renoise": "uniform"}]
)
def test_one_way_of_correction_at_a_time(other: dict) -> None:
    with pytest.raises(RequestError, match="doubt"):
        SamplerSettings(doubt=0.3, **other)


@pytest.mark.parametrize("remask", ["cap", "rescale"])
@pytest.mark.parametrize("seed", range(5))
def test_no_remasking_is_mdlm_exactly(remask: str, seed: int) -> None:
    """σ = 0: the same canvas after every step."""
    plain = SamplerSettings(canvas_length=12, accept="ancestral", steps=8, temperature=1.0)
    nothing = SamplerSettings(
        canvas_length=12, accept="ancestral", steps=8, temperature=1.0, remask=remask, remask_eta=0.0
    )
    network, vocabulary = arbitrary(V), SlotVocabulary(V, mask_id=MASK)
    one, other = (begin(s, vocabulary, NoiseKey(seed), 0) for s in (plain, nothing))
    while not one.finished:
        one, other = advance(one, network(one)), advance(other, network(other))
        assert np.array_equal(one.tokens, other.tokens)
    # remdm goes on to the end of its timetable, mdlm stops when all is unmasked: nothing happens in between
    assert other.finished


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("remask", "eta"), [("cap", 0.3), ("rescale", 0.7), ("conf", 0.0)])
def test_remasking_keeps_the_marginals(remask: str, eta: float, schedule: str) -> None:
    """α_t(1 - σ) + (1 - α_t)·(α_s - (1 - σ)α_t)/(1 - α_t) = α_s: as many slots are visible as without
    remasking. A canvas of many slots is many samples; σ of `conf` is per slot, so there the share is only not
    above."""
    slots, steps = 4000, 6
    settings = SamplerSettings(
        canvas_length=slots, accept="ancestral", steps=steps, remask=remask, remask_eta=eta, schedule=schedule
    )
    canvas = begin(settings, SlotVocabulary(V, mask_id=MASK), NoiseKey(5), 0)
    revised = 0
    while not canvas.finished:
        canvas = advance(canvas, np.tile(believing(2), (slots, 1)))
        revised += int((canvas.state == SlotState.REVISED).sum())
        alpha = float(SCHEDULES[schedule].survival(canvas.time))
        if remask != "conf":
            assert abs(canvas.settled.mean() - alpha) < 5 * np.sqrt(alpha * (1 - alpha) / slots) + 1e-9
    assert canvas.clock == steps
    assert revised > 0
    assert (canvas.tokens == 2).all()


def test_conf_takes_the_doubtful_back_first() -> None:
    share = REMASK_SCHEDULES["conf"](
        0.0, 0.5, np.array([True, True, False]), np.array([0.2, 0.9, 0.1], np.float32)
    )
    assert share[0] > share[1] > share[2] == 0.0
    assert share.sum() == pytest.approx(0.5)
    assert REMASK_SCHEDULES["cap"](0.3, 0.1, np.ones(2, bool), np.zeros(2)).tolist() == [0.1, 0.1]
    assert REMASK_SCHEDULES["rescale"](0.3, 0.1, np.ones(2, bool), np.zeros(2)) == pytest.approx([0.03, 0.03])


def test_locked_and_given_tokens_under_remasking() -> None:
    settings = SamplerSettings(canvas_length=8, accept="quota", steps=8, remask="rescale", remask_eta=1.0)
    canvas = begin(settings, VOCABULARY, NoiseKey(2), 0, locked={0: 1, 7: 3})
    taken = 0
    while not canvas.finished:
        canvas = advance(canvas, believing(*range(6), 2, 2))
        taken += int((canvas.state == SlotState.REVISED).sum())
        assert canvas.tokens[[0, 7]].tolist() == [1, 3]
        assert (canvas.tokens[canvas.state == SlotState.REVISED] == MASK).all()
        assert not np.isin(canvas.shown[canvas.state == SlotState.REVISED], MASK).any()
    assert taken > 0
