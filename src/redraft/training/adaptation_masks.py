"""Who sees whom in the two passes of adaptation: a dense mask, and FlexAttention's block mask, which says the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from redraft.denoiser.layouts import Rows, canvas_start, clean_start
from redraft.denoiser.transformer import Visibility
from redraft.training.adaptation_batch import AdaptBatch


def beside(canvas_visible: Tensor, dtype: torch.dtype) -> Visibility:
    """bool [B, N, C, L + C], what slots see of the text and of their own canvas, as additive masks of `dtype`."""
    slots = canvas_visible.shape[2]
    return Visibility(
        text=Visibility.additive(canvas_visible[..., :-slots].flatten(1, 2), dtype),
        own=Visibility.additive(canvas_visible[..., -slots:], dtype),
    )


def flex_masks(batch: AdaptBatch, device: torch.device) -> tuple[BlockMask, BlockMask]:
    """Of the clean rows [B, L, L] and of all canvases' rows over text and canvases [B, N * C, L + N * C].

    FlexAttention (Dong et al., 2024, arXiv 2412.05496) leaves out the blocks in which nothing is visible.
    """
    count, length = batch.clean.shape
    total = batch.shown[0].size
    rows = _rows(batch, device)
    canvas, document, position = rows.canvas, rows.document, rows.position
    start, block = rows.start, rows.block

    def sees(b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """layouts.allowed, on tensors alone: what is compiled into the kernel must be no more than that."""
        same_document = (document[b, q] == document[b, k]) & (document[b, k] >= 0)
        clean_key = ~canvas[b, k] & (position[b, k] < start[b, q])
        canvas_key = canvas[b, q] & canvas[b, k] & (block[b, q] == block[b, k])
        return same_document & (clean_key | canvas_key)

    def text(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return sees(b, q, k)

    def drafts(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return sees(b, q + length, k)

    # Compiled, the mask is never made as a whole.
    made: dict[str, Any] = {"H": None, "device": str(device), "_compile": device.type == "cuda"}
    return (
        create_block_mask(text, count, Q_LEN=length, KV_LEN=length, **made),
        create_block_mask(drafts, count, Q_LEN=total, KV_LEN=length + total, **made),
    )


def _rows(batch: AdaptBatch, device: torch.device) -> Rows:
    """Clean rows, then the canvases' side by side: arrays [B, L + N * C]."""
    length, (count, canvases, slots) = batch.clean.shape[1], batch.shown.shape
    anchor = batch.slot_positions[:, :, 0]
    block = np.broadcast_to(np.arange(canvases)[None, :, None], batch.shown.shape).copy()
    if slots > 1:  # a last slot that stands aside is a block of its own
        block[:, :, -1] += canvases * batch.aside

    def joined(clean: Any, noisy: Any) -> Tensor:
        """noisy: [B, N, C], [B, N, 1] or a number."""
        each = np.broadcast_to(noisy, (count, canvases, slots)).reshape(count, -1)
        every = np.concatenate((np.broadcast_to(clean, (count, length)), each), 1)
        return torch.from_numpy(np.ascontiguousarray(every)).to(device)

    return Rows(
        canvas=joined(False, True),
        document=joined(batch.clean_document, batch.document[:, :, None]),
        position=joined(batch.positions, batch.slot_positions),
        start=joined(
            clean_start("causal_context", batch.positions, slots),
            canvas_start("causal_context", anchor, slots)[:, :, None],
        ),
        block=joined(-1, block),
    )
