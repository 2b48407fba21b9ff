"""What holds for every rule, network, vocabulary and seed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from redraft.errors import RedraftError, RequestError
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
from tests.sampling.networks import arbitrary, run

V, MASK, NULL, EOS = 11, 8, 9, 10
FULL = SlotVocabulary(V, mask_id=MASK, null_id=NULL, eos_ids=(EOS,), banned=(7,))
RULES = [
    {"accept": "threshold"},
    {"accept": "threshold", "threshold": 0.4, "renoise": "uniform"},
    {"accept": "threshold", "threshold": 0.5, "edit_threshold": 0.3, "edit_steps": 3},
    {"accept": "threshold", "threshold": 0.5, "steps": 4, "confident_entropy": 0.5},
    {"accept": "threshold", "threshold": 0.3, "length_first": True},
    {"accept": "quota", "steps": 3},
    {"accept": "quota", "steps": 8, "remask": "cap", "remask_eta": 0.3},
    {"accept": "entropy_bound", "entropy_bound": 0.5},
    {"accept": "entropy_bound", "renoise": "uniform"},
    {"accept": "entropy_bound", "renoise": "uniform", "entropy_bound": 1e9},
    {"accept": "ancestral", "steps": 5},
    {"accept": "ancestral", "steps": 9, "remask": "conf", "edit_threshold": 0.5},
    {"accept": "ancestral", "corruption": "uniform", "schedule": "cosine"},
    {"accept": "ancestral", "corruption": "hybrid", "belief": "full"},
    {"accept": "first_hitting"},
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=str)


@st.composite
def canvases(draw: st.DrawFn) -> tuple:
    rule = draw(st.sampled_from(RULES))
    length = draw(st.integers(1, 9))
    settings = SamplerSettings(
        **rule,
        canvas_length=length,
        max_steps=draw(st.integers(1, 12)),
        temperature=draw(st.sampled_from([0.0, 0.7, 1.5])),
        top_k=draw(st.sampled_from([0, 3])),
        top_p=draw(st.sampled_from([1.0, 0.8])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
    )
    tokens = st.sampled_from([t for t in range(V) if t != MASK])
    locked = draw(st.dictionaries(st.integers(0, length - 1), tokens, max_size=3))
    initial = draw(st.none() | st.lists(st.sampled_from([-1, *range(V)]), min_size=length, max_size=length))
    key = NoiseKey(draw(st.integers(-5, 2**70)), draw(st.integers(0, 3)))
    return settings, locked, initial, key, draw(st.integers(0, 400)), arbitrary(V, draw(st.integers(0, 3)))


@given(canvases())
@hypothesis_settings(max_examples=120, deadline=None)
def test_any_canvas(case: tuple) -> None:
    settings, locked, initial, key, position, network = case
    canvas = begin(settings, FULL, key, position, locked, initial)
    while not canvas.finished:
        before = canvas
        frozen = [getattr(before, f.name) for f in dataclasses.fields(before)]
        copies = [value.copy() if isinstance(value, np.ndarray) else value for value in frozen]
        logits = network(canvas)
        canvas = advance(canvas, logits)
        assert all(np.array_equal(a, b) for a, b in zip(frozen, copies, strict=True))  # it is a pure function
        fewer = advance(before, logits[wanted(before)])
        assert np.array_equal(fewer.tokens, canvas.tokens)
        assert np.array_equal(fewer.probability, canvas.probability)
        assert canvas.step == before.step + 1 <= settings.max_steps
        for slot, token in locked.items():
            assert canvas.tokens[slot] == canvas.shown[slot] == token
            assert canvas.state[slot] == SlotState.LOCKED
        assert not np.isin(canvas.tokens[canvas.settled], (MASK, *(() if initial or locked else (7,)))).any()
        assert ((canvas.probability >= 0) & (canvas.probability <= 1)).all()
        assert (canvas.entropy >= 0).all()
        assert np.array_equal(canvas.shown[canvas.settled], canvas.tokens[canvas.settled])
        assert MASK not in outcome(canvas)
    assert advance(canvas, np.zeros((0, V), np.float32)) is canvas
    assert canvas.settled[canvas.live].all()
    written = [int(t) for t in canvas.tokens]
    ends = [i for i, t in enumerate(written) if t == EOS and not canvas.locked[i]]
    want = [t for t in written[: ends[0] + 1] if t != NULL] if ends else [t for t in written if t != NULL]
    assert outcome(canvas) == tuple(want)
    again = run(network, settings, FULL, key, position=position, locked=locked, initial=initial)
    assert np.array_equal(again.tokens, canvas.tokens)


def test_threshold_one_settles_one_slot_a_step() -> None:
    """Even where float32 rounds a probability to 1."""
    settings = SamplerSettings(canvas_length=7, threshold=1.0)
    certain = np.full((7, V), -60.0, np.float32)
    certain[:, 2] = 60.0
    canvas = begin(settings, FULL, NoiseKey(0), 0)
    for step in range(7):
        assert canvas.settled.sum() == step
        canvas = advance(canvas, certain)
    assert canvas.finished
    assert (canvas.state == SlotState.NEW).sum() == 1
    assert (canvas.state == SlotState.SETTLED).sum() == 6


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 20])
def test_quota_is_spread_evenly(steps: int) -> None:
    settings = SamplerSettings(canvas_length=7, accept="quota", steps=steps)
    canvas, settled = begin(settings, FULL, NoiseKey(0), 0, locked={2: 1}), []
    logits = np.random.default_rng(0).normal(size=(7, V)).astype(np.float32)
    logits[:, EOS] = -9.0
    while not canvas.finished:
        before = canvas.settled.sum()
        canvas = advance(canvas, logits)
        settled.append(int(canvas.settled.sum() - before))
    base, more = divmod(6, min(steps, 6))
    assert settled == [base + 1] * more + [base] * (min(steps, 6) - more)


def test_an_answer_ends_the_canvas_early() -> None:
    """What lies after the settled end is neither waited for nor written, and its logits are not asked for."""
    settings = SamplerSettings(canvas_length=6, threshold=0.9)
    logits = np.zeros((6, V), np.float32)
    logits[[0, 1], [3, 4]] = 20.0
    logits[2, EOS] = 20.0
    canvas = advance(begin(settings, FULL, NoiseKey(0), 0), logits)
    assert canvas.finished
    assert canvas.step == 1
    assert outcome(canvas) == (3, 4, EOS)
    logits[0] = 0.0
    canvas = advance(begin(settings, FULL, NoiseKey(0), 0), logits)
    assert not canvas.finished
    assert wanted(canvas).tolist() == [0]
    assert advance(canvas, logits).finished


def test_a_locked_end_ends_nothing() -> None:
    canvas = run(arbitrary(V), SamplerSettings(canvas_length=4), FULL, NoiseKey(0), locked={0: EOS})
    assert outcome(canvas)[0] == EOS
    assert len(canvas.live) == 4
    assert canvas.tokens[1] in (*outcome(canvas), NULL)


def test_an_unstarted_canvas_has_nothing_to_say() -> None:
    uniform = begin(SamplerSettings(renoise="uniform"), FULL, NoiseKey(0), 0)
    assert outcome(uniform) == ()  # its random tokens are noise, not text
    assert outcome(begin(SamplerSettings(), FULL, NoiseKey(0), 0, initial=[1, -1, MASK, NULL, 2])) == (1, 2)


@each_rule
def test_the_mask_is_never_written_however_likely(rule: dict) -> None:
    def network(canvas):
        logits = np.zeros((len(canvas.tokens), V), np.float32)
        logits[:, MASK] = 50.0
        return logits

    for temperature in (0.0, 1.0):
        settings = SamplerSettings(canvas_length=5, temperature=temperature, **rule)
        canvas = run(network, settings, FULL, NoiseKey(3))
        assert not np.isin(canvas.tokens[canvas.live], (MASK, 7)).any()


@each_rule
def test_noise_depends_on_seed_sample_and_position_only(rule: dict) -> None:
    settings = SamplerSettings(canvas_length=16, temperature=1.2, **rule)
    vocabulary = SlotVocabulary(V, mask_id=MASK)
    results = {
        name: run(arbitrary(V, scale=0.3), settings, vocabulary, key, position=position).tokens.tolist()
        for name, key, position in [
            ("a", NoiseKey(1), 0), ("b", NoiseKey(2), 0), ("c", NoiseKey(1, 1), 0), ("d", NoiseKey(1), 16),
        ]
    }  # fmt: skip
    assert len({tuple(tokens) for tokens in results.values()}) == 4
    assert (
        run(arbitrary(V, scale=0.3), settings, vocabulary, NoiseKey(1), position=0).tokens.tolist()
        == results["a"]
    )


def test_entropy_is_of_the_distribution() -> None:
    """Not of the drawn token's probability (a peer's defect)."""
    logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    canvas = advance(
        begin(SamplerSettings(canvas_length=1, renoise="uniform"), SlotVocabulary(3), NoiseKey(0), 0), logits
    )
    assert canvas.entropy[0] == pytest.approx(
        -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2)), rel=1e-5
    )
    assert canvas.probability[0] == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_an_error(bad: float) -> None:
    canvas = begin(SamplerSettings(canvas_length=2), FULL, NoiseKey(0), 0)
    logits = np.zeros((2, V), np.float32)
    logits[1, 3] = bad
    with pytest.raises(RedraftError, match="not finite"):
        advance(canvas, logits)
    with pytest.raises(RedraftError, match="shape"):
        advance(canvas, logits[:, :-1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"locked": {5: 1}}, "slots 0 to 3"),
        ({"locked": {0: MASK}}, "stands for nothing"),
        ({"locked": {0: V}}, "tokens from 0"),
        ({"initial": [0, -2]}, "tokens from 0"),
        ({"initial": []}, "at least one slot"),
        ({"vocabulary": SlotVocabulary(V)}, "no mask token"),
    ],
)
def test_a_canvas_that_can_not_be(given: dict, message: str) -> None:
    vocabulary = given.pop("vocabulary", FULL)
    with pytest.raises(RequestError, match=message):
        begin(SamplerSettings(canvas_length=4), vocabulary, NoiseKey(0), 0, **given)


def test_needs_no_torch() -> None:
    code = "import sys, redraft.sampling, redraft.corruption; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "src"}, check=False).returncode == 0
    )


def test_the_first_step_decides_the_length() -> None:
    """Slots 0 and 3 are sure of a token, 2 of being empty; from there on all are empty, and no null comes later."""
    settings = SamplerSettings(canvas_length=5, threshold=0.9, length_first=True)
    logits = np.zeros((5, FULL.vocab_size), dtype=np.float32)
    logits[0, 1] = logits[3, 2] = 9.0
    logits[2, FULL.null_id] = 9.0
    logits[1, FULL.null_id] = 0.1  # its likeliest, but less likely than all the others together
    canvas = advance(begin(settings, FULL, NoiseKey(0), 0), logits)
    null = FULL.null_id
    assert canvas.tokens[[0, 2, 3, 4]].tolist() == [1, null, null, null]
    assert canvas.open.tolist() == [False, True, False, False, False]
    last = advance(canvas, logits)
    assert last.finished
    assert last.tokens[1] not in (null, FULL.mask_id)


def test_a_length_is_decided_for_each_run_of_open_slots() -> None:
    settings = SamplerSettings(canvas_length=5, threshold=0.9, length_first=True)
    logits = np.zeros((5, FULL.vocab_size), dtype=np.float32)
    logits[1, FULL.null_id] = logits[4, FULL.null_id] = 9.0
    canvas = begin(settings, FULL, NoiseKey(0), 0, locked={2: 3})
    canvas = advance(canvas, logits)
    assert canvas.open.tolist() == [True, False, False, True, False]
