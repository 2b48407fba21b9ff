"""An adapter's drafting heads, taken over from torch."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from redraft.denoiser.adapters import adapter_of
from redraft.denoiser.transformer import Denoiser
from redraft.sampling.heads import DraftHeads


def heads_of(model: Denoiser) -> DraftHeads | None:
    """Those of the model's adapter, as numpy has them."""
    if model.adapter is None:
        return None

    def array(tensor: Tensor) -> np.ndarray:
        return tensor.detach().float().cpu().numpy()

    adapter, table = adapter_of(model), model.model.embed_tokens.weight
    own = {name: array(p) for name, p in adapter.heads.named_parameters()}
    if not own:
        return None
    embedding, tied = array(table), model.lm_head.weight is table
    output = embedding if tied else array(model.lm_head.weight)
    return DraftHeads.of(own, embedding, output, *adapter.settings.heads, "the adapter")
