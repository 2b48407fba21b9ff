"""bench frontier: quality beside speed, and diffusion's points against AR's own frontier.

One number for quality can always be bought with the other: a sampler that says the likeliest thing again and again
has a fine likelihood, one that draws wildly a fine diversity. So AR is swept over temperature, which draws its curve
of likelihood over diversity, and a point of diffusion is compared with that curve at its own diversity: how much
higher (in %) is its AR negative log-likelihood than AR's at equal distinct-3, both over equally many tokens?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.evaluation.quality import Quality, judge
from redraft.evaluation.writing import Bench, Progress, Way, Written, fastest_ar, machine, write_all

AR_TEMPERATURES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
THRESHOLDS = (0.95, 0.9, 0.8, 0.7, 0.5)
TEMPERATURES = (0.0, 0.5)
CHECKS = (
    (4, 0.7),
    (5, 0.7),
    (4, 0.5),
    (5, 0.5),
    (5, 0.3),
    (8, 0.3),
)  # slots of a canvas that the AR self checks, and how strictly
DRAFT_LENGTHS = (3, 4, 5, 6, 8, 16)  # of verified
WORST = (
    3.0  # percent by which a point's AR NLL may exceed AR's at equal distinct-3 and still count as no worse
)


@dataclass(frozen=True)
class Frontier:
    """What to measure. canvases None: the model's own length. timed: prompts written alone, for tokens a second; the
    rest go `batch` at a time, which changes no token."""

    tokens: int = 128
    thresholds: tuple[float, ...] = THRESHOLDS
    temperatures: tuple[float, ...] = TEMPERATURES
    canvases: tuple[int | None, ...] = (None,)
    checks: tuple[tuple[int, float], ...] = CHECKS
    draft_lengths: tuple[int | None, ...] = DRAFT_LENGTHS
    ar_temperatures: tuple[float, ...] = AR_TEMPERATURES
    timed: int = 8
    batch: int = 8
    seed: int = 0

    def ways(self, drafts: bool = False) -> list[Way]:
        """drafts: the model has a draft token, which the engine uses at temperature 0; there, then, also without."""
        ar = [Way("ar", temperature=t) for t in self.ar_temperatures]
        diffusion = [
            Way("diffusion", temperature=t, threshold=p, canvas=c, sharp=sharp)
            for c in self.canvases
            for t in self.temperatures
            for sharp in ((None, False) if drafts and t == 0 else (None,))
            for p in self.thresholds
        ]
        checked = [
            Way("diffusion", temperature=t, canvas=c, check=ratio)
            for t in self.temperatures
            for c, ratio in self.checks
        ]
        verified = [Way("verified", temperature=0.0, canvas=c) for c in self.draft_lengths]
        return [*ar, *verified, *checked, *diffusion]


@dataclass(frozen=True)
class Curve:
    """AR's frontier: points (distinct-3, NLL) none of which another beats in both, from least varied to most."""

    distinct: np.ndarray
    nll: np.ndarray

    @classmethod
    def through(cls, distinct: Sequence[float], nll: Sequence[float]) -> Curve:
        """From AR's points in any order; those that are less varied and less likely than another are left out."""
        pairs = sorted(zip(distinct, nll, strict=True), key=lambda p: (-p[0], p[1]))
        kept: list[tuple[float, float]] = []
        for d, n in pairs:
            if not kept or n < kept[-1][1]:
                kept.append((d, n))
        kept.reverse()
        return cls(np.array([d for d, _ in kept]), np.array([n for _, n in kept]))

    def at(self, distinct: float) -> float:
        """AR's NLL at this distinct-3: between two points on the line through them; below the least varied point its
        NLL, which AR reaches with more variety; above the most varied one its NLL, which is less than AR would need
        there, so that the comparison errs to diffusion's cost."""
        return float(np.interp(distinct, self.distinct, self.nll))

    def holds(self, distinct: float) -> bool:
        """Whether the curve reaches from below to above this distinct-3."""
        return bool(self.distinct[0] <= distinct <= self.distinct[-1])


def excess(curve: Curve, distinct: float, nll: float) -> float:
    """By how many percent `nll` is higher than AR's at equal distinct-3; negative if lower."""
    return 100 * (nll / curve.at(distinct) - 1)


def frontier(
    model: Model, prompts: Sequence[np.ndarray], settings: Frontier, progress: Progress = lambda text: None
) -> dict[str, Any]:
    """The object of `redraft bench frontier --json`: `points`, one a way of writing, and `best`, the fastest
    diffusion point whose excess is at most WORST percent (None if there is none)."""
    ways = settings.ways(model.config.draft_token_id is not None)
    timed = min(settings.timed, len(prompts))
    ar_backend, bare = fastest_ar(model, ways[0].request(model, prompts[0], settings.tokens))
    written = _alone(model, prompts[:timed], ways, settings, ar_backend, progress)
    tokens = [[r.tokens for r in runs] for runs in written]
    nfe = [[r.nfe for r in runs] for runs in written]
    for i, way in enumerate(ways):
        progress(f"{i + 1} of {len(ways)}: {_name(way)}")
        requests = [way.request(model, p, settings.tokens, settings.seed) for p in prompts[timed:]]
        for ticket in write_all(model, requests, settings.batch):
            assert ticket.writer is not None
            tokens[i].append(tuple(ticket.writer.output.tokens))
            nfe[i].append(ticket.writer.nfe)
    progress("judging the text")
    qualities = judge(model.backend, prompts, tokens, settings.batch)
    points = []
    for way, quality, runs, texts, counts in zip(ways, qualities, written, tokens, nfe, strict=True):
        seconds = sum(r.seconds for r in runs)
        points.append(
            {"name": _name(way), **way.told(model)}
            | quality.to_json()
            | {
                "tokens": quality.tokens,
                "nfe": sum(counts),
                "tokens_per_forward": sum(map(len, texts)) / max(1, sum(counts)),
                "tokens_per_second": sum(len(r.tokens) for r in runs) / seconds if seconds else 0.0,
            }
        )
    compare(points, qualities)
    return machine(model) | {
        "prompts": len(prompts),
        "tokens_per_prompt": settings.tokens,
        "timed_prompts": timed,
        "ar_unpadded": bare,
        "worst_excess_percent": WORST,
        "points": points,
        "best": best(points),
    }


