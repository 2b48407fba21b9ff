"""The mask of canvases side by side, spelt out as one matrix: what the faster ways are compared with."""

import torch
from torch import Tensor


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
