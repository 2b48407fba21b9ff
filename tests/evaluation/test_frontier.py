"""AR's curve through known points, what counts as no worse, and the whole sweep on a tiny model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.api import Model
from redraft.evaluation import frontier as f
from redraft.evaluation.benches import BENCHES, Options, run_bench
from redraft.evaluation.prompts import Dialogues, pick_prompts
from redraft.evaluation.quality import Quality, judge
from redraft.evaluation.text import continuation_nll

CURVE = f.Curve.through([0.2, 0.4, 0.8], [1.0, 2.0, 3.0])
share = st.floats(0.01, 1.0)


def test_between_two_points_the_curve_is_the_line_through_them() -> None:
    assert CURVE.at(0.2) == 1.0
    assert CURVE.at(0.3) == pytest.approx(1.5, abs=1e-12)
    assert CURVE.at(0.5) == pytest.approx(2.25, abs=1e-12)
    assert f.excess(CURVE, 0.3, 1.8) == pytest.approx(20.0, abs=1e-9)
    assert f.excess(CURVE, 0.5, 2.25) == pytest.approx(0.0, abs=1e-9)


def test_outside_its_range_the_curve_goes_on_flat() -> None:
    assert (CURVE.at(0.1), CURVE.at(0.9)) == (1.0, 3.0)
    assert [CURVE.holds(d) for d in (0.1, 0.2, 0.8, 0.9)] == [False, True, True, False]


def test_a_point_that_another_beats_in_both_is_no_part_of_the_curve() -> None:
    curve = f.Curve.through([0.3, 0.2, 0.5, 0.4], [1.0, 1.5, 2.0, 2.5])
    assert curve.distinct.tolist() == [0.3, 0.5]
    assert curve.nll.tolist() == [1.0, 2.0]


@given(st.lists(st.tuples(share, share), min_size=1, max_size=6))
def test_no_ar_point_lies_below_the_curve(points: list[tuple[float, float]]) -> None:
    curve = f.Curve.through([d for d, _ in points], [n for _, n in points])
    assert (np.diff(curve.distinct) > 0).all()
    assert (np.diff(curve.nll) > 0).all()
    for d, n in points:
        assert any(kd >= d and kn <= n for kd, kn in zip(curve.distinct, curve.nll, strict=True))
    for d, n in zip(curve.distinct, curve.nll, strict=True):
        assert f.excess(curve, float(d), float(n)) == pytest.approx(0.0, abs=1e-9)


def quality(nll: float, prompts: int = 5) -> Quality:
    return Quality(nll, np.full(prompts, nll), 1.0, 0.5, 0.0, 10)


def test_each_point_is_compared_with_ar_and_the_fastest_good_one_chosen() -> None:
    points = [
        {"name": "cold", "decode": "ar", "distinct_3": 0.2, "ar_nll": 1.0, "tokens_per_second": 100.0},
        {"name": "warm", "decode": "ar", "distinct_3": 0.6, "ar_nll": 2.0, "tokens_per_second": 100.0},
        {
            "name": "good",
            "decode": "diffusion",
            "distinct_3": 0.4,
            "ar_nll": 1.53,
            "tokens_per_second": 150.0,
        },
        {
            "name": "fast",
            "decode": "diffusion",
            "distinct_3": 0.4,
            "ar_nll": 1.56,
            "tokens_per_second": 190.0,
        },
        {"name": "slow", "decode": "diffusion", "distinct_3": 0.4, "ar_nll": 1.2, "tokens_per_second": 120.0},
    ]
    f.compare(points, [quality(p["ar_nll"]) for p in points])
    assert [p["excess_percent"] for p in points] == pytest.approx([0, 0, 2, 4, -20], abs=1e-9)
    for point in points:  # every prompt has the same likelihood, so drawing them anew changes nothing
        assert point["excess_interval"] == pytest.approx([point["excess_percent"]] * 2, abs=1e-9)
        assert point["inside"]
    chosen = f.best(points)
    assert chosen is not None
    assert chosen["name"] == "good"
    assert f.best(points[:2]) is None


def test_judging_cuts_all_ways_to_the_same_length(model: Model) -> None:
    prompts = [np.array([1, 40, 41, 2]), np.array([1, 50, 2])]
    written = [[(60, 61, 62, 63), (60, 61, 62)], [(70, 71, 72, 73, 74), (75, 76, 77, 78)]]
    first, second = judge(model.backend, prompts, written)
    assert (first.tokens, second.tokens) == (6, 6)
    assert first.distinct_3 == 1 / 2
    nll = continuation_nll(model.backend, prompts, [t[:3] for t in written[1]])
    assert second.ar_nll == pytest.approx(np.concatenate(nll).mean(), rel=1e-12)
    assert second.by_prompt.tolist() == pytest.approx([n.mean() for n in nll], rel=1e-12)
    assert second.ar_nll_se == pytest.approx(np.std([n.mean() for n in nll], ddof=1) / 2**0.5)


@pytest.fixture(scope="module")
def told(model: Model, dialogues: Dialogues) -> dict:
    settings = f.Frontier(
        tokens=12,
        thresholds=(0.9, 0.0),
        temperatures=(0.0,),
        canvases=(4, 8),
        checks=((4, 0.5),),
        draft_lengths=(None, 4),
        ar_temperatures=(0.0, 1.0),
        timed=1,
    )
    return f.frontier(model, pick_prompts(dialogues, 3, 12), settings)


def test_every_point_of_the_sweep_has_its_numbers(told: dict) -> None:
    points = {p["name"]: p for p in told["points"]}
    assert list(points) == [
        *("ar T=0", "ar T=1", "verified T=0", "verified C=4 T=0", "diffusion checked 0.5 C=4 T=0"),
        *(
            "diffusion p>0.9 C=4 T=0",
            "diffusion p>0 C=4 T=0",
            "diffusion p>0.9 C=8 T=0",
            "diffusion p>0 C=8 T=0",
        ),
    ]
    for point in told["points"]:
        assert point["tokens"] == 36
        assert point["tokens_per_forward"] == pytest.approx(36 / point["nfe"])
        assert 0 < point["distinct_3"] <= 1
        assert point["tokens_per_second"] > 0
    assert points["diffusion p>0 C=4 T=0"]["tokens_per_forward"] == 4.0  # every slot settles in one step
    assert points["diffusion p>0 C=8 T=0"]["tokens_per_forward"] == 6.0  # the second canvas is cut
    assert told["timed_prompts"] == 1


def test_verified_writes_what_ar_writes(told: dict) -> None:
    ar, verified = (next(p for p in told["points"] if p["decode"] == d) for d in ("ar", "verified"))
    assert verified["ar_nll"] == ar["ar_nll"]
    assert verified["distinct_3"] == ar["distinct_3"]
    assert verified["nfe"] <= ar["nfe"]


def test_report_and_picture(told: dict, tmp_path: Path) -> None:
    lines = f.lines(told)
    assert len(lines) == 2 + len(told["points"]) + 1
    BENCHES["frontier"].plot(told, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_given_lists_replace_the_usual_ones(model: Model) -> None:
    options = Options(quick=True, prompts=1, tokens=8, thresholds=(0.3, 0.2), canvases=(4,))
    points = run_bench("frontier", model, options)["points"]
    assert [p["threshold"] for p in points if p["decode"] == "diffusion"] == [0.3, 0.2]
    assert {p["canvas"] for p in points if p["decode"] == "diffusion"} == {4}


def test_settings_make_a_grid() -> None:
    settings = dataclasses.replace(
        f.Frontier(), thresholds=(0.9, 0.5), temperatures=(0.0, 1.0), canvases=(8, 16), checks=()
    )
    assert sum(w.decode == "diffusion" for w in settings.ways()) == 8
    with_drafts = [w for w in settings.ways(drafts=True) if w.decode == "diffusion"]
    assert len(with_drafts) == 12
    assert {w.temperature for w in with_drafts if w.sharp is False} == {0.0}
    assert [w.temperature for w in settings.ways() if w.decode == "ar"] == list(f.AR_TEMPERATURES)
