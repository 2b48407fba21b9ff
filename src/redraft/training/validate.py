"""Held-out likelihood: AR nats exactly, NELBO by stratified Monte Carlo with its standard error.

The NELBO is that of the absorbing process with linear schedule, in its discrete form: with k of a canvas's n slots
hidden, k uniform on 1..n and the hidden set uniform, E[n/k * sum of -log p over the hidden slots] bounds the canvas's
negative log-likelihood given the text before it (any-order form of the bound: LLaDA 2502.09992, eq. 6; BD3-LM
2503.09573 for the sum over blocks).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from redraft.denoiser.transformer import Denoiser
from redraft.training.batch import Batch, visibility
from redraft.training.canvases import Canvases
from redraft.training.objective import JointObjective
from redraft.training.packing import Row

REPLICATES = 2


@dataclass(frozen=True)
class HeldOut:
    """Sums over the documents, in nats. ar_nll is over ar_tokens (all but each document's first), and None where the
    encode role isn't causal; nelbo over all tokens, the nulls that fill the last canvas included. nelbo_se: Monte
    Carlo standard error of nelbo."""

    ar_nll: float | None
    nelbo: float
    nelbo_se: float
    tokens: int
    ar_tokens: int

    def bits_per_byte(self, byte_count: int) -> tuple[float | None, float]:
        """AR and NELBO; byte_count: UTF-8 bytes of the documents."""
        per_byte = np.log(2) * byte_count
        return None if self.ar_nll is None else self.ar_nll / per_byte, self.nelbo / per_byte


def _one_row(document: np.ndarray, length: int) -> Row:
    """A document alone in a row, padded to `length`."""
    n = len(document)
    owner = np.full(length, -1, np.int64)
    owner[:n] = 0
    tokens, position = np.zeros(length, np.int64), np.zeros(length, np.int64)
    tokens[:n], position[:n] = document, np.arange(n)
    return Row(tokens, owner, position, owner == 0, 0)


def _tile(document: np.ndarray, canvas: int, count: int, null_id: int) -> Canvases:
    """Consecutive canvases from the document's beginning, null past its end."""
    target = np.full((count, canvas), null_id, np.int64)
    target.reshape(-1)[: len(document)] = document
    used = np.arange(count) * canvas < len(document)
    return Canvases(
        target,
        np.zeros((count, canvas), bool),
        np.where(used, 0, -1),
        np.arange(count) * canvas,
        np.zeros(count, bool),
    )


def _hidden_counts(canvases: int, slots: int, copies: int, rng: np.random.Generator) -> np.ndarray:
    """k for each copy of each canvas, int64 [copies, canvases].

    Two replicates, each with its own random start: within a replicate the copies of a canvas climb a wrap-around
    ladder over 1..slots (2502.09992), which varies less than free draws. The replicates are independent of each
    other, and that is where the standard error comes from.
    """
    offset = np.repeat(rng.integers(0, slots, (REPLICATES, canvases)), copies // REPLICATES, 0)
    ladder = np.tile(np.arange(copies // REPLICATES) * slots // (copies // REPLICATES), REPLICATES)
    return (offset + ladder[:, None]) % slots + 1


def batches(
    documents: Sequence[np.ndarray], model: Denoiser, canvas: int, copies: int, rows: int, seed: int
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Batches of documents as [x_0 ‖ x_t], and the number of hidden slots k of each canvas copy [B, copies * N]."""
    config = model.config
    assert config.null_token_id is not None
    assert config.mask_token_id is not None
    rng = np.random.default_rng(seed)
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    for at in range(0, len(order), rows):
        group = [documents[i] for i in order[at : at + rows]]
        count = -(-max(map(len, group)) // canvas)
        parts = []
        for document in group:
            row = _one_row(document, count * canvas)
            tiled = _tile(document, canvas, count, config.null_token_id)
            k = _hidden_counts(count, canvas, copies, rng).reshape(-1)
            many = tiled.repeated(copies)
            rank = rng.random(many.target.shape).argsort(1).argsort(1)
            noisy = np.where(rank < k[:, None], config.mask_token_id, many.target)
            following = np.full(len(row.tokens), -1, np.int64)
            if config.layout == "causal_context":
                following[: len(document) - 1] = document[1:]
            slots = many.anchor[:, None] + np.arange(canvas)
            clean, to_canvas = visibility(row, many, canvas, config.layout)
            positions = np.concatenate((row.position, slots.reshape(-1)))
            row_parts = (row.tokens, following, noisy, many.target, many.locked, k / canvas, many.document)
            parts.append((*row_parts, positions, clean, to_canvas, k))
        *arrays, k_all = (np.stack(p) for p in zip(*parts, strict=True))
        yield Batch(*arrays), k_all


@torch.no_grad()
def held_out(
    objective: JointObjective,
    documents: Sequence[np.ndarray],
    canvas: int,
    copies: int = 4,
    rows: int = 4,
    seed: int = 0,
) -> HeldOut:
    """Likelihood of whole documents (int64 token arrays, EOS included). copies: noisy copies of each canvas, an even
    number."""
    assert copies >= REPLICATES
    assert copies % REPLICATES == 0
    model = objective.model
    device = model.lm_head.weight.device
    ar = nelbo = variance = 0.0
    tokens = ar_tokens = 0
    for batch, k in batches(documents, model, canvas, copies, rows, seed):
        hidden = objective.hidden(batch)
        length = batch.clean.shape[1]
        following = torch.from_numpy(batch.next_token).to(device)
        ar += float(objective.ar_sum(hidden[:, :length][following >= 0], following[following >= 0]))
        ar_tokens += int((batch.next_token >= 0).sum())
        tokens += batch.tokens
        masked = torch.from_numpy((batch.noisy != batch.target) & (batch.canvas_document >= 0)[..., None]).to(
            device
        )
        logits = model.logits(hidden[:, length:].unflatten(1, batch.noisy.shape[1:])[masked]).float()
        logits[:, list(model.config.noise_token_ids)] = -torch.inf  # these are never text
        each = torch.zeros(batch.noisy.shape, dtype=torch.float64, device=device)
        target = torch.from_numpy(batch.target).to(device)
        each[masked] = F.cross_entropy(logits, target[masked], reduction="none").double()
        bound = each.sum(-1).cpu().numpy() * (canvas / k)  # [B, copies * N]
        bound = bound.reshape(len(k), REPLICATES, copies // REPLICATES, -1).mean(2)  # [B, REPLICATES, N]
        nelbo += float(bound.mean(1).sum())
        variance += float(bound.var(1, ddof=1).sum() / REPLICATES)
    causal = model.config.layout == "causal_context"
    return HeldOut(ar if causal else None, nelbo, variance**0.5, tokens, ar_tokens)
