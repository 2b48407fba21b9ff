"""Effort levels from frontiers that were made up."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.errors import RequestError
from redraft.evaluation.effort import BOUNDS, effort_levels, row_cost, settings, step_costs, tuned
from redraft.hub import GenerationDefaults


def point(threshold: float, speed: float, excess: float, **more: Any) -> dict[str, Any]:
    base = {"decode": "diffusion", "temperature": 0.0, "canvas": 16, "slide": 0, "sharp": None}
    return base | {"threshold": threshold, "tokens_per_second": speed, "excess_percent": excess} | more


AR = {"decode": "ar", "temperature": 0.0, "tokens_per_second": 999.0, "excess_percent": -9.0}
POINTS = [
    AR,
    point(0.5, 900, 40),
    point(0.6, 700, 24),
    point(0.7, 500, 9.5),
    point(0.8, 400, 9),
    point(0.9, 300, 2),
    point(0.95, 200, 1),
    point(0.9, 950, 0.5, temperature=0.5),
    point(0.4, 990, 0.1, sharp=False),
]


def test_each_level_is_the_fastest_point_within_its_bound() -> None:
    levels = effort_levels({"points": POINTS})
    assert {level: s["threshold"] for level, s in levels.items()} == {
        "instant": 0.6,
        "low": 0.7,
        "medium": 0.9,
        "high": 0.95,
    }
    assert list(levels) == ["instant", "low", "medium", "high"]
    assert GenerationDefaults.from_dict({"effort": levels}).settings_for("low") == {
        "canvas_length": 16,
        "threshold": 0.7,
        "slide": 0,
    }


def test_another_temperature() -> None:
    assert {s["threshold"] for s in effort_levels({"points": POINTS}, 0.5).values()} == {0.9}
    with pytest.raises(RequestError, match=r"temperature 0\.7 \(there are 0, 0\.5\)"):
        effort_levels({"points": POINTS}, 0.7)


def test_bounds_that_no_point_keeps_fall_back_to_the_best() -> None:
    levels = effort_levels({"points": [point(0.5, 900, 60), point(0.9, 300, 20)]})
    assert {level: s["threshold"] for level, s in levels.items()} == dict.fromkeys(levels, 0.9)


def test_no_diffusion_point() -> None:
    with pytest.raises(RequestError, match="no diffusion point"):
        effort_levels({"points": [AR]})


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(-20, 80)), min_size=1, max_size=12))
def test_levels_go_from_fast_to_good(measured: list[tuple[float, float]]) -> None:
    points = [point(i / 20, speed, excess) for i, (speed, excess) in enumerate(measured)]
    by_settings = {tuple(settings(p).items()): p for p in points}
    levels = [by_settings[tuple(s.items())] for s in effort_levels({"points": points}).values()]
    for faster, better in pairwise(levels):
        assert faster["tokens_per_second"] >= better["tokens_per_second"] or faster is better
        assert faster["excess_percent"] >= levels[-1]["excess_percent"]
    for bound, chosen in zip(BOUNDS.values(), levels, strict=False):
        rivals = [p for p in points if p["excess_percent"] <= bound]
        assert all(p["tokens_per_second"] <= chosen["tokens_per_second"] for p in rivals)


def test_step_costs_of_a_speed_report() -> None:
    over = {"canvas_16": 1.70049, "canvas_8": 1.25, "commit_and_canvas_8": 1.6}
    assert step_costs({"over_ar": over}) == {"8": 1.25, "16": 1.7}
    assert step_costs({}) == {}
    assert GenerationDefaults.from_dict(
        {"canvas_length": "auto", "step_costs": step_costs({"over_ar": over})}
    )


def test_a_clean_row_costs_what_it_adds_beside_a_canvas() -> None:
    over = {"canvas_4": 1.4, "canvas_16": 2.0, "commit_and_canvas_4": 1.9, "commit_and_canvas_16": 3.7}
    assert row_cost({"over_ar": over}) == pytest.approx((3.7 - 2.0 - (1.9 - 1.4)) / 12)
    assert row_cost({"over_ar": over | {"commit_and_canvas_16": 1.0}}) == 0.0


def test_a_frontier_tunes_the_models_defaults() -> None:
    checked = point(0.7, 990, 2.5, canvas=5, check_ratio=0.5)
    verified = [
        {"decode": "verified", "canvas": 4, "tokens_per_second": 700.0},
        {"decode": "verified", "canvas": 8, "tokens_per_second": 600.0},
    ]
    given = {"temperature": 0.0, "draft_length": 16, "effort": {"low": {"threshold": 0.1}}}
    made = tuned(given, {"points": [*POINTS, checked, *verified]})
    assert made["temperature"] == 0.0
    assert made["draft_length"] == 4
    assert made["effort"]["medium"] == {
        "canvas_length": 5,
        "threshold": 0.7,
        "slide": 0,
        "check_ratio": 0.5,
    }
    assert GenerationDefaults.from_dict(made).settings_for("medium")["check_ratio"] == 0.5
