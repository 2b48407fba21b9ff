"""What a canvas learns from the AR self that it drafts for: both predict the same slots in one go.

The clean rows run first, without gradients and without the adapter, as the base alone; their keys and values are what
the canvases see, their logits what canvases are taught. Then all canvas rows run together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from redraft.denoiser.adapters import canvas_rows
from redraft.denoiser.transformer import Denoiser, Visibility
from redraft.training.adaptation_batch import AdaptBatch
from redraft.training.adaptation_masks import beside, flex_masks
from redraft.training.adaptation_recipe import Losses

CHUNK = 4096  # rows whose logits exist at once: 4096 * 49,152 * 4 bytes is 0.8 GB
FORGIVEN = 0.8  # factor a slot on the losses behind the first draft that fails (Draft-OPD)
KEPT = 1024  # with no more rows than this logits are kept for the gradient


@dataclass(frozen=True)
class Sums:
    """Sums over slots, which add up over micro-batches and processes.

    Losses: ce, kl, rejected (total variation), aligned (1 - cosine of hidden states), live (KL one way or the other,
    by where a draft fails), entropy, fill. weight, fill_count: what to divide by; taught: the weight of slots with a
    teacher. agreed: slots (of `against`) where the likeliest token is the AR self's.
    """

    ce: Tensor
    kl: Tensor
    rejected: Tensor
    aligned: Tensor
    live: Tensor
    entropy: Tensor
    fill: Tensor
    agreed: Tensor
    against: Tensor
    weight: Tensor
    taught: Tensor
    fill_count: Tensor

    def detached(self) -> np.ndarray:
        """float64, in the order of NAMES."""
        return np.array([float(getattr(self, name).detach()) for name in NAMES])


NAMES = tuple(f.name for f in fields(Sums))
COMPUTED = NAMES[:9]  # of logits; the others are known from the batch
BY_WEIGHT = {"ce": "weight", "fill": "fill_count"}  # what a loss is divided by; the rest by `taught`


@dataclass(frozen=True)
class Pairs:
    """Supervised slots, n of them, canvas after canvas: hidden states of the canvas rows [n, hidden]; row: which of
    the clean rows predicts the same token, target, number (of the slot's canvas), slot (in it): int64 [n]; weight,
    fill, taught: float32 [n]. clean: hidden states of all clean rows, [B * L, hidden]: several canvases may cover a
    token, and its teacher runs once."""

    canvas: Tensor
    row: Tensor
    target: Tensor
    number: Tensor
    slot: Tensor
    weight: Tensor
    fill: Tensor
    taught: Tensor
    clean: Tensor

    def portions(self) -> Iterator[Pairs]:
        """Whole canvases of about CHUNK slots together."""
        ends = list(range(CHUNK, len(self.target), CHUNK))
        cuts = torch.searchsorted(self.number, self.number[ends]).tolist() if ends else []
        for start, end in pairwise([0, *cuts, len(self.target)]):
            if end > start:
                slots = {f.name: getattr(self, f.name)[start:end] for f in fields(self)[:-1]}
                yield Pairs(**slots, clean=self.clean)


class AdaptationObjective(nn.Module):
    """flex: attention by FlexAttention's block masks, which are the dense masks, what is masked left out."""

    def __init__(self, model: Denoiser, settings: Losses, flex: bool = False) -> None:
        super().__init__()
        self.model, self.settings, self.flex = model, settings, flex

    def hidden(self, batch: AdaptBatch) -> tuple[Tensor, Tensor]:
        """Final hidden states: of the clean rows [B, L, hidden], and of the canvas rows [B, N, C, hidden]."""
        model = self.model
        device = model.lm_head.weight.device

        def to(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        rows, canvases, slots = batch.shown.shape
        if self.flex:
            text, own = (Visibility(flex=mask) for mask in flex_masks(batch, device))
        else:
            text = Visibility(dense=Visibility.additive(to(batch.clean_visible)[:, None]))
            own = beside(to(batch.canvas_visible), self.model.lm_head.weight.dtype)
        with torch.no_grad():
            clean, past = model(to(batch.clean), to(batch.positions), text)
        with canvas_rows(model, True, to(batch.locked.reshape(rows, -1))):
            drafted, _ = model(
                to(batch.shown.reshape(rows, -1)),
                to(batch.slot_positions.reshape(rows, -1)),
                own,
                past=past,
            )
        return clean, drafted.unflatten(1, (canvases, slots))

    def pairs(self, batch: AdaptBatch) -> Pairs:
        """The slots that the batch supervises."""
        clean, drafted = self.hidden(batch)
        device = clean.device
        supervised = (batch.weight > 0) | (batch.fill > 0)
        wanted = torch.from_numpy(supervised).to(device)
        row, canvas, slot = np.nonzero(supervised)
        if (
            self.model.config.shift
        ):  # slot j is predicted by the row before it; slot 0 by a clean row, not here
            drafted = torch.cat((drafted[:, :, :1], drafted[:, :, :-1]), 2)
        teacher = torch.from_numpy(batch.teacher).to(device)
        rows = torch.from_numpy(row).to(device)

        def pick(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)[wanted]

        taught = teacher[wanted]
        return Pairs(
            canvas=drafted[wanted],
            row=rows * clean.shape[1] + taught.clamp(min=0),
            target=pick(batch.target),
            number=torch.from_numpy(row * batch.shown.shape[1] + canvas).to(device),
            slot=torch.from_numpy(slot).to(device),
            weight=pick(batch.weight),
            fill=pick(batch.fill),
            taught=(taught >= 0).float(),
            clean=clean.flatten(0, 1),
        )

    def forward(self, batch: AdaptBatch) -> Sums:
        """Sums of all losses that the settings ever use; which of them count is `total`'s business."""
        pairs = self.pairs(batch)
        totals = pairs.canvas.new_zeros(len(COMPUTED), dtype=torch.float32)
        for part in pairs.portions():
            given = [getattr(part, f.name) for f in fields(part)]
            if len(pairs.target) <= KEPT:
                totals = totals + self._chunk(*given)
            else:  # computed anew for the gradient: logits kept would be most of the memory
                totals = totals + checkpoint(self._chunk, *given, use_reentrant=False)
        return Sums(
            **dict(zip(COMPUTED, totals, strict=True)),
            weight=pairs.weight.sum(),
            taught=(pairs.weight * pairs.taught).sum(),
            fill_count=pairs.fill.sum(),
        )

    def _chunk(self, *given: Tensor) -> Tensor:
        """The sums named in COMPUTED, float32."""
        part, used = Pairs(*given), self.settings
        logits = self.model.logits(part.canvas).float()
        log_p, log_q = self.taught_by(part), F.log_softmax(logits, -1)
        learning = part.weight * part.taught
        each = -log_q.gather(1, part.target[:, None])[:, 0]
        kl, rejected = divergences(log_q, log_p)
        same = logits.argmax(-1) == log_p.argmax(-1)
        none = torch.zeros_like(kl)
        aligned = live = entropy = none
        if used.hidden:
            theirs = part.clean[part.row].float()
            aligned = 1 - F.cosine_similarity(part.canvas.float(), theirs, dim=-1)
        if used.on_policy:
            behind = behind_failure(part, same)
            reverse = divergences(log_p, log_q)[0] * FORGIVEN ** behind.clamp(min=1)
            live = torch.where(behind > 0, reverse, kl)
        if used.sharpen:
            entropy = torch.where(same, -(log_q.exp() * log_q).sum(-1), none)
        counted = learning > 0
        sums = (
            part.weight * each,
            learning * kl,
            learning * rejected,
            learning * aligned,
            learning * live,
            learning * entropy,
            part.fill * each,
            same & counted,
            counted,
        )
        return torch.stack([x.float().sum() for x in sums])

    def taught_by(self, pairs: Pairs) -> Tensor:
        """The AR self's log-probabilities of each slot, float32 [n, V]."""
        rows, inverse = pairs.row.unique(return_inverse=True)
        return F.log_softmax(self.teacher(pairs.clean[rows]), -1)[inverse]

    @torch.no_grad()
    def teacher(self, clean: Tensor) -> Tensor:
        """AR logits, float32 [n, V]; tokens that exist on canvases only are next to impossible."""
        logits = self.model.logits(clean).float()
        for token in self.model.config.special_slot_ids:
            logits[:, token] = torch.finfo(logits.dtype).min / 2
        return logits

    def total(self, sums: Sums, divisors: tuple[float, float, float], factors: Mapping[str, float]) -> Tensor:
        """The loss. divisors: of weight, taught and fill_count, over the whole step. factors: Losses.at."""
        over = dict(zip(("weight", "taught", "fill_count"), divisors, strict=True))
        loss = sums.ce.new_zeros(())
        for name, factor in factors.items():
            if factor:  # the gradient of a term that doesn't count would still be computed
                divisor = max(over[BY_WEIGHT.get(name, "taught")], 1e-9)
                loss = loss + factor * getattr(sums, name) / divisor
        return loss


def behind_failure(pairs: Pairs, same: Tensor) -> Tensor:
    """How many slots behind its canvas's first failing draft a slot is, int64 [n]; 0 or less up to there.

    same: bool [n], whether a slot's likeliest token is the AR self's. Slots without a teacher can't fail.
    """
    failing = ~same & (pairs.taught > 0)
    none = torch.iinfo(torch.int64).max // 2
    first = pairs.slot.new_full((int(pairs.number.max()) + 1,), none)
    first = first.scatter_reduce(0, pairs.number, torch.where(failing, pairs.slot, none), "amin")
    return pairs.slot - first[pairs.number]


def divergences(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) and the total variation between them, of log-probabilities [n, V]: nats and 0..1, each [n].

    1 - TV is the chance that speculative sampling accepts a token drawn from ours (Leviathan et al., 2023).
    """
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), 0.5 * (p - log_q.exp()).abs().sum(-1)


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
    for part in pairs.portions():
        ours, theirs = objective.model.logits(part.canvas).argmax(-1), objective.taught_by(part)
        same.append((ours == theirs.argmax(-1)) & (part.taught > 0))
    if same:
        agree[wanted] = torch.cat(same).cpu()
    run = agree[:, :, 1:].long().cumprod(-1).sum(-1).numpy()
    return np.asarray(run[batch.document >= 0])
