"""What lets a base train that is large for its device: shares of it on each process (FSDP2), and layers run twice.

Only layers are shared out: a layer is gathered when rows come to it and freed behind them, on the way back again. The
rest is whole on every process, as an adapter is, and its gradients are summed in one message (see World.add_gradients).
Where layers learn, their gradients, moments and averages are shared out too; `gathered` makes them whole for a
checkpoint, which is one process's file, whoever trained it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
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


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with those that are shared out made whole. All processes must ask for it."""
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def placed(like: Tensor, value: Tensor) -> Tensor:
    """A whole tensor as a share, if `like` is one of the same shape."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value


def add_gradients(world: World, parameters: list[nn.Parameter]) -> None:
    """Sums gradients over processes, of shares too, whose mean has been taken already."""
    shares = [p for p in parameters if isinstance(p, DTensor)]
    for p in shares:
        if p.grad is not None:
            p.grad.mul_(world.size)
    own = {id(p) for p in shares}
    world.add_gradients([p for p in parameters if id(p) not in own])


def clip(parameters: list[nn.Parameter], limit: float) -> float:
    """torch.nn.utils.clip_grad_norm_ for parameters of which some are shares: the norm of the whole gradient."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not any(isinstance(g, DTensor) for g in grads):
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    squares = gathered({str(i): g.square().sum() for i, g in enumerate(grads)})
    norm = float(sum(float(s) for s in squares.values())) ** 0.5
    for g in grads:
        g.mul_(min(1.0, limit / (norm + 1e-6)))
    return norm


def recompute(model: Denoiser) -> None:
    """Keeps a layer's input alone for the gradient and runs the layer again on the way back (Chen et al., 2016).

    By then an adapter's gate has moved on: it is set again to what it was.
    """
    adapter = None if model.adapter is None else adapter_of(model)

    def twice(layer: nn.Module) -> Any:
        once = layer.forward

        def forward(*given: Any) -> Any:
            if not torch.is_grad_enabled():
                return once(*given)
            if adapter is None:
                return checkpoint(once, *given, use_reentrant=False)
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
