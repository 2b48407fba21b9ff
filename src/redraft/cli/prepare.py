"""redraft prepare: from text to a tokenizer and memory-mapped shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from redraft.cli.options import Json
from redraft.errors import RequestError

if TYPE_CHECKING:
    from redraft.training.recipe import Prepare

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, as in train.steps=100."),
]


def prepare(
    inputs: Annotated[
        list[str],
        typer.Argument(help="A recipe (.yaml), or files of text: .txt, .jsonl, .jsonl.gz, .jsonl.xz."),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to write; a recipe names its own (data).")] = None,
    overrides: Set = None,
    form: Annotated[str, typer.Option("--format", help="Of files: text, dialogue or messages.")] = "text",
    field: Annotated[str, typer.Option(help="Of files: the JSON field that holds the text.")] = "text",
    vocab_size: Annotated[int, typer.Option(help="Of files: tokens of the vocabulary.")] = 4096,
    holdout: Annotated[int, typer.Option(help="Of files: documents kept out of training.")] = 300,
    as_json: Json = False,
) -> None:
    """Train a tokenizer on text and write the text as tokens: the splits train, valid and test.

    What to read is told by a recipe (`redraft prepare recipes/tiny.yaml`) or by files and --out.
    """
    from redraft.training.adaptation_recipe import load_any
    from redraft.training.data import prepare as write_corpora

    if len(inputs) == 1 and inputs[0].endswith((".yaml", ".yml")):
        loaded = load_any(inputs[0], overrides)
        if loaded.prepare is None:
            raise RequestError(f"recipe {inputs[0]} has no prepare section: name its sources there")
        settings, folder = loaded.prepare, out or Path(loaded.data)
    else:
        if out is None:
            raise RequestError("--out is needed to prepare files: the folder to write")
        if overrides:
            raise RequestError("--set changes a recipe: give one, or use --vocab-size and --holdout")
        settings, folder = _from_files(inputs, form, field, vocab_size, holdout), out
    report = write_corpora(settings, folder)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "splits": report}))
        return
    for split, about in report.items():
        typer.echo(f"{split:<5}  " + "  ".join(f"{key} {value}" for key, value in about.items()))
    typer.echo(f"written to {folder}")


def _from_files(inputs: list[str], form: str, field: str, vocab_size: int, holdout: int) -> Prepare:
    from redraft.training.recipe import Prepare

    sources = [{"path": path, "format": form, "field": field} for path in inputs]
    try:
        return Prepare.model_validate({"sources": sources, "vocab_size": vocab_size, "holdout": holdout})
    except ValueError as error:  # pydantic's, which the base install doesn't have
        first = error.errors()[0]  # type: ignore[attr-defined]
        flag = str(first["loc"][-1]).replace("_", "-")
        raise RequestError(f"--{flag}: {first['msg'].lower()}") from None
