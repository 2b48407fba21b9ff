"""redraft train: a training run by its recipe.

redraft train recipes/tiny.yaml --set train.steps=100
torchrun --nproc-per-node 2 -m redraft.cli train recipes/tiny.yaml
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from redraft.cli.options import Json
from redraft.cli.prepare import Set

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint.")]
Out = Annotated[Path | None, typer.Option(help="The run's folder (by default runs/NAME).")]
Plain = Annotated[bool, typer.Option("--plain", help="Lines in place of a live bar, also on a terminal.")]


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe (.yaml).")],
    overrides: Set = None,
    resume: Resume = False,
    out: Out = None,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Train a model by a recipe; Ctrl-C keeps a checkpoint, --resume goes on from it.

    The run's folder gets the resolved recipe, metrics.jsonl, checkpoints and a plot of the losses.
    """
    from redraft.training.recipe import load
    from redraft.training.run import train as run

    loaded = load(recipe, overrides)
    watch(partial(run, loaded, out, resume), loaded.train.steps, plain, as_json)


def watch(run: Callable[..., Path], steps: int, plain: bool, as_json: bool) -> None:
    """Runs a training, its progress shown, and tells its last checkpoint. run: takes a Reporter or nothing."""
    from redraft.cli.progress import Progress

    if os.environ.get("RANK", "0") != "0":  # torchrun's other processes work in silence
        run()
        return
    with Progress(steps, plain or None) as progress:
        checkpoint = run(progress)
    _tell(checkpoint, as_json)


def _tell(checkpoint: Path, as_json: bool) -> None:
    """Where a run's last checkpoint is, and with --json its newest metrics."""
    folder = checkpoint.parent
    told = {
        "checkpoint": str(checkpoint),
        "folder": str(folder),
        "last": _last_metrics(folder / "metrics.jsonl"),
    }
    typer.echo(json.dumps(told) if as_json else f"written to {checkpoint}")


def _last_metrics(path: Path) -> dict[str, object]:
    """The newest value of each metric."""
    merged: dict[str, object] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        merged |= json.loads(line)
    merged.pop("samples", None)
    return merged
