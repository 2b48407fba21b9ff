"""Qwen2 and Qwen2.5 (q, k and v with biases): AR bases to adapt."""

from __future__ import annotations

from redraft.denoiser.families.family import Family, Raw, autoregressive, llama_fields
from redraft.denoiser.families.special_tokens import SpecialTokens


def qwen2_shape(raw: Raw, tokens: SpecialTokens) -> Raw:
    return llama_fields(raw, tokens) | {"attention_bias": True}


def translate(raw: Raw, tokens: SpecialTokens) -> Raw:
    return autoregressive(qwen2_shape(raw, tokens))


FAMILY = Family("qwen2", (("Qwen2ForCausalLM", "qwen2"),), translate, needs=())
