"""The quality and speed dial, from measured points: what `bench frontier` and `bench speed` found, as the entries of
generation_config.json.

A level is a point of diffusion that was measured, not a guess: the fastest one whose text is at most so much worse
than AR's own at equal variety (excess_percent of the frontier), and for "high" the best text of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redraft.engine.adaptive import FEW_ROWS
from redraft.errors import RequestError

# percent by which AR NLL may exceed AR's frontier; from fast to good
BOUNDS = {"instant": 25.0, "low": 10.0, "medium": 3.0}
NO_WORSE, BEST = "medium", "high"
SETTINGS = {
    "canvas": "canvas_length",
    "threshold": "threshold",
    "slide": "slide",
    "check_ratio": "check_ratio",
}  # a point's names and the file's


def effort_levels(frontier: Mapping[str, Any], temperature: float | None = None) -> dict[str, dict[str, Any]]:
    """generation_config.json's "effort" from the object of `redraft bench frontier --json`.

    temperature: of the points that count, the model's default one; None: the lowest that was measured. A level whose
    bound no point keeps gets the best point there is, and none is slower than the better level after it: where a
    better point is also faster, both levels are that point. Raises RequestError when there's no diffusion point.
    """
    points = _eligible(frontier.get("points", ()), temperature)
    best = min(points, key=lambda p: (p["excess_percent"], -p["tokens_per_second"]))
    chosen = {}
    for level, bound in BOUNDS.items():
        good = [p for p in points if p["excess_percent"] <= bound]
        chosen[level] = max(good, key=_speed_then_quality, default=best)
    return {level: settings(point) for level, point in (chosen | {BEST: best}).items()}


def tuned(generation: Mapping[str, Any], frontier: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json with its effort levels, the defaults being those of the level that is as good as AR, and
    how many slots verified drafts at once, as a frontier found them best."""
    levels = effort_levels(frontier)
    out = dict(generation) | levels[NO_WORSE] | {"effort": levels}
    verified = [p for p in frontier["points"] if p["decode"] == "verified" and isinstance(p["canvas"], int)]
    if verified:
        out["draft_length"] = max(verified, key=lambda p: p["tokens_per_second"])["canvas"]
    return out


def settings(point: Mapping[str, Any]) -> dict[str, Any]:
    """A frontier point as an entry of "effort"."""
    return {theirs: point[ours] for ours, theirs in SETTINGS.items() if point.get(ours) is not None}


def step_costs(costs: Mapping[str, Any]) -> dict[str, float]:
    """generation_config.json's "step_costs" from the `costs` of evaluation.speed: evaluations with a canvas of each
    length, in AR steps. Empty where they weren't measured."""
    over_ar = costs.get("over_ar", {})
    lengths = {
        name.removeprefix("canvas_"): cost for name, cost in over_ar.items() if name.startswith("canvas_")
    }
    return {slots: round(float(lengths[slots]), 3) for slots in sorted(lengths, key=int)}


def row_cost(costs: Mapping[str, Any]) -> float:
    """generation_config.json's "row_cost" from the same: what a clean row adds to an evaluation beside a canvas, on the
    line between the evaluations that encode 4 and 16 of them."""
    over_ar = costs["over_ar"]
    few, more = FEW_ROWS
    beside = [over_ar[f"commit_and_canvas_{n}"] - over_ar[f"canvas_{n}"] for n in (few, more)]
    return round(max(0.0, float(beside[1] - beside[0])) / (more - few), 4)


def _eligible(points: Sequence[Mapping[str, Any]], temperature: float | None) -> list[Mapping[str, Any]]:
    """Diffusion's points that a level can name: at one temperature, and from the draft token the model itself takes."""
    ours = [p for p in points if p["decode"] == "diffusion" and p.get("sharp") is None]
    if not ours:
        raise RequestError("the frontier holds no diffusion point to choose effort levels from")
    wanted = min(p["temperature"] for p in ours) if temperature is None else temperature
    found = [p for p in ours if p["temperature"] == wanted]
    if not found:
        measured = ", ".join(f"{t:g}" for t in sorted({p["temperature"] for p in ours}))
        raise RequestError(
            f"no diffusion point was measured at temperature {wanted:g} (there are {measured})"
        )
    return found


def _speed_then_quality(point: Mapping[str, Any]) -> tuple[float, float]:
    return point["tokens_per_second"], -point["excess_percent"]
