"""A checkpoint small enough to be carried to another machine between two slices of a run.

It has a checkpoint's layout, so that a run resumes from a copy of it; but numbers are bfloat16, there is no average
(one begins anew), and no file is larger than LIMIT. Six bytes a weight of the adapter: the weight and AdamW's two
moments.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft.denoiser import adapters, checkpoint
from redraft.denoiser.adapters import Adapter
from redraft.denoiser.config import DenoiserConfig
from redraft.training import checkpoints
from redraft.training.checkpoints import STATE, TrainingState, names

LIMIT = 16 << 20
FOLDER = "portable"


def fill(
    state: TrainingState[Adapter], config: DenoiserConfig, data: Path, recipe: dict[str, Any], folder: Path
) -> None:
    """Writes into `folder`, which holds an empty folder STATE: the weights being trained, in the average's place."""
    adapters.save(state.model, config, folder, torch.bfloat16)
    checkpoints.copy_tokenizer(data, folder)
    inner = folder / STATE
    tensors: dict[str, Tensor] = {}
    for i, optimizer in enumerate(state.optimizers):
        for name, p in names(state.model, optimizer):
            for key, value in optimizer.state[p].items():
                # A step counter stays exact.
                tensors[f"{i}/{name}/{key}"] = value.bfloat16() if value.dim() else value
    for number, part in enumerate(portions(tensors)):
        checkpoint.save_weights(inner / f"optimizer-{number:03d}.safetensors", part)
    about = {"step": state.step, "seconds": state.seconds, "ema_updates": 0, "portable": True}
    checkpoint.write_atomically(inner / "state.json", json.dumps(about | {"recipe": recipe}).encode())


def portions(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in their order, in groups of at most LIMIT bytes as files; a larger tensor is a group of its own."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        # A file's header takes about this much for an entry.
        own = tensor.numel() * tensor.element_size() + len(name) + 100
        if groups[-1] and size + own > LIMIT:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += own
    return groups
