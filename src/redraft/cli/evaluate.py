"""redraft eval: quality of a model on data that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli import options as o
from redraft.cli.bench import progress, show
from redraft.errors import RequestError
from redraft.hub import DEFAULT_MODEL
from redraft.hub.names import did_you_mean

if TYPE_CHECKING:
    from redraft.evaluation.heldout import HeldOutSettings
    from redraft.evaluation.writing import Progress


def _likelihood(
    folder: Path, data: Path | None, settings: HeldOutSettings, watched: Progress
) -> tuple[dict[str, Any], list[str]]:
    from redraft.evaluation import heldout

    if data is None:
        raise RequestError("eval likelihood needs --data, a folder made by `redraft prepare`")
    told = heldout.likelihood(folder, data, settings, watched)
    return told, heldout.lines(told)


# A task is a function and one line here.
TASKS: dict[
    str, Callable[[Path, Path | None, HeldOutSettings, Progress], tuple[dict[str, Any], list[str]]]
] = {
    "likelihood": _likelihood,
}


def evaluate(
    tasks: Annotated[list[str], typer.Argument(help=f"Any of {', '.join(TASKS)}.")],
    model: o.Model = DEFAULT_MODEL,
    data: Annotated[Path | None, typer.Option(help="A prepared folder.")] = None,
    split: Annotated[str, typer.Option(help="valid, test or train.")] = "valid",
    documents: Annotated[
        int, typer.Option(help="So many documents, drawn by --seed (0: all of them).")
    ] = 300,
    copies: Annotated[int, typer.Option(help="Corrupted copies of each canvas; more narrow the error.")] = 4,
    canvas: Annotated[int | None, typer.Option(help="Slots a canvas.")] = None,
    seed: Annotated[int, typer.Option(help="Names the noise and draws the documents.")] = 0,
    as_json: o.Json = False,
) -> None:
    """Evaluate a model. likelihood: AR nats and the diffusion bound on a split of prepared data.

    On the shipped model and two cores 300 dialogues take about two minutes.
    """
    for task in tasks:
        if task not in TASKS:
            raise RequestError(f"there is no task {task!r}{did_you_mean(task, TASKS)} ({', '.join(TASKS)})")
    o.at_least("--documents", documents, 0)
    o.at_least("--copies", copies, 2)
    o.at_least("--canvas", canvas, 1)
    from redraft.evaluation.heldout import HeldOutSettings
    from redraft.hub import resolve

    found = resolve(model)
    settings = HeldOutSettings(
        split=split, documents=documents or None, copies=copies, canvas=canvas, seed=seed
    )
    watched = progress()
    told: dict[str, Any] = {"model": found.name}
    report: list[str] = []
    for task in tasks:
        told[task], said = TASKS[task](found.path, data, settings, watched)
        report += said
    watched("")
    show(told, report, as_json)
