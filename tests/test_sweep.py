"""recipes/sweep.py: the law that is fitted to short runs."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SWEEP: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "recipes/sweep.py"))


def law(size: float, tokens: float) -> float:
    return 1.0 + 0.5 * size**-0.3 + 0.9 * tokens**-0.5


def runs() -> list[dict[str, Any]]:
    found = []
    for size, rate in ((1.0, 0.2), (2.0, 0.1), (4.0, 0.05), (8.0, 0.025)):  # million tokens a minute
        for minutes in (3.0, 9.0):
            tokens = int(rate * minutes * 1e6)
            found.append(
                {
                    "size": f"{size}M",
                    "minutes": minutes,
                    "tokens": tokens,
                    "valid_ar": law(size, tokens / 1e6),
                }
            )
    return found


def test_the_fit_finds_the_law_that_made_the_runs() -> None:
    found = SWEEP["fit"](runs())
    assert found["rmse"] < 1e-3
    predicted = SWEEP["predicted"](found, runs(), 90.0)
    assert predicted["4.0M"] == pytest.approx(law(4.0, 2 * 0.05 * 90), abs=0.02)


def test_every_size_of_the_sweep_is_a_network_of_about_its_name() -> None:
    from redraft.training.recipe import load

    recipe = Path(__file__).parents[1] / "recipes/tiny.yaml"
    for size in SWEEP["SIZES"]:
        model = load(recipe, SWEEP["settings"](size)).model
        layer = 4 * model.hidden_size * model.num_attention_heads * model.head_dim
        layer += 3 * model.hidden_size * model.intermediate_size
        count = 4096 * model.hidden_size + model.num_hidden_layers * layer
        assert count / 1e6 == pytest.approx(float(size.rstrip("M")), rel=0.05)
