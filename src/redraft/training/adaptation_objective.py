"""What a canvas learns from the AR self that it drafts for: both predict the same slots in one go.

The clean rows run first, without gradients and without the adapter, as the base alone; their keys and values are what
the canvases see, their logits what canvases are taught. Then all canvas rows run together.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from redraft.denoiser.adapters import canvas_rows
from redraft.denoiser.transformer import Denoiser, Visibility
from redraft.training.adaptation_batch import AdaptBatch
from redraft.training.adaptation_recipe import Losses

CHUNK = 4096  # rows whose logits exist at once: 4096 * 49,152 * 4 bytes is 0.8 GB
KEPT = 1024  # with no more rows than this logits are kept for the gradient


@dataclass(frozen=True)
class Sums:
    """Sums over slots, which add up over micro-batches and processes. weight, fill_count: what to divide by; taught:
    the weight of slots with a teacher. agreed: slots (of `against`) where the likeliest token is the AR self's."""

    ce: Tensor
    kl: Tensor
    rejected: Tensor
    weight: Tensor
    taught: Tensor
    fill: Tensor
    fill_count: Tensor
    agreed: Tensor
    against: Tensor

    def detached(self) -> np.ndarray:
        """float64 [9], in the order of the fields."""
        return np.array([float(getattr(self, f.name).detach()) for f in fields(self)])


@dataclass(frozen=True)
class Pairs:
    """Supervised slots, n of them: hidden states of the canvas rows [n, hidden]; row: which of the clean rows predicts
    the same token, target: both int64 [n]; weight, fill, taught: float32 [n]. clean: hidden states of all clean rows,
    [B * L, hidden]: several canvases may cover a token, and its teacher runs once."""

    canvas: Tensor
    row: Tensor
    target: Tensor
    weight: Tensor
    fill: Tensor
    taught: Tensor
    clean: Tensor

    def part(self, start: int) -> tuple[Tensor, ...]:
        """CHUNK slots from `start` on, in the order of the fields, without `clean`."""
        return tuple(getattr(self, f.name)[start : start + CHUNK] for f in fields(self)[:-1])


