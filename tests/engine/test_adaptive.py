"""The length of the next canvas: what it follows, and that nothing else can change it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.engine import Commit, Engine, Request, Step
from redraft.engine.adaptive import CHANCES, StepCosts, choose_length, fitted, gain, steps
from redraft.errors import RequestError
from redraft.sampling import SamplerSettings
from tests.engine.models import backend, finish, prompt, run, token_bytes, told

COSTS = StepCosts(((4, 1.2), (8, 1.4), (16, 1.9)))
EVALUATION = st.integers(1, 32).flatmap(lambda before: st.tuples(st.just(before), st.integers(1, before)))


def test_steps_between_one_slot_and_the_whole_canvas() -> None:
    assert gain(9, 0.0) == 1
    assert gain(9, 1.0) == 9
    for slots in (1, 4, 16, 32):
        assert steps(slots, 0.0) == slots
        assert steps(slots, 1.0) == 1
        counts = [steps(slots, q) for q in CHANCES]
        assert counts == sorted(counts, reverse=True)


@given(st.sampled_from(CHANCES), st.sampled_from([8, 16, 32]))
def test_the_fit_finds_the_chance_back(chance: float, slots: int) -> None:
    settled = [(slots, gain(slots, chance))] * 8
    assert gain(slots, fitted(settled)) == pytest.approx(settled[0][1], abs=1e-9)


def test_easy_text_takes_long_canvases_and_hard_text_short_ones() -> None:
    hard = [(16 - i, 1) for i in range(16)]
    assert choose_length(hard, COSTS) == 4  # a slot a step however many there are: take the cheapest step
    assert choose_length([(16, 16)] * 8, COSTS) == 16
    assert choose_length([(16, 16)], COSTS) == 4  # too little to go by
    middling = [(8, 3), (5, 2), (3, 2), (1, 1)] * 4
    assert choose_length(middling, StepCosts(((4, 1.0), (8, 1.1), (16, 4.0)))) in (4, 8)


@given(st.lists(EVALUATION, max_size=40))
def test_a_length_of_the_table(history: list[tuple[int, int]]) -> None:
    chosen = choose_length(history, COSTS)
    assert chosen == choose_length(list(history), COSTS)
    assert chosen in {slots for slots, _ in COSTS.costs}
    scaled = StepCosts(tuple((s, 4 * c) for s, c in COSTS.costs))
    assert choose_length(history, scaled) == chosen  # only ratios count


def test_costs_between_and_beyond_the_measured_lengths() -> None:
    assert COSTS.at(1) == 1.0
    assert COSTS.at(2.5) == pytest.approx(1.1)  # between one row, an AR step, and four
    assert COSTS.at(8) == pytest.approx(1.4)
    assert COSTS.at(24) == pytest.approx(2.4)
    assert StepCosts(((1, 2.0),)).at(9) == 2.0


@pytest.mark.parametrize(
    "table", [{"0": 1}, {"8": 0}, {"8": float("nan")}, {"8": True}, {"eight": 1}, {"8": "dear"}, {"-4": 1}]
)
def test_a_table_that_cannot_be(table: dict) -> None:
    with pytest.raises(RequestError, match="step_costs"):
        StepCosts.of(table)


def asked(seed: int, **changes: object) -> Request:
    sampler = SamplerSettings(
        canvas_length=8, max_steps=16, temperature=0.7, threshold=0.2 + 0.1 * (seed % 6)
    )
    made = Request(prompt(5 + seed, seed), sampler=sampler, max_tokens=60, seed=seed, ignore_eos=True)
    return replace(made, **{"step_costs": COSTS} | changes)


@pytest.mark.parametrize("slide", [0, 2])
def test_the_same_seed_gives_the_same_tokens_alone_and_in_a_batch(slide: int) -> None:
    requests = [asked(s, slide=slide) for s in range(6)]
    alone = [told(run([r])[0]) for r in requests]
    assert alone == [told(t) for t in run(requests, max_batch=4)]
    assert alone == [told(run([r])[0]) for r in requests]


def test_canvases_change_their_length() -> None:
    engine = Engine(backend(), token_bytes)
    tickets = [engine.submit(asked(s)) for s in range(6)]
    lengths: set[int] = set()
    for ticket, events in finish(engine, tickets).items():
        assert ticket.writer is not None
        widths = [len(e.tokens) for e in events if isinstance(e, Step)]
        assert widths[0] == 4  # the shortest while nothing is known
        assert sum(len(e.tokens) for e in events if isinstance(e, Commit)) == 60
        lengths |= set(widths)
    assert lengths - {4}
    assert lengths <= {4, 8, 16}


@pytest.mark.parametrize("decode", ["ar", "verified"])
def test_other_modes_write_as_before(decode: str) -> None:
    requests = [asked(s, decode=decode) for s in range(4)]
    assert [told(t) for t in run(requests)] == [
        told(t) for t in run([replace(r, step_costs=None) for r in requests])
    ]


def test_a_canvas_and_a_row_cost_what_the_table_says() -> None:
    plain = StepCosts(((4, 1.3), (8, 1.7), (16, 2.5)))  # a row is 0.1, and nothing comes besides
    assert plain.row == pytest.approx(0.1)
    assert plain.canvas == pytest.approx(0.0)
    adapted = StepCosts(((4, 2.0), (8, 2.4), (16, 3.2)))
    assert adapted.row == pytest.approx(0.1)
    assert adapted.canvas == pytest.approx(0.7)
    assert StepCosts(((4, 1.0), (16, 0.9))).row == 0.0
    assert adapted.of_drafts() == pytest.approx((0.1, 0.1, 0.7))
    assert adapted.of_drafts(0.2) == pytest.approx((0.2, 0.1, 0.7))  # canvas rows that pass fewer layers
    assert plain.of_drafts(0.2) == (0.03, 0.03, 0.0)
