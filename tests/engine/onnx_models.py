"""Tiny random denoisers of every option set, and what the torch reference says of them, computed without a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from redraft.denoiser.checkpoint import state_dict
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.layouts import Rows, allowed, canvas_start, clean_start
from redraft.denoiser.rotary import RopeScaling
from redraft.denoiser.transformer import Denoiser, Visibility
from redraft.engine.backends.onnx_backend import OnnxBackend
from redraft.engine.backends.onnx_graph import Precision

torch.set_num_threads(1)

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "canvas_length": 8,
    "mask_token_id": 48,
    "null_token_id": 49,
}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "qwen2": {"attention_bias": True, "layout": "block_causal", "canvas_rows_marked": False},
    "qwen3": {"qk_norm": True, "rope_theta": 1e6, "head_dim": 16},
    "full": {"layout": "full", "canvas_rows_marked": False, "num_key_value_heads": 4},
    "self_conditioned": {"self_conditioning": True},
    "self_conditioned_unmarked": {"self_conditioning": True, "canvas_rows_marked": False},
    "partial_rotary": {"partial_rotary_factor": 0.5, "rope_scaling": RopeScaling("linear", 2.0)},
    "llama3": {"rope_scaling": RopeScaling("llama3", 4.0, original_max_position_embeddings=16)},
    "one_layer_one_head": {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1},
}


def denoiser(seed: int = 0, **options: Any) -> Denoiser:
    """Random weights, biases, norms and embeddings, wide enough that every part moves the logits."""
    model = Denoiser(DenoiserConfig(**{**SMALL, **options}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.2 * noise if name.endswith("norm.weight") else noise * (p.shape[-1] ** -0.5))
    return model.eval()


def onnx(model: Denoiser, precision: Precision = "fp32", threads: int = 1) -> OnnxBackend:
    tensors = {k: v.float().numpy() for k, v in state_dict(model).items()}
    return OnnxBackend(model.config, tensors, precision, threads)


def reference(
    model: Denoiser,
    clean: np.ndarray,
    canvas: np.ndarray | None = None,
    locked: np.ndarray | None = None,
    expected: np.ndarray | None = None,
) -> np.ndarray:
    """Logits [n + C, V] of all clean rows, then of the canvas that follows them, in one torch pass with no cache."""
    config, n = model.config, len(clean)
    slots = 0 if canvas is None else len(canvas)
    tokens = np.concatenate((clean, np.empty(0, np.int64) if canvas is None else canvas))
    at = np.arange(n + slots)
    block = config.canvas_length
    start = np.where(at >= n, canvas_start(config.layout, n, block), clean_start(config.layout, at, block))
    rows = Rows(at >= n, 0 * at, at, start, 0 * at)
    mask = Visibility.additive(torch.from_numpy(allowed(rows.queries(), rows.keys())))[None, None]
    is_locked = np.zeros(n + slots, bool)
    if locked is not None:
        is_locked[n:] = locked
    soft = None
    if expected is not None:
        soft = torch.from_numpy(np.concatenate((np.zeros((n, config.vocab_size), np.float32), expected)))[
            None
        ]
    with torch.no_grad():
        hidden, _ = model(
            torch.from_numpy(tokens)[None],
            torch.from_numpy(at)[None],
            Visibility(dense=mask),
            torch.from_numpy(at >= n)[None],
            torch.from_numpy(is_locked)[None],
            soft,
        )
        return model.logits(hidden)[0].numpy()


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SMALL["vocab_size"], count)