class AdaptationObjective(nn.Module):
    def __init__(self, model: Denoiser, settings: Losses) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def hidden(self, batch: AdaptBatch) -> tuple[Tensor, Tensor]:
        """Final hidden states: of the clean rows [B, L, hidden], and of the canvas rows [B, N, C, hidden]."""
        model = self.model
        device = model.lm_head.weight.device

        def to(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        rows, canvases, slots = batch.shown.shape
        with torch.no_grad():
            seen = Visibility(dense=Visibility.additive(to(batch.clean_visible)[:, None]))
            clean, past = model(to(batch.clean), to(batch.positions), seen)
        seen = Visibility(dense=Visibility.additive(dense(to(batch.canvas_visible))[:, None]))
        with canvas_rows(model, True, to(batch.locked.reshape(rows, -1))):
            drafted, _ = model(
                to(batch.shown.reshape(rows, -1)),
                to(batch.slot_positions.reshape(rows, -1)),
                seen,
                past=past,
            )
        return clean, drafted.unflatten(1, (canvases, slots))

    def pairs(self, batch: AdaptBatch) -> Pairs:
        """The slots that the batch supervises."""
        clean, drafted = self.hidden(batch)
        device = clean.device
        wanted = torch.from_numpy((batch.weight > 0) | (batch.fill > 0)).to(device)
        if (
            self.model.config.shift
        ):  # slot j is predicted by the row before it; slot 0 by a clean row, not here
            drafted = torch.cat((drafted[:, :, :1], drafted[:, :, :-1]), 2)
        teacher = torch.from_numpy(batch.teacher).to(device)
        row = torch.arange(len(batch.clean), device=device)[:, None, None].expand_as(teacher)

        def pick(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)[wanted]

        taught = teacher[wanted]
        return Pairs(
            canvas=drafted[wanted],
            row=row[wanted] * clean.shape[1] + taught.clamp(min=0),
            target=pick(batch.target),
            weight=pick(batch.weight),
            fill=pick(batch.fill),
            taught=(taught >= 0).float(),
            clean=clean.flatten(0, 1),
        )

    def forward(self, batch: AdaptBatch) -> Sums:
        """Sums of all losses; which of them count is `total`'s business."""
        pairs = self.pairs(batch)
        totals: list[Tensor] = [pairs.canvas.new_zeros((), dtype=torch.float32) for _ in range(6)]
        for start in range(0, len(pairs.target), CHUNK):
            part = *pairs.part(start), pairs.clean
            if len(pairs.target) <= KEPT:
                found = self._chunk(*part)
            else:  # computed anew for the gradient: logits kept would be most of the memory
                found = checkpoint(self._chunk, *part, use_reentrant=False)
            totals = [a + b for a, b in zip(totals, found, strict=True)]
        ce, kl, rejected, fill, agreed, against = totals
        return Sums(
            ce=ce,
            kl=kl,
            rejected=rejected,
            weight=pairs.weight.sum(),
            taught=(pairs.weight * pairs.taught).sum(),
            fill=fill,
            fill_count=pairs.fill.sum(),
            agreed=agreed,
            against=against,
        )

    def _chunk(
        self,
        canvas: Tensor,
        row: Tensor,
        target: Tensor,
        weight: Tensor,
        fill: Tensor,
        taught: Tensor,
        clean: Tensor,
    ) -> tuple[Tensor, ...]:
        logits = self.model.logits(canvas).float()
        theirs = self.taught_by(row, clean)
        learning = weight * taught
        log_q = F.log_softmax(logits, -1)
        each = -log_q.gather(1, target[:, None])[:, 0]
        kl, rejected = divergences(log_q, theirs)
        said = (logits.argmax(-1) == theirs.argmax(-1)) & (learning > 0)
        return (
            (weight * each).sum(),
            (learning * kl).sum(),
            (learning * rejected).sum(),
            (fill * each).sum(),
            said.sum().float(),
            (learning > 0).sum().float(),
        )

    def taught_by(self, row: Tensor, clean: Tensor) -> Tensor:
        """The AR self's log-probabilities, float32 [n, V], of the tokens that clean rows `row` [n] predict."""
        rows, inverse = row.unique(return_inverse=True)
        return F.log_softmax(self.teacher(clean[rows]), -1)[inverse]

    @torch.no_grad()
    def teacher(self, clean: Tensor) -> Tensor:
        """AR logits, float32 [n, V]; tokens that exist on canvases only are next to impossible."""
        logits = self.model.logits(clean).float()
        for token in self.model.config.special_slot_ids:
            logits[:, token] = torch.finfo(logits.dtype).min / 2
        return logits

    def total(self, sums: Sums, divisors: tuple[float, float, float], drafting: str) -> Tensor:
        """The loss. divisors: of weight, taught and fill_count, over the whole step. drafting: "kl" or "acceptance"."""
        weight, taught, fill = (max(d, 1e-9) for d in divisors)
        s = self.settings
        divergence = (s.kl, sums.kl) if drafting == "kl" else (s.acceptance, sums.rejected)
        terms = ((s.ce, sums.ce, weight), (*divergence, taught), (s.fill, sums.fill, fill))
        loss = sums.ce.new_zeros(())
        for factor, found, divisor in terms:
            if factor:  # the gradient of a term that doesn't count would still be computed
                loss = loss + factor * found / divisor
        return loss


def divergences(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) and the total variation between them, of log-probabilities [n, V]: nats and 0..1, each [n].

    1 - TV is the chance that speculative sampling accepts a token drawn from ours (Leviathan et al., 2023).
    """
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), 0.5 * (p - log_q.exp()).abs().sum(-1)


def dense(canvas_visible: Tensor) -> Tensor:
    """bool [B, N, C, L + C] to [B, N * C, L + N * C]: canvases side by side, each blind to the others."""
    rows, canvases, slots, width = canvas_visible.shape
    length = width - slots
    out = canvas_visible.new_zeros(rows, canvases, slots, length + canvases * slots)
    out[..., :length] = canvas_visible[..., :length]
    own = out[..., length:].unflatten(-1, (canvases, slots))
    each = torch.arange(canvases, device=out.device)
    own[:, each, :, each] = canvas_visible[..., length:].transpose(0, 1)
    return out.flatten(1, 2)


@torch.no_grad()
def accepted(objective: AdaptationObjective, batch: AdaptBatch) -> np.ndarray:
    """Of each canvas in use, how many drafted tokens in a row are the AR self's likeliest: int64 [canvases].

    Slot 0 isn't drafted: the AR self writes it (see engine.writers.verified). Text after a token is taken as given, so
    live drafts fare a little worse. Only slots with a teacher count.
    """
    pairs = objective.pairs(batch)
    agree = torch.zeros(batch.shown.shape, dtype=torch.bool)
    wanted = torch.from_numpy((batch.weight > 0) | (batch.fill > 0))
    same = []
    for start in range(0, len(pairs.target), CHUNK):
        canvas, row, _, _, _, taught = pairs.part(start)
        ours, theirs = objective.model.logits(canvas).argmax(-1), objective.taught_by(row, pairs.clean)
        same.append((ours == theirs.argmax(-1)) & (taught > 0))
    if same:
        agree[wanted] = torch.cat(same).cpu()
    run = agree[:, :, 1:].long().cumprod(-1).sum(-1).numpy()
    return np.asarray(run[batch.document >= 0])
