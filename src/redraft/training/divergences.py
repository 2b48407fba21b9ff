"""Losses between two distributions over a large vocabulary, a few rows at a time.

What a canvas learns from its AR self is elementwise work over rows of the vocabulary: autograd keeps an array of that
size for each operation. Here a block of rows is gone through while it lies in the cache, and again for the gradient,
which is known in closed form; nothing of that size is kept but the logits and the teacher.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROWS = 8  # at once on a CPU: 8 rows of 49,152 float32 are 1.5 MB


class Losses(NamedTuple):
    """Each [n]. ce: cross-entropy of the target, nats; kl: KL(teacher || own), nats; tv: the total variation between
    them, 0..1 (1 - TV is the chance that speculative sampling accepts a token drawn from ours, Leviathan et al., 2023);
    same: bool, whether both have the same likeliest token."""

    ce: Tensor
    kl: Tensor
    tv: Tensor
    same: Tensor


def against(logits: Tensor, log_p: Tensor, teacher: Tensor, target: Tensor) -> Losses:
    """Losses of own logits [n, V] of any floating type. log_p: float32 [m, V], the teacher's log-probabilities, finite;
    teacher: int64 [n], the row of it that a row is to be like; target: int64 [n]. Gradients flow to the logits alone,
    once.
    """
    return Losses(*_Against.apply(logits, log_p, teacher, target))


class _Against(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, log_p: Tensor, teacher: Tensor, target: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits, log_p, teacher, target)
        ctx.set_materialize_grads(False)
        found = [
            _losses(logits[rows].float(), log_p[teacher[rows]], target[rows]) for rows in _blocks(logits)
        ]
        ce, kl, tv, same = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.mark_non_differentiable(same)
        return ce, kl, tv, same

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, ce: Tensor | None, kl: Tensor | None, tv: Tensor | None, _: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        logits, log_p, teacher, target = ctx.saved_tensors
        out = torch.empty_like(logits)
        for rows in _blocks(logits):
            factors = (None if g is None else g[rows, None] for g in (ce, kl, tv))
            out[rows] = _gradient(logits[rows].float(), log_p[teacher[rows]], target[rows], *factors)
        return out, None, None, None


def _blocks(logits: Tensor) -> Iterator[slice]:
    """At least one, if only of no rows."""
    rows = max(len(logits), 1)
    each = ROWS if logits.device.type == "cpu" else rows
    return (slice(first, first + each) for first in range(0, rows, each))


def _losses(own: Tensor, log_p: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """The fields of Losses; own, log_p [n, V] float32."""
    log_q = own.log_softmax(-1)
    ce = -log_q.gather(1, target[:, None])[:, 0]
    same = torch.eq(own.argmax(-1), log_p.argmax(-1))
    p = log_p.exp()
    kl = torch.linalg.vecdot(p, log_p - log_q)
    return ce, kl, 0.5 * p.sub_(log_q.exp_()).abs_().sum(-1), same


def _gradient(
    own: Tensor, log_p: Tensor, target: Tensor, ce: Tensor | None, kl: Tensor | None, tv: Tensor | None
) -> Tensor:
    """Of the losses [n, 1] that count, by own logits: with q the softmax and p the teacher, q - onehot of the target
    for ce, q - p for kl, and q (s - s.q) / 2 with s = sign(q - p) for tv."""
    q, p = own.softmax(-1), log_p.exp()
    out = torch.zeros_like(q)
    if tv is not None:
        sign = torch.sign(q - p)
        mean = torch.linalg.vecdot(sign, q)[:, None]
        out = sign.sub_(mean).mul_(q).mul_(0.5 * tv)
    if kl is not None:
        out.addcmul_(q, kl).addcmul_(p, kl, value=-1)
    if ce is not None:
        out.addcmul_(q, ce).scatter_add_(1, target[:, None], -ce)
    return out
