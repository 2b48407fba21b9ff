"""Scales: attention's, moved from the scores into the weights that make q, and those of 8-bit blocks."""

from __future__ import annotations

import numpy as np

from redraft.denoiser.config import DenoiserConfig

# "blocks" gives so many neighbours in a row of weights or of activations a scale of their own, the first of these that
# divides the row (GGUF's Q8_0 has 32): a large entry takes the fineness of 8 bits from its own block alone.
BLOCKS = (64, 32)


def query_scale(config: DenoiserConfig) -> np.float32:
    """What the weights of q are multiplied by, so that attention need not scale its scores: 1 / sqrt(head_dim), unless
    a norm behind them takes it (`head_norms`). A power of two, and exact, for heads of 16 or 64."""
    return np.float32(1.0 if config.qk_norm else config.head_dim**-0.5)


def head_norms(config: DenoiserConfig, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Norm weights [D] of q and k as factors of all heads, [heads + kv_heads, D], with the scale in those of q."""
    scaled = q * np.float32(config.head_dim**-0.5)
    return np.stack([scaled] * config.num_attention_heads + [k] * config.num_key_value_heads)


def block_of(inputs: int) -> int | None:
    """How many neighbours share a scale in "blocks"; None for a row that no block divides, whose scale is one for all,
    as in "int8"."""
    return next((size for size in BLOCKS if inputs % size == 0), None)
