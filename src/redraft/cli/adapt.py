"""redraft adapt: an AR base learns to denoise, by its recipe.

redraft adapt recipes/135m-cpu.yaml --set train.steps=100
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from redraft.cli.options import Json
from redraft.cli.prepare import Set
from redraft.cli.train import Out, Plain, Resume, watch


def adapt(
    recipe: Annotated[str, typer.Argument(help="A recipe (.yaml) that names a base.")],
    overrides: Set = None,
    resume: Resume = False,
    out: Out = None,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Make an AR model denoise: an adapter is trained beside it, and its AR mode stays what it was.

    Ctrl-C keeps a checkpoint, --resume goes on from it; so does a recipe that cuts a run into slices.
    """
    from redraft.training.adaptation import adapt as run
    from redraft.training.adaptation_recipe import load_adaptation

    loaded = load_adaptation(recipe, overrides)
    watch(partial(run, loaded, out, resume), loaded.train.steps, plain, as_json)
