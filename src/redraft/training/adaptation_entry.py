"""How slots that enter the network late begin: as the layers that they no longer pass left them, on average.

The slots of a canvas are mostly open, and what a trained adapter makes of an open slot in the first layers hardly
depends on the text (on SmolLM2-135M, before layer 12: a mean of length 113, deviations of 28). Beginning with that mean
at layer 12 a trained adapter drafts as well as before; with an embedding of length 4 it would have to learn it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from redraft.denoiser.adapters import Adapter
from redraft.denoiser.transformer import Denoiser
from redraft.training.adaptation_batch import AdaptBatch, build
from redraft.training.adaptation_canvases import DRAFT, HOLE, Tokens
from redraft.training.adaptation_objective import AdaptationObjective
from redraft.training.adaptation_recipe import AdaptRecipe
from redraft.training.start import training_rows

ROWS = 8  # of text, each with all its canvases


@torch.no_grad()
def begin_late(adapter: Adapter, start: Denoiser, entry: int, recipe: AdaptRecipe) -> None:
    """Sets what slots enter with to the means, over canvases of the recipe's data, of what comes before layer `entry`
    of `start` in open and empty slots. One that the data doesn't show stays as it is."""
    config = start.config
    assert config.mask_token_id is not None
    assert config.null_token_id is not None
    tokens = Tokens(config.mask_token_id, config.null_token_id, config.eos_token_ids)
    data, objective = training_rows(recipe), AdaptationObjective(start, recipe.losses)
    found: dict[str, list[Tensor]] = {"late_mask": [], "late_null": []}
    for kind in (DRAFT, HOLE):  # which hold open and empty slots
        for row in range(ROWS):
            batch = build(
                data,
                recipe.canvas,
                recipe.losses,
                tokens,
                config.shift,
                step=0,
                rows=range(row, row + 1),
                batch_rows=ROWS,
                seed=recipe.train.seed,
                kind=kind,
            )
            states = _before(objective, entry, batch)
            for name, slots in _slots(batch, tokens).items():
                found[name].append(states[torch.from_numpy(slots)])
    for name, parts in found.items():
        states = torch.cat(parts)
        if len(states):
            vector = adapter.slots.get_parameter(name)
            vector.copy_(states.mean(0).to(vector))


def _before(objective: AdaptationObjective, entry: int, batch: AdaptBatch) -> Tensor:
    """What comes before a layer in the canvas rows, [B * N * C, hidden]."""
    seen: list[Tensor] = []
    layer = objective.model.model.layers[entry]
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        objective.hidden(batch)
    finally:
        hook.remove()
    return seen[-1].flatten(0, 1)


def _slots(batch: AdaptBatch, tokens: Tokens) -> dict[str, np.ndarray]:
    """bool [B * N * C] of the slots of each kind."""
    used = (batch.document[..., None] >= 0) & ~batch.locked
    kinds = {
        "late_mask": used & (batch.shown == tokens.mask),
        "late_null": used & (batch.shown == tokens.null),
    }
    return {name: slots.reshape(-1) for name, slots in kinds.items()}
