"""Muon for the matrices inside the layers, AdamW for everything else, and the schedule of their rates.

torch.optim.Muon orthogonalizes in bfloat16, which a CPU runs at a tenth of its float32 rate, so the iteration is
here in the parameter's own precision on a CPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from redraft.denoiser.transformer import Denoiser
from redraft.training.recipe import Optimizer as Settings

NEWTON_SCHULZ = (
    3.4445,
    -4.7750,
    2.0315,
)  # quintic coefficients that pull singular values towards 1 (Jordan, 2024)


@torch.no_grad()
def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix, roughly: singular values land in about [0.7, 1.2], those below a hundredth of
    the matrix's norm lower. g [..., m, n], batched."""
    a, b, c = NEWTON_SCHULZ
    x = g.to(torch.bfloat16 if g.is_cuda else torch.float32)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    flip = x.shape[-2] > x.shape[-1]
    if flip:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if flip else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al., 2024), scaled to AdamW's update RMS of 0.2 (Liu et al., 2025)."""

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for same in by_shape.values():  # one batched product for all matrices of a shape
                updates = []
                for p in same:
                    state = self.state[p]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(p)
                    state["momentum"].mul_(group["momentum"]).add_(p.grad)
                    updates.append(p.grad + group["momentum"] * state["momentum"])
                turned = orthogonalize(torch.stack(updates))
                scale = 0.2 * max(same[0].shape) ** 0.5
                for p, update in zip(same, turned, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)
        return loss


def build(model: Denoiser, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon over the layers' matrices; AdamW over embeddings, head, norms and vectors (these without decay)."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and ".layers." in n]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    decayed, plain = [p for p in rest if p.dim() == 2], [p for p in rest if p.dim() != 2]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, settings.adam_learning_rate, settings.betas, eps=1e-10, fused=True)
    muon = Muon(matrices, settings.learning_rate, settings.momentum, settings.weight_decay)
    return [muon, adam]


class Trapezoid(Protocol):
    """Shares of a run in which the rate rises and falls."""

    @property
    def warmup(self) -> float: ...
    @property
    def decay(self) -> float: ...


def rate(progress: float, settings: Trapezoid) -> float:
    """Warm-up, stable, decay: the factor on the learning rates at progress 0..1 of the run, a trapezoid."""
    rising = progress / settings.warmup if settings.warmup else 1.0
    falling = (1 - progress) / settings.decay if settings.decay else 1.0
    return max(0.0, min(1.0, rising, falling))


class Ema:
    """An exponential moving average of the weights, which is what gets evaluated and shipped."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))  # short runs forget their start
        own = model.state_dict()
        averages, weights = zip(*((local(v), local(own[k])) for k, v in self.shadow.items()), strict=True)
        torch._foreach_lerp_(averages, weights, 1 - decay)


def local(tensor: Tensor) -> Tensor:
    """Of a tensor that is shared out this process's part, which is no copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
