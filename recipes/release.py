"""Trains redraft-tiny from the data to the model card, and rewrites every number that depends on its weights.

    python recipes/release.py dialogues_sgd.jsonl.xz            everything: two hours and a half of two idle cores
    python recipes/release.py dialogues_sgd.jsonl.xz --from measure     the numbers alone, of the shipped weights

Stages: prepare, train, edit, distill, ship, measure. Each starts from what the ones before left in runs/; training
that was interrupted goes on from its last checkpoint. Nothing else should run on the machine while it measures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from redraft.files import seal
from redraft.training.ship import ship

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "src/redraft/models/redraft-tiny"
TRAINING = {  # stage: recipe and run folder
    "train": ("tiny.yaml", "runs/redraft-tiny"),
    "edit": ("tiny-edit.yaml", "runs/redraft-tiny-edit"),
    "distill": ("tiny-distill.yaml", "runs/redraft-tiny-distilled"),
}
STAGES = ("prepare", *TRAINING, "ship", "measure")


def redraft(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "redraft.cli", *arguments]


def run(*command: str, processes: int = 1) -> None:
    """A command in the checkout; with processes > 1 under torchrun, one thread each."""
    line = list(command)
    if processes > 1:
        module = line[line.index("-m") :]
        line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *module]
    print("$", " ".join(line), flush=True)
    subprocess.run(line, cwd=ROOT, check=True)


def train(recipe: str, folder: str, overrides: list[str]) -> None:
    resume = ["--resume"] if list((ROOT / folder).glob("step-*")) else []
    settings = [part for value in overrides for part in ("--set", value)]
    run(
        *redraft("train", f"recipes/{recipe}", "--out", folder, "--plain", *resume, *settings),
        processes=min(2, os.cpu_count() or 1),
    )


def measure() -> None:
    """Every number that depends on the weights: results, model card, plots, documents, the README's picture."""
    (ROOT / "docs/images").mkdir(exist_ok=True)
    trained = [folder for _, folder in TRAINING.values() if (ROOT / folder).exists()]
    undistilled = TRAINING["train"][1]  # the only stage that has seen none of the AR self's continuations
    before = ["--before", undistilled] if undistilled in trained else []
    run(
        *(sys.executable, "-m", "redraft.evaluation.report", "docs/results.json", "--model", "redraft-tiny"),
        *("--tune", "--data", "runs/data/sgd", *before, *(["--runs", *trained] if trained else [])),
        *("--card", str(MODEL), "--plots", "docs/images", "--docs", "README.md", "docs/performance.md"),
    )
    seal(MODEL)
    prompt = "I need a table for two in San Jose tonight."
    run(*redraft("run", prompt, "--seed", "1", "--threshold", "0.7", "--svg", "docs/denoising.svg"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dialogues", type=Path, help="Schema-Guided Dialogue as jsonl(.xz)")
    parser.add_argument("--from", dest="first", choices=STAGES, default="prepare")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        help="of all three recipes, as train.minutes=1",
    )
    options = parser.parse_args()
    wanted = STAGES[STAGES.index(options.first) :]
    source = options.dialogues.resolve()
    if not source.exists():
        parser.error(f"{source} does not exist")
    if "prepare" in wanted:
        paths = [f"prepare.{part}.0.path={source}" for part in ("sources", "tests")]
        run(*redraft("prepare", "recipes/tiny.yaml", *(p for path in paths for p in ("--set", path))))
    for stage, (recipe, folder) in TRAINING.items():
        if stage in wanted:
            train(recipe, folder, options.overrides)
    if "ship" in wanted:
        generation = json.loads((ROOT / "recipes/tiny-generation.json").read_text())
        # The average wins back most of what learning to draft cost the AR self.
        ship(ROOT / TRAINING["distill"][1], MODEL, generation, ROOT / TRAINING["edit"][1], share=0.75)
    if "measure" in wanted:
        measure()


if __name__ == "__main__":
    main()
