"""What a canvas learns from the AR self that it drafts for: both predict the same slots in one go.

The clean rows run first, without the adapter, as the base alone and without gradients; their keys and values are what
the canvases see, their logits what canvases are taught. Then all canvas rows run together. Without an adapter all
weights learn: gradients then flow through the clean rows too, which have a loss of their own (`ar_sums`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from redraft.denoiser.adapters import adapter_of, canvas_rows
from redraft.denoiser.heads import Heads
from redraft.denoiser.transformer import Denoiser, Visibility
from redraft.training.adaptation_batch import AdaptBatch, blank
from redraft.training.adaptation_masks import beside, flex_masks
from redraft.training.adaptation_recipe import Losses
from redraft.training.divergences import against

CHUNK = 4096  # rows whose logits exist at once: 4096 * 49,152 * 4 bytes is 0.8 GB
FORGIVEN = 0.8  # factor a slot on the losses behind the first draft that fails (Draft-OPD)
KEPT = 1024  # with no more rows than this logits are kept for the gradient


@dataclass(frozen=True)
class Sums:
    """Sums over slots, which add up over micro-batches and processes.

    Losses: ce, kl, rejected (total variation), aligned (1 - cosine of hidden states), live (KL one way or the other,
    by where a draft fails), entropy, fill, doubt (binary cross-entropy of the confidence head against the overlap with
    the AR self). weight, fill_count: what to divide by; taught: the weight of slots with a teacher. agreed: slots (of
    `against`) where the likeliest token is the AR self's. Of clean rows, where they learn: ar (cross-entropy of the
    next token), kept (KL from the base), ar_count.
    """

    ce: Tensor
    kl: Tensor
    rejected: Tensor
    aligned: Tensor
    live: Tensor
    entropy: Tensor
    fill: Tensor
    doubt: Tensor
    agreed: Tensor
    against: Tensor
    weight: Tensor
    taught: Tensor
    fill_count: Tensor
    ar: Tensor
    kept: Tensor
    ar_count: Tensor

    def detached(self) -> np.ndarray:
        """float64, in the order of NAMES."""
        return np.array([float(getattr(self, name).detach()) for name in NAMES])


NAMES = tuple(f.name for f in fields(Sums))
COMPUTED = NAMES[:10]  # of canvas logits; the others are known from the batch or of clean rows
DIVISORS = ("weight", "taught", "fill_count", "ar_count")
# What a loss is divided by; the rest by `taught`.
BY_WEIGHT = {"ce": "weight", "fill": "fill_count", "ar": "ar_count", "kept": "ar_count"}


@dataclass(frozen=True)
class Pairs:
    """Supervised slots, n of them, canvas after canvas: hidden states of the canvas rows [n, hidden]; row: which of
    the clean rows predicts the same token, previous (the token of that row, which is the one before the slot), target,
    number (of the slot's canvas), slot (in it): int64 [n]; weight, fill, taught: float32 [n]. clean: hidden states of
    all clean rows, [B * L, hidden]: several canvases may cover a token, and its teacher runs once."""

    canvas: Tensor
    row: Tensor
    previous: Tensor
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
    """flex: attention by FlexAttention's block masks, which are the dense masks, what is masked left out. base: what
    clean rows that learn are to stay near to. frozen: the adapter learns nothing but its heads, so that no gradient
    goes through the network. sharded: layers lie on several processes, which must all run the same ones."""

    def __init__(
        self,
        model: Denoiser,
        settings: Losses,
        flex: bool = False,
        base: Denoiser | None = None,
        frozen: bool = False,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.settings, self.flex, self.base, self.frozen = model, settings, flex, base, frozen
        self.sharded = sharded
        self.clean_learns = model.adapter is None
        none = Heads(model.config.hidden_size, 0, 0)
        self.heads = none if model.adapter is None else adapter_of(model).heads

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
            text = self._text(batch)
            own = beside(to(batch.canvas_visible), model.lm_head.weight.dtype)
        with nullcontext() if self.clean_learns else torch.no_grad():
            clean, past = model(to(batch.clean), to(batch.positions), text)
        shown, locked = to(batch.shown.reshape(rows, -1)), to(batch.locked.reshape(rows, -1))
        places = to(batch.slot_positions.reshape(rows, -1))
        alone = self._blank(batch) and not self.sharded
        learns = torch.is_grad_enabled() and not self.frozen
        with torch.set_grad_enabled(learns), canvas_rows(model, True, locked):
            drafted, _ = model(shown, places, own, torch.ones_like(locked), locked, past=past, alone=alone)
        return clean, drafted.unflatten(1, (canvases, slots))

    def _blank(self, batch: AdaptBatch) -> bool:
        """Whether all canvases show open or empty slots alone."""
        config = self.model.config
        return bool(blank(batch.shown, config.mask_token_id, config.null_token_id).all())

    def _seen(self, batch: AdaptBatch) -> AdaptBatch:
        """What runs of a batch: where all last slots stand aside (see AdaptBatch) they are left out."""
        return batch.without_last() if self.model.config.shift and self._blank(batch) else batch

    def _text(self, batch: AdaptBatch) -> Visibility:
        seen = torch.from_numpy(batch.clean_visible).to(self.model.lm_head.weight.device)
        return Visibility(dense=Visibility.additive(seen[:, None]))

    def pairs(self, batch: AdaptBatch) -> Pairs:
        """The slots that the batch supervises."""
        return self._pairs(batch, *self.hidden(self._seen(batch)))

    def _pairs(self, batch: AdaptBatch, clean: Tensor, drafted: Tensor) -> Pairs:
        device = clean.device
        supervised = (batch.weight > 0) | (batch.fill > 0)
        wanted = torch.from_numpy(supervised).to(device)
        row, canvas, slot = np.nonzero(supervised)
        if (
            self.model.config.shift
        ):  # slot j is predicted by the row before it; slot 0 by a clean row, not here
            drafted = torch.cat((drafted[:, :, :1], drafted[:, :, : batch.shown.shape[2] - 1]), 2)
        teacher = torch.from_numpy(batch.teacher).to(device)
        rows = torch.from_numpy(row).to(device)

        def pick(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)[wanted]

        taught = teacher[wanted]
        row_of = rows * clean.shape[1] + taught.clamp(min=0)
        return Pairs(
            canvas=drafted[wanted],
            row=row_of,
            previous=torch.from_numpy(batch.clean).to(device).flatten()[row_of],
            target=pick(batch.target),
            number=torch.from_numpy(row * batch.shown.shape[1] + canvas).to(device),
            slot=torch.from_numpy(slot).to(device),
            weight=pick(batch.weight),
            fill=pick(batch.fill),
            taught=(taught >= 0).float(),
            clean=clean.detach().flatten(0, 1),
        )

    def forward(self, batch: AdaptBatch) -> Sums:
        """Sums of all losses that the settings ever use; which of them count is `total`'s business."""
        clean, drafted = self.hidden(self._seen(batch))
        pairs = self._pairs(batch, clean, drafted)
        ar, kept, ar_count = self.ar_sums(batch, clean)
        totals = pairs.canvas.new_zeros(len(COMPUTED), dtype=torch.float32)
        for part in pairs.portions():
            given = [getattr(part, f.name) for f in fields(part)]
            if len(pairs.target) <= KEPT:
                totals = totals + self._chunk(*given)
            else:  # computed anew for the gradient: logits kept would be most of the memory
                totals = totals + _again(self._chunk, *given)
        return Sums(
            **dict(zip(COMPUTED, totals, strict=True)),
            weight=pairs.weight.sum(),
            taught=(pairs.weight * pairs.taught).sum(),
            fill_count=pairs.fill.sum(),
            ar=ar,
            kept=kept,
            ar_count=ar_count,
        )

    def ar_sums(self, batch: AdaptBatch, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ar, kept and ar_count of Sums; zeros where the clean rows are the frozen base's. clean [B, L, hidden]."""
        none = clean.new_zeros((), dtype=torch.float32)
        following = torch.from_numpy(batch.following).to(clean.device)
        wanted = following >= 0
        if not self.clean_learns or not wanted.any():
            return none, none, none
        theirs = None
        if self.base is not None:
            tokens, places = (torch.from_numpy(a).to(clean.device) for a in (batch.clean, batch.positions))
            with torch.no_grad():
                theirs = self.base(tokens, places, self._text(batch))[0][wanted]
        rows, targets = clean[wanted], following[wanted]
        ar, kept = none, none
        for start in range(0, len(rows), CHUNK):
            stop = start + CHUNK
            part = rows[start:stop], targets[start:stop], None if theirs is None else theirs[start:stop]
            each = self._ar_chunk(*part) if len(rows) <= KEPT else _again(self._ar_chunk, *part)
            ar, kept = ar + each[0], kept + each[1]
        return ar, kept, wanted.sum().float()

    def _ar_chunk(self, rows: Tensor, targets: Tensor, theirs: Tensor | None) -> Tensor:
        """Sums of cross-entropy and of KL(base || ours), float32 [2]; theirs: the base's hidden states."""
        ours = F.log_softmax(self._writable(self.model.logits(rows)), -1)
        ar = -ours.gather(1, targets[:, None]).sum()
        if theirs is None or self.base is None:
            return torch.stack((ar, ar.new_zeros(())))
        with torch.no_grad():
            due = F.log_softmax(self._writable(self.base.logits(theirs)), -1)
        return torch.stack((ar, (due.exp() * (due - ours)).sum()))

    def _chunk(self, *given: Tensor) -> Tensor:
        """The sums named in COMPUTED, float32."""
        part, used = Pairs(*given), self.settings
        hidden = self.moved(part, part.previous)
        logits = self.model.logits(hidden)
        log_p, teacher = self.taught_by(part)
        learning = part.weight * part.taught
        each, kl, rejected, same = against(logits, log_p, teacher, part.target)
        none = torch.zeros_like(kl)
        aligned = live = entropy = doubt = none
        if used.hidden:
            theirs = part.clean[part.row].float()
            aligned = 1 - F.cosine_similarity(part.canvas.float(), theirs, dim=-1)
        if used.on_policy or used.sharpen:
            log_q = F.log_softmax(logits.float(), -1)
        if used.on_policy:
            behind = behind_failure(part, same)
            reverse = (log_q.exp() * (log_q - log_p[teacher])).sum(-1) * FORGIVEN ** behind.clamp(min=1)
            live = torch.where(behind > 0, reverse, kl)
        if used.sharpen:
            entropy = torch.where(same, -(log_q.exp() * log_q).sum(-1), none)
        if self.heads.confidence:
            odds = self.heads.raw_confidence(hidden, part.slot)
            doubt = F.binary_cross_entropy_with_logits(odds, 1 - rejected.detach(), reduction="none")
        counted = learning > 0
        sums = (
            part.weight * each,
            learning * kl,
            learning * rejected,
            learning * aligned,
            learning * live,
            learning * entropy,
            part.fill * each,
            learning * doubt,
            same & counted,
            counted,
        )
        return torch.stack([x.float().sum() for x in sums])

    def moved(self, pairs: Pairs, previous: Tensor) -> Tensor:
        """The canvas's hidden states [n, hidden] as the Markov head moves them; previous: int64 [n], the token before
        each slot, which counts where a slot has a teacher."""
        if not self.heads.markov:
            return pairs.canvas
        with torch.no_grad():  # without the canvas's own embeddings: the head knows tokens of text
            embedded = self.model.model.embed_tokens(previous) * pairs.taught[:, None]
        return self.heads.move(pairs.canvas, embedded)

    def taught_by(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The AR self's log-probabilities of the clean rows that teach, float32 [m, V], and which of them teaches each
        slot, int64 [n]."""
        rows, inverse = pairs.row.unique(return_inverse=True)
        return F.log_softmax(self.teacher(pairs.clean[rows]), -1), inverse

    def favoured(self, pairs: Pairs) -> Tensor:
        """The AR self's likeliest token of each slot, int64 [n]."""
        log_p, teacher = self.taught_by(pairs)
        return log_p.argmax(-1)[teacher]

    @torch.no_grad()
    def teacher(self, clean: Tensor) -> Tensor:
        """AR logits, float32 [n, V]; tokens that exist on canvases only are next to impossible."""
        return self._writable(self.model.logits(clean))

    def _writable(self, logits: Tensor) -> Tensor:
        """Logits [n, V] in float32, those of tokens that exist on canvases only next to impossible."""
        special = torch.tensor(self.model.config.special_slot_ids, dtype=torch.long, device=logits.device)
        wide = logits.float()
        return wide.index_fill(1, special, torch.finfo(wide.dtype).min / 2)

    def total(self, sums: Sums, divisors: Sequence[float], factors: Mapping[str, float]) -> Tensor:
        """The loss. divisors: of DIVISORS, over the whole step. factors: Losses.at."""
        over = dict(zip(DIVISORS, divisors, strict=True))
        loss = sums.ce.new_zeros(())
        for name, factor in factors.items():
            if factor:  # the gradient of a term that doesn't count would still be computed
                divisor = max(over[BY_WEIGHT.get(name, "taught")], 1e-9)
                loss = loss + factor * getattr(sums, name) / divisor
        return loss


def _again(function: Callable[..., Tensor], *given: Any) -> Tensor:
    """function(*given), which is computed a second time for its gradient and keeps nothing until then."""
    out: Tensor = checkpoint(function, *given, use_reentrant=False)
    return out


def behind_failure(pairs: Pairs, same: Tensor) -> Tensor:
    """How many slots behind its canvas's first failing draft a slot is, int64 [n]; 0 or less up to there.

    same: bool [n], whether a slot's likeliest token is the AR self's. Slots without a teacher can't fail.
    """
    failing = ~same & (pairs.taught > 0)
    none = torch.iinfo(torch.int64).max // 2
    first = pairs.slot.new_full((int(pairs.number.max()) + 1,), none)
    first = first.scatter_reduce(0, pairs.number, torch.where(failing, pairs.slot, none), "amin")
    return pairs.slot - first[pairs.number]


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
        ours = objective.model.logits(part.canvas).argmax(-1)
        same.append((ours == objective.favoured(part)) & (part.taught > 0))
    if same:
        agree[wanted] = torch.cat(same).cpu()
    run = agree[:, :, 1:].long().cumprod(-1).sum(-1).numpy()
    return np.asarray(run[batch.document >= 0])
