"""Fast-dLLM v2: Qwen2.5's network and its shift, block-causal."""

from __future__ import annotations

from redraft.denoiser.families.family import Family, Raw
from redraft.denoiser.families.qwen2 import qwen2_shape
from redraft.denoiser.families.special_tokens import SpecialTokens


def translate(raw: Raw, tokens: SpecialTokens) -> Raw:
    own = {"layout": "block_causal", "shift": True, "canvas_length": raw.get("bd_size")}
    return qwen2_shape(raw, tokens) | own


FAMILY = Family("fast_dllm", (("Fast_dLLM_QwenForCausalLM", "Fast_dLLM_Qwen"),), translate)
