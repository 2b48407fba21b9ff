"""Qwen3, the dense sizes (q and k normalised per head): AR bases to adapt."""

from __future__ import annotations

from redraft.denoiser.families.family import Family, Raw, autoregressive, llama_fields, refuse
from redraft.denoiser.families.special_tokens import SpecialTokens


def qwen3_shape(raw: Raw, tokens: SpecialTokens) -> Raw:
    refuse(raw, "attention_bias", False)  # it would put a bias on o_proj too
    return llama_fields(raw, tokens) | {"qk_norm": True}


def translate(raw: Raw, tokens: SpecialTokens) -> Raw:
    return autoregressive(qwen3_shape(raw, tokens))


FAMILY = Family("qwen3", (("Qwen3ForCausalLM", "qwen3"),), translate, needs=())
