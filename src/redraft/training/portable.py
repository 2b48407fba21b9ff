"""A checkpoint small enough to be carried to another machine between two slices of a run.

It has a checkpoint's layout, so that a run resumes from a copy of it; but numbers are bfloat16, there is no average
(one begins anew), and the optimizer's files are no larger than LIMIT, nor is an adapter of the usual size. Six bytes a
weight that learns: the weight and AdamW's two moments.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from redraft.denoiser import checkpoint
from redraft.training.checkpoints import STATE, TrainingState

LIMIT = 16 << 20
FOLDER = "portable"


def fill(
    state: TrainingState[Any], optimizer: dict[str, Tensor], recipe: dict[str, Any], folder: Path
) -> None:
    """Writes the state into `folder`, whose weights are those being trained, in the average's place; it holds an empty
    folder STATE. optimizer: of checkpoints.moments."""
    inner = folder / STATE
    # A step counter stays exact.
    tensors = {name: value.bfloat16() if value.dim() else value for name, value in optimizer.items()}
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
