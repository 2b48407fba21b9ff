"""LLaDA-8B (Base, Instruct, 1.5): Llama's network under OLMo's names, full attention, no shift.

LLaDA-MoE has the same model_type and another network: the architecture tells them apart.
"""

from __future__ import annotations

import re

from redraft.denoiser.families.family import Family, Raw, first, refuse
from redraft.denoiser.families.special_tokens import SpecialTokens

_WHOLE = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_BLOCK = re.compile(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.weight")

# The switches of OLMo's config that change the network, and the setting that is Llama's.
_LLAMA_TYPE = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "attention_layer_norm": False,
    "alibi": False,
    "rope": True,
    "include_bias": False,
    "include_qkv_bias": False,
    "scale_logits": False,
    "input_emb_norm": False,
    "quantization_config": None,
}


def rename(name: str) -> str | None:
    if name in _WHOLE:
        return _WHOLE[name]
    block = _BLOCK.fullmatch(name)
    if block and block[2] in _IN_BLOCK:
        return f"model.layers.{block[1]}.{_IN_BLOCK[block[2]]}.weight"
    return name  # unknown: the loader says so


def translate(raw: Raw, tokens: SpecialTokens) -> Raw:
    for name, supported in _LLAMA_TYPE.items():
        refuse(raw, name, supported)
    source = {
        "vocab_size": first(
            raw.get("embedding_size"), raw.get("vocab_size")
        ),  # the embedding's rows, padding included
        "hidden_size": raw.get("d_model"),
        "intermediate_size": raw.get("mlp_hidden_size"),
        "num_hidden_layers": raw.get("n_layers"),
        "num_attention_heads": raw.get("n_heads"),
        "num_key_value_heads": first(raw.get("n_kv_heads"), raw.get("n_heads")),
        "max_position_embeddings": raw.get("max_sequence_length"),
    }
    sizes = {name: value for name, value in source.items() if value is not None}
    if isinstance(raw.get("d_model"), int) and isinstance(raw.get("n_heads"), int) and raw["n_heads"] > 0:
        sizes["head_dim"] = raw["d_model"] // raw["n_heads"]
    return sizes | {
        "rope_theta": raw.get("rope_theta", 10000.0),
        "rms_norm_eps": raw.get("rms_norm_eps", 1e-5),
        "tie_word_embeddings": raw.get("weight_tying", True),
        "eos_token_ids": tokens.ends(raw, "<|eot_id|>"),
        "mask_token_id": tokens.mask(raw),
        "canvas_rows_marked": False,
        "layout": "full",
        "canvas_length": 32,
    }


FAMILY = Family("llada", (("LLaDAModelLM", "llada"),), translate, rename)
