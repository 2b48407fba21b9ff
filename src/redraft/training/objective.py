"""The joint objective: what a canvas should have held, and what comes next in the text, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft.corruption import Process
from redraft.denoiser.transformer import Denoiser, Visibility
from redraft.training.batch import Batch
from redraft.training.recipe import Objective

SHORTEST = 1e-3  # times nearer to 0 and 1 are taken as this near


@dataclass(frozen=True)
class Losses:
    """total: what is minimised. Sums, so that processes and micro-batches add up: canvas and canvas_weight over
    slots, ar and ar_count over tokens. right: corrupted slots whose argmax is the target, of corrupted."""

    total: Tensor
    canvas: Tensor
    canvas_weight: Tensor
    ar: Tensor
    ar_count: Tensor
    right: Tensor
    corrupted: Tensor


def slot_weights(batch: Batch, process: Process, settings: Objective) -> Tensor:
    """Weight of each slot's cross-entropy, float32 [B, M, C]; 0 for locked slots and unused canvases.

    flat: 1 on corrupted slots. elbo: the NELBO's weight of cross-entropy, cut at max_weight: -alpha'/(1 - alpha) on a
    mask of the absorbing process (MDLM), alpha times the rate w_t of `Process.weight` in general. Visible right slots
    weigh right_weight either way. draft_decay: on canvases at t = 1, exp(-k / draft_decay) for slot k, times what gives
    these factors a mean of 1 over the canvas.
    """
    corrupted = batch.noisy != batch.target
    if settings.weighting == "flat":
        weight = torch.from_numpy(corrupted).float()
    else:
        # At t = 0 and 1 (drafts) rates grow without bound; their product with alpha has a limit.
        time = batch.time[..., None].clip(SHORTEST, 1 - SHORTEST)
        exact = process.weight(batch.noisy, batch.target, time)
        alpha = process.kernel.shares(time).alpha
        weight = torch.from_numpy((alpha * exact).clip(0, settings.max_weight)).float()
    weight = torch.where(torch.from_numpy(corrupted), weight, weight.new_tensor(settings.right_weight))
    if settings.draft_decay is not None:
        fall = np.exp(-np.arange(batch.noisy.shape[-1]) / settings.draft_decay)
        factor = np.where((batch.time == 1.0)[..., None], fall / fall.mean(), 1.0)
        weight = weight * torch.from_numpy(factor).float()
    free = torch.from_numpy(~batch.locked & (batch.canvas_document >= 0)[..., None])
    return weight * free


class JointObjective(nn.Module):
    """A module, so that DistributedDataParallel sees one forward per loss."""

    def __init__(self, model: Denoiser, process: Process, settings: Objective) -> None:
        super().__init__()
        self.model, self.process, self.settings = model, process, settings

    def forward(self, batch: Batch, scale: tuple[float, float] | None = None) -> Losses:
        """scale: the divisors of the canvas sum and the AR sum; this batch's own weights by default."""
        model, device = self.model, self.model.lm_head.weight.device
        length = batch.clean.shape[1]
        weight = slot_weights(batch, self.process, self.settings).to(device)
        target = torch.from_numpy(batch.target).to(device)
        noisy = torch.from_numpy(batch.noisy).to(device)
        hidden = self.hidden(batch)
        picked = weight > 0
        canvas_logits = model.logits(hidden[:, length:].unflatten(1, batch.noisy.shape[1:])[picked])
        canvas_each = F.cross_entropy(canvas_logits.float(), target[picked], reduction="none")
        canvas_sum, weight_sum = (canvas_each * weight[picked]).sum(), weight.sum()
        corrupted = noisy[picked] != target[picked]
        with torch.no_grad():  # the largest logit is the target's; cheaper than argmax
            said = canvas_logits.gather(-1, target[picked][:, None])[:, 0]
            right = (said >= canvas_logits.amax(-1)) & corrupted
        following = torch.from_numpy(batch.next_token).to(device)
        has_next = following >= 0
        ar_sum = self.ar_sum(hidden[:, :length][has_next], following[has_next])
        ar_count = has_next.sum().float()
        canvas_by, ar_by = scale or (float(weight_sum), float(ar_count))
        total = self.settings.canvas_weight * canvas_sum / max(
            canvas_by, 1.0
        ) + self.settings.ar_weight * ar_sum / max(ar_by, 1.0)
        return Losses(
            total, canvas_sum.detach(), weight_sum, ar_sum.detach(), ar_count, right.sum(), corrupted.sum()
        )

    def hidden(self, batch: Batch) -> Tensor:
        """Final hidden states of [x_0 ‖ x_t], [B, L + M*C, hidden]."""
        model, device = self.model, self.model.lm_head.weight.device
        rows, length = batch.clean.shape
        slots = batch.noisy.reshape(rows, -1)
        tokens = torch.from_numpy(batch.clean).to(device), torch.from_numpy(slots).to(device)
        canvas = torch.zeros(rows, length + slots.shape[1], dtype=torch.bool, device=device)
        canvas[:, length:] = True
        locked = torch.zeros_like(canvas)
        locked[:, length:] = torch.from_numpy(batch.locked.reshape(rows, -1)).to(device)
        to_canvas = torch.from_numpy(batch.canvas_visible).to(device).flatten(0, 1)[:, None]
        visible = Visibility(
            clean=Visibility.additive(torch.from_numpy(batch.clean_visible).to(device)[:, None]),
            canvas=Visibility.additive(to_canvas),
        )
        positions = torch.from_numpy(batch.positions).to(device)
        return model(torch.cat(tokens, 1), positions, visible, canvas, locked)[0]

    def ar_sum(self, hidden: Tensor, following: Tensor) -> Tensor:
        """Next-token cross-entropy; the tokens that exist on canvases only are impossible for AR."""
        logits = self.model.logits(hidden).float()
        for token in self.model.config.special_slot_ids:
            logits[..., token] = -torch.inf
        return F.cross_entropy(logits, following, reduction="sum")
