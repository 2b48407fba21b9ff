"""SDAR and TraDo, the dense sizes: Qwen3's network, block-causal, no shift."""

from __future__ import annotations

from redraft.denoiser.families.family import Family, Raw
from redraft.denoiser.families.qwen3 import qwen3_shape
from redraft.denoiser.families.special_tokens import SpecialTokens


def translate(raw: Raw, tokens: SpecialTokens) -> Raw:
    own = {"layout": "block_causal", "canvas_length": raw.get("block_size")}
    return qwen3_shape(raw, tokens) | own


FAMILY = Family("sdar", (("SDARForCausalLM", "sdar"),), translate)
