"""Which size learns most from a given time? Short runs of recipes/tiny.yaml, one core each, two at a time.

    python recipes/sweep.py docs/sizes.json --minutes 3 9          four sizes twice: 24 minutes of two cores

Each run has the same data, schedule and rates; only the width, the depth and the time differ. What is compared is
what the final evaluation of a run writes: AR and NELBO in nats a token on the same held-out rows. Finished runs are
found again in --runs and not repeated.

The runs are too short to be compared as they stand: the best size grows with the time. So L = E + A / N^a + B / D^b
(N parameters, D tokens in millions; Hoffmann et al. 2022, 2203.15556) is fitted to all of them, and read off where
each size would be after the time that a real run has, at the tokens a second that it was seen to learn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from redraft.files import write_atomically
from redraft.training.recipe import load

ROOT = Path(__file__).resolve().parents[1]
# width, layers, SwiGLU width, heads; head_dim 64 but for the smallest, whose width would give it one head
SIZES = {
    "1.3M": (128, 4, 344, 2, 64),
    "2.2M": (160, 5, 432, 5, 32),
    "3.4M": (192, 6, 512, 3, 64),
    "5.8M": (256, 6, 688, 4, 64),
}


def settings(size: str) -> list[str]:
    width, layers, inner, heads, head_dim = SIZES[size]
    return [
        f"model.hidden_size={width}",
        f"model.num_hidden_layers={layers}",
        f"model.intermediate_size={inner}",
        f"model.num_attention_heads={heads}",
        f"model.num_key_value_heads={heads}",
        f"model.head_dim={head_dim}",
    ]


def run(size: str, minutes: float, runs: Path, overrides: list[str]) -> dict[str, Any]:
    """Trains one size for `minutes` on one core, unless that was done; returns its last evaluation."""
    folder = runs / f"{size}-{minutes:g}min"
    if not (folder / "loss.png").exists():
        values = [*settings(size), f"train.minutes={minutes}", "train.evaluate_rows=128", *overrides]
        command = [sys.executable, "-m", "redraft.cli", "train", str(ROOT / "recipes/tiny.yaml"), "--plain"]
        command += ["--out", str(folder), *(part for value in values for part in ("--set", value))]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with open(runs / f"{folder.name}.log", "w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, **threads})
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = next(record for record in reversed(records) if "valid_ar" in record)
    train = load(folder / "recipe.yaml").train
    kept = {key: last[key] for key in ("valid_ar", "valid_nelbo", "valid_nelbo_se")}
    tokens = last["step"] * train.batch_rows * train.row_length
    return {"size": size, "minutes": minutes, "tokens": tokens, **kept}


def fit(runs: list[dict[str, Any]]) -> dict[str, float]:
    """E, a, b, A, B of least squared error on valid_ar: a grid over the first three, A and B in closed form."""
    n = np.array([float(r["size"].rstrip("M")) for r in runs])
    d = np.array([r["tokens"] / 1e6 for r in runs])
    loss = np.array([r["valid_ar"] for r in runs])
    best: dict[str, float] = {"rmse": np.inf}
    for e in np.arange(0, loss.min(), 0.1):
        for a in np.arange(0.1, 1.21, 0.05):
            for b in np.arange(0.1, 1.21, 0.05):
                terms = np.stack((n**-a, d**-b), 1)
                factors = np.linalg.lstsq(terms, loss - e, rcond=None)[0]
                rmse = float(np.sqrt(np.mean((terms @ factors + e - loss) ** 2)))
                if (factors > 0).all() and rmse < best["rmse"]:
                    best = {"rmse": rmse, "E": e, "a": a, "b": b, "A": factors[0], "B": factors[1]}
    return {key: float(value) for key, value in best.items()}


def predicted(law: dict[str, float], runs: list[dict[str, Any]], minutes: float) -> dict[str, float]:
    """AR nats a token of each size after so many minutes of two cores, at twice its measured rate on one."""
    out = {}
    for run_ in runs:
        tokens = 2 * run_["tokens"] / run_["minutes"] * minutes / 1e6
        size = float(run_["size"].rstrip("M"))
        out[run_["size"]] = law["E"] + law["A"] * size ** -law["a"] + law["B"] * tokens ** -law["b"]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", default=[3, 9])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/sizes")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="of the recipe")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    jobs = [(size, minutes) for minutes in options.minutes for size in SIZES]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda job: run(*job, options.runs, options.overrides), jobs))
    law = fit(found)
    table = {f"{minutes}": predicted(law, found, minutes) for minutes in (30, 90, 180)}
    told = {"runs": found, "fit": law, "predicted_ar": table}
    write_atomically(options.results, (json.dumps(told, indent=1) + "\n").encode())
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
