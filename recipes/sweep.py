"""Which size learns most from a given time? Short runs of recipes/tiny.yaml, one core each, two at a time.

    python recipes/sweep.py docs/sizes.json --minutes 3 9          four sizes twice: 24 minutes of two cores

Each run has the same data, schedule and rates; only the width, the depth and the time differ. What is compared is
what the final evaluation of a run writes: AR and NELBO in nats a token on the same held-out rows. Finished runs are
found again in --runs and not repeated.
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

from redraft.files import write_atomically

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
    return {"size": size, "minutes": minutes, **last}


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
    write_atomically(options.results, (json.dumps(found, indent=1) + "\n").encode())
    for record in found:
        print(json.dumps(record))


if __name__ == "__main__":
    main()
