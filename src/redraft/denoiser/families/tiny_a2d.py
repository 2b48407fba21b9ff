"""Tiny-A2D (dllm): small AR bases turned into masked diffusion models, full attention, no shift.

Its block-wise variants (bd3lm) have the same config.json: load those with layout="block_causal".
"""

from __future__ import annotations

from redraft.denoiser.families.family import Family, Raw
from redraft.denoiser.families.llama import llama_shape
from redraft.denoiser.families.qwen2 import qwen2_shape
from redraft.denoiser.families.qwen3 import qwen3_shape
from redraft.denoiser.families.special_tokens import SpecialTokens

_SHAPES = {"a2d-llama": llama_shape, "a2d-qwen2": qwen2_shape, "a2d-qwen3": qwen3_shape}


def translate(raw: Raw, tokens: SpecialTokens) -> Raw:
    return _SHAPES[raw["model_type"]](raw, tokens) | {"layout": "full", "canvas_length": 32}


FAMILY = Family(
    "tiny_a2d",
    (
        ("A2DLlamaLMHeadModel", "a2d-llama"),
        ("A2DQwen2LMHeadModel", "a2d-qwen2"),
        ("A2DQwen3LMHeadModel", "a2d-qwen3"),
    ),
    translate,
)
