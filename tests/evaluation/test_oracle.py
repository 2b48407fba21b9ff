"""Samplers with an exact denoiser of a hidden Markov model: which are right, and how wrong the others are."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from redraft.corruption import process
from redraft.evaluation.oracle import (
    BOUNDS,
    CURVES,
    HMM,
    Sampled,
    floor,
    hidden_chain,
    markov_chain,
    sampled,
)
from redraft.sampling import SamplerSettings
from redraft.sampling.accept import RULES as CONFIDENCE_RULES
from redraft.sampling.reverse import RULES as PROCESS_RULES
from tests.corruption.toy import Toy

LENGTH, COUNT = 3, 250
MODELS = {"markov chain": markov_chain(LENGTH), "hidden chain": hidden_chain(LENGTH)}
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sampler_error.py"


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> HMM:
    return MODELS[request.param]


def agree(seen: Sampled, p: np.ndarray) -> bool:
    """No farther than twice what exact draws of p would be on average: that happens to one in a hundred or fewer
    (McDiarmid: exp(-2 n floor²)), and the draws here are fixed."""
    return seen.distance(p) < 2 * floor(p, seen.count)


@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("corruption", ["absorbing", "uniform", "hybrid"])
def test_the_denoiser_is_bayes_rule(model: HMM, corruption: str, leave_one_out: bool) -> None:
    """Forward-backward against the sum over all texts, for every noisy text."""
    masks = corruption != "uniform"
    q = process(corruption, 3 + masks, 3 if masks else None, "linear", 0.3)
    toy = Toy(3, LENGTH)
    assert toy.texts.tolist() == model.texts.tolist()
    toy.p = model.p
    noisy = toy.noisy(q)
    want = toy.belief(q, noisy, 0.6, leave_one_out)[..., :3]
    chance = q.marginal(np.arange(3), 0.6)
    for z, expected in zip(noisy, want, strict=True):
        assert model.belief(chance[:, z].T, leave_one_out) == pytest.approx(expected, abs=1e-12)


def test_the_truth_and_its_marginals(model: HMM) -> None:
    assert model.p.sum() == pytest.approx(1.0)
    assert model.independent.sum() == pytest.approx(1.0)
    by_hand = sum(
        model.start[a]
        * model.emit[a, 0]
        * model.step[a, b]
        * model.emit[b, 1]
        * model.step[b, c]
        * model.emit[c, 1]
        for a in range(len(model.start))
        for b in range(len(model.start))
        for c in range(len(model.start))
    )
    assert model.p[[t == [0, 1, 1] for t in model.texts.tolist()].index(True)] == pytest.approx(by_hand)


def test_the_floor_is_where_exact_draws_are() -> None:
    p = MODELS["markov chain"].p
    draws = np.random.default_rng(0).multinomial(400, p, size=300) / 400
    distances = np.abs(draws - p).sum(axis=-1) / 2
    assert distances.mean() == pytest.approx(floor(p, 400), rel=0.12)


def test_every_rule_has_its_curve() -> None:
    settings = [curve(2) for curve in CURVES.values()] + [of(0.5) for of, _ in BOUNDS.values()]
    assert {s.accept for s in settings} == {*CONFIDENCE_RULES, *PROCESS_RULES}
    assert {s.corruption for s in settings if s.accept == "ancestral"} == {"absorbing", "uniform", "hybrid"}
    assert any(s.remask for s in settings)
    assert any(s.edit_threshold for s in settings)


@pytest.mark.parametrize("name", ["quota", "ancestral, absorbing", "first hitting"])
def test_all_slots_at_once_give_the_product_of_the_marginals(model: HMM, name: str) -> None:
    seen = sampled(model, CURVES[name](1), COUNT)
    assert seen.steps == 1
    assert agree(seen, model.independent)
    assert not agree(seen, model.p)


@pytest.mark.parametrize(
    "settings",
    [CURVES["first hitting"](LENGTH), CURVES["ancestral, absorbing"](64), BOUNDS["entropy bound"][0](0.0)],
    ids=["first hitting", "ancestral", "entropy bound 0"],
)
def test_one_slot_at_a_time_in_an_order_that_no_draw_decides_is_exact(
    model: HMM, settings: SamplerSettings
) -> None:
    seen = sampled(model, settings, COUNT)
    assert agree(seen, model.p)
    assert not agree(seen, model.independent)
    assert 2.7 < seen.steps <= LENGTH


@pytest.mark.parametrize("name", ["quota", "ancestral, uniform", "ancestral, hybrid", "ancestral, remasking"])
def test_errors_fall_with_steps(name: str) -> None:
    """quota's never to nothing: its order follows what was drawn."""
    model = MODELS["markov chain"]
    few, many = (sampled(model, CURVES[name](n), COUNT) for n in (1, LENGTH if name == "quota" else 10))
    assert many.distance(model.p) < (0.75 if name == "quota" else 0.6) * few.distance(model.p)


def test_the_surest_draw_first_prefers_likely_texts() -> None:
    """At temperature 1 the order by confidence sharpens: not because of the draws, but of which of them stay."""
    model = MODELS["markov chain"]
    truth = float(model.p @ np.log(model.p))
    for settings in (CURVES["quota"](LENGTH), BOUNDS["threshold"][0](1.0)):
        seen = sampled(model, settings, COUNT)
        assert seen.shares @ np.log(model.p) > truth + 0.3
        assert not agree(seen, model.p)


def test_a_laxer_bound_costs_fewer_steps_and_errs_more() -> None:
    model = MODELS["markov chain"]
    for of, bounds in BOUNDS.values():
        strict, lax = (sampled(model, of(bounds[i]), COUNT) for i in (0, -1))
        assert lax.steps == 1 < strict.steps
        assert strict.distance(model.p) < 0.75 * lax.distance(model.p)


def test_editing_mends_what_drawing_at_once_spoilt() -> None:
    model = MODELS["markov chain"]
    plain, mended = (sampled(model, CURVES[name](1), COUNT) for name in ("quota", "quota, editing"))
    assert mended.steps > plain.steps
    assert mended.distance(model.p) < 0.8 * plain.distance(model.p)
    assert mended.shares @ np.log(model.p) > plain.shares @ np.log(model.p) + 0.3


def test_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    main(["--samples", "3", "--length", "2", "--steps", "1", "2", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert set(told["curves"]) == {*CURVES, *BOUNDS}
    assert all(0 <= point["distance"] <= 1 for points in told["curves"].values() for point in points)
    main(["--samples", "3", "--length", "2", "--steps", "1"])
    assert "first hitting" in capsys.readouterr().out