def _alone(
    model: Model,
    prompts: Sequence[np.ndarray],
    ways: Sequence[Way],
    settings: Frontier,
    ar_backend: Any,
    progress: Progress,
) -> list[list[Written]]:
    """written[way][prompt], each alone and the ways in turns, for their speed."""
    plain, fast = Bench(model), Bench(model, ar_backend)
    out: list[list[Written]] = [[] for _ in ways]
    for way in ways:  # warm up: caches for the canvas lengths and row counts to come
        (fast if way.decode == "ar" else plain).write(
            way.request(model, prompts[0], min(16, settings.tokens))
        )
    for number, prompt in enumerate(prompts):
        progress(f"speed, prompt {number + 1} of {len(prompts)}")
        for i, way in enumerate(ways):
            bench = fast if way.decode == "ar" else plain
            out[i].append(bench.write(way.request(model, prompt, settings.tokens, settings.seed)))
    return out


def compare(
    points: list[dict[str, Any]], qualities: Sequence[Quality], draws: int = 500, seed: int = 0
) -> None:
    """Adds to each point excess_percent, its 95 % interval by drawing prompts anew (distinct-3 held, since copies of a
    prompt would lower it), and inside: whether AR's curve reaches on both sides of its distinct-3."""
    ar = [i for i, p in enumerate(points) if p["decode"] == "ar"]
    distinct = [points[i]["distinct_3"] for i in ar]
    curve = Curve.through(distinct, [points[i]["ar_nll"] for i in ar])
    rng = np.random.Generator(np.random.Philox(seed))
    drawn = rng.integers(0, len(qualities[0].by_prompt), (draws, len(qualities[0].by_prompt)))
    means = [q.by_prompt[drawn].mean(axis=1) for q in qualities]
    curves = [Curve.through(distinct, [means[i][k] for i in ar]) for k in range(draws)]
    for point, mean in zip(points, means, strict=True):
        d = point["distinct_3"]
        spread = [excess(c, d, float(m)) for c, m in zip(curves, mean, strict=True)]
        point["excess_percent"] = excess(curve, d, point["ar_nll"])
        point["excess_interval"] = [float(x) for x in np.quantile(spread, [0.025, 0.975])]
        point["inside"] = curve.holds(d)


def best(points: Sequence[dict[str, Any]], worst: float = WORST) -> dict[str, Any] | None:
    """The fastest diffusion point that is no worse than AR's frontier."""
    good = [p for p in points if p["decode"] == "diffusion" and p["excess_percent"] <= worst]
    return max(good, key=lambda p: p["tokens_per_second"], default=None)


def _name(way: Way) -> str:
    parts = [way.decode]
    if way.decode == "diffusion":
        parts += [] if way.threshold is None else [f"p>{way.threshold:g}"]
        parts += ["calibrated"] if way.sharp is False else []
        parts += [] if way.check is None else [f"checked {way.check:g}"]
    parts += [] if way.canvas is None else [f"C={way.canvas}"]
    if way.temperature is not None:
        parts.append(f"T={way.temperature:g}")
    return " ".join(parts)


def lines(told: dict[str, Any]) -> list[str]:
    """The report for a person."""
    out = [
        f"{told['model']} on {told['backend']}, {told['device']}: {told['prompts']} prompts, "
        f"{told['tokens_per_prompt']} new tokens each",
        f"{'point':<34} {'tokens/s':>9} {'TPF':>5} {'AR nll':>7} {'entropy':>8} {'distinct-3':>10}"
        "   over AR's frontier",
    ]
    for p in told["points"]:
        low, high = p["excess_interval"]
        edge = "" if p["inside"] else " (outside its range)"
        over = "" if p["decode"] == "ar" else f"{p['excess_percent']:+6.1f} % [{low:+.1f}, {high:+.1f}]{edge}"
        out.append(
            f"{p['name']:<34} {p['tokens_per_second']:9.1f} {p['tokens_per_forward']:5.2f} {p['ar_nll']:7.3f} "
            f"{p['entropy']:8.3f} {p['distinct_3']:10.3f}   {over}"
        )
    chosen = told["best"]["name"] if told["best"] else "none"
    out.append(f"fastest point at most {told['worst_excess_percent']:g} % over AR's frontier: {chosen}")
    return out
