"""Who sees whom in the two passes of adaptation: a dense mask, and FlexAttention's block mask, which says the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from redraft.training.adaptation_batch import AdaptBatch


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


def flex_masks(batch: AdaptBatch, device: torch.device) -> tuple[BlockMask, BlockMask]:
    """Of the clean rows [B, L, L] and of all canvases' rows over text and canvases [B, N * C, L + N * C].

    A clean row sees those of its document up to itself. A slot sees its document's clean rows before the canvas's
    anchor, and its own canvas. (FlexAttention: Dong et al., 2024, arXiv 2412.05496.)
    """
    rows, length = batch.clean.shape
    _, canvases, slots = batch.shown.shape
    total = canvases * slots
    clean, canvas = predicates(batch, device)
    # Compiled, the mask is never made as a whole.
    made: dict[str, Any] = {"H": None, "device": device, "_compile": device.type == "cuda"}
    return (
        create_block_mask(clean, rows, Q_LEN=length, KV_LEN=length, **made),
        create_block_mask(canvas, rows, Q_LEN=total, KV_LEN=length + total, **made),
    )


def predicates(batch: AdaptBatch, device: torch.device) -> tuple[Any, Any]:
    """allowed(row, head, query, key) of each pass, for index tensors that broadcast."""
    length, slots = batch.clean.shape[1], batch.shown.shape[2]
    document, position = (torch.from_numpy(x).to(device) for x in (batch.clean_document, batch.positions))
    owner = torch.from_numpy(batch.document).to(device)
    anchor = torch.from_numpy(batch.slot_positions[:, :, 0].copy()).to(device)

    def clean(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same = (document[b, q] == document[b, k]) & (document[b, q] >= 0)
        return same & (position[b, k] <= position[b, q])

    def canvas(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        n = q // slots
        text = k.clamp(max=length - 1)
        used = owner[b, n] >= 0
        before = (document[b, text] == owner[b, n]) & (position[b, text] < anchor[b, n])
        return used & torch.where(k < length, before, (k - length) // slots == n)

    return clean, canvas
