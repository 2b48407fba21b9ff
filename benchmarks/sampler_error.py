"""How far each sampler is from the truth, with an exact denoiser, by the evaluations it takes.

    python benchmarks/sampler_error.py                                  # a table
    python benchmarks/sampler_error.py --plot sampler-error.svg --json

The language is a small Markov chain (or --language hidden, a hidden Markov model), the denoiser exact, so all error is
the sampler's: the total variation between its texts' distribution and the truth. What is below `floor` can't be told
from exact draws with so many samples. The numbers depend on --seed alone, not on the machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redraft.evaluation.oracle import BOUNDS, CURVES, floor, hidden_chain, markov_chain, sampled
from redraft.evaluation.plots import check_plot, figure, save

LANGUAGES = {"markov": markov_chain, "hidden": hidden_chain}


def measure(language: str, length: int, samples: int, steps: Sequence[int], seed: int) -> dict[str, Any]:
    """The curves: of each sampler, steps asked for (or its bound), evaluations a text, and distance."""
    model = LANGUAGES[language](length)
    asked: dict[str, list[tuple[float, Any]]] = {
        name: [(n, of(n)) for n in steps] for name, of in CURVES.items()
    }
    asked |= {name: [(x, of(x)) for x in bounds] for name, (of, bounds) in BOUNDS.items()}
    curves: dict[str, list[dict[str, float]]] = {}
    for name, settings in asked.items():
        found = [(at, sampled(model, s, samples, seed)) for at, s in settings]
        curves[name] = [{"at": at, "nfe": f.steps, "distance": f.distance(model.p)} for at, f in found]
    about = {"language": language, "length": length, "samples": samples, "seed": seed}
    return about | {"floor": floor(model.p, samples), "curves": curves}


def report(told: dict[str, Any]) -> str:
    lines = [f"{'sampler':<24}{'at':>8}{'NFE':>8}{'distance':>10}   floor {told['floor']:.3f}"]
    for name, points in told["curves"].items():
        lines += [f"{name:<24}{p['at']:>8g}{p['nfe']:>8.2f}{p['distance']:>10.3f}" for p in points]
    return "\n".join(lines)


def plot(told: dict[str, Any], path: Path) -> None:
    made, axes = figure(1)
    made.set_size_inches(7.5, 5)
    axis = axes[0][0]
    for i, (name, points) in enumerate(told["curves"].items()):
        points = sorted(points, key=lambda p: p["nfe"])
        style = "osD^v<>PX*"[i % 10] + "-"
        axis.plot(
            [p["nfe"] for p in points], [p["distance"] for p in points], style, label=name, markersize=4
        )
    axis.axhline(told["floor"], color="tab:gray", linestyle="--", label="exact draws")
    axis.set(xlabel="evaluations a text", ylabel="total variation from the truth", xscale="log", yscale="log")
    axis.legend(fontsize=8)
    save(made, path)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--language", choices=LANGUAGES, default="markov")
    parser.add_argument("--length", type=int, default=4, help="tokens a text, 6 at most")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help=".png, .svg or .pdf")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(given)
    if not 1 <= options.length <= 6 or options.samples < 1 or min(options.steps) < 1:
        parser.error("--length goes from 1 to 6, --samples and --steps from 1")
    if options.plot is not None:
        check_plot(options.plot)
    told = measure(options.language, options.length, options.samples, options.steps, options.seed)
    if options.plot is not None:
        plot(told, options.plot)
    print(json.dumps(told) if options.json else report(told))


if __name__ == "__main__":
    main()
