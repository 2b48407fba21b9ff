"""Llama 2 and 3, SmolLM2, TinyLlama and others that use their network: AR bases to adapt."""

from __future__ import annotations

from redraft.denoiser.families.family import Family, Raw, autoregressive, llama_fields, refuse
from redraft.denoiser.families.special_tokens import SpecialTokens


def llama_shape(raw: Raw, tokens: SpecialTokens) -> Raw:
    refuse(raw, "attention_bias", False)  # it would put a bias on o_proj too
    return llama_fields(raw, tokens)


def translate(raw: Raw, tokens: SpecialTokens) -> Raw:
    return autoregressive(llama_shape(raw, tokens))


FAMILY = Family("llama", (("LlamaForCausalLM", "llama"),), translate, needs=())
