"""What lets a base train that is large for its device: shares of it on each process (FSDP2), and layers run twice.

Only the frozen base is shared out, layer by layer: a layer is gathered when rows come to it and freed behind them, on
the way back again. The adapter is small and whole on every process, its gradients are summed in one message (see
World.add_gradients), so that a checkpoint is one process's file, whoever trained it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from redraft.denoiser.adapters import adapter_of
from redraft.denoiser.transformer import Denoiser
from redraft.training.distributed import World


def shard(model: Denoiser, world: World) -> None:
    """Leaves each process its share of the layers' weights. All must then run the same passes in the same order."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    rest = {p for p in model.parameters() if not isinstance(p, DTensor)}
    fully_shard(model, mesh=mesh, ignored_params=rest)


@contextlib.contextmanager
def whole(model: Denoiser) -> Iterator[None]:
    """All weights on every process, so that one can run passes alone. Does nothing to a model that isn't sharded."""
    shards = [layer for layer in model.model.layers if isinstance(layer, FSDPModule)]
    for layer in shards:
        layer.set_reshard_after_forward(False)
        layer.unshard()
    try:
        yield
    finally:
        for layer in shards:
            layer.reshard()
            layer.set_reshard_after_forward(True)


def recompute(model: Denoiser) -> None:
    """Keeps a layer's input alone for the gradient and runs the layer again on the way back (Chen et al., 2016).

    By then the adapter's gate has moved on: it is set again to what it was.
    """
    adapter = adapter_of(model)

    def twice(layer: nn.Module) -> Any:
        once = layer.forward

        def forward(*given: Any) -> Any:
            if not torch.is_grad_enabled():
                return once(*given)
            rows, locked = adapter.gate.rows, adapter.gate.locked
            return checkpoint(
                once,
                *given,
                use_reentrant=False,
                context_fn=lambda: (contextlib.nullcontext(), adapter.canvas_rows(rows, locked)),
            )

        return forward

    for layer in model.model.layers:
        layer.forward = twice(layer)
