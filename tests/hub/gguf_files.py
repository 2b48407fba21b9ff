"""A Llama of two layers as llama.cpp's converter writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WIDE, LAYERS = 32, 4, 2, 8, 64, 2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)
MERGES = ["t h", "th e", "Ġ the"]


def vocabulary() -> list[str]:
    from tokenizers import pre_tokenizers

    return [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES)]


def weights() -> dict[str, np.ndarray]:
    """By transformers' names."""
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (len(vocabulary()), HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        name = f"model.layers.{i}"
        shapes |= {
            f"{name}.input_layernorm.weight": (HIDDEN,),
            f"{name}.post_attention_layernorm.weight": (HIDDEN,),
            f"{name}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"{name}.mlp.gate_proj.weight": (WIDE, HIDDEN),
            f"{name}.mlp.up_proj.weight": (WIDE, HIDDEN),
            f"{name}.mlp.down_proj.weight": (HIDDEN, WIDE),
        }
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def interleaved(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k: (0, D/2), (1, D/2 + 1), … side by side."""
    heads = weight.reshape(-1, 2, head_dim // 2, *weight.shape[1:])
    return heads.swapaxes(1, 2).reshape(weight.shape)


def _gguf_name(name: str) -> str:
    from redraft.hub.from_gguf import IN_BLOCK, WHOLE

    theirs = {own: whole for whole, own in WHOLE.items()}
    if name in theirs:
        return theirs[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{next(g for g, own in IN_BLOCK.items() if own == part)}.weight"


def tiny_gguf(
    path: Path,
    kind: Any = None,
    architecture: str = "llama",
    pre: str = "smollm",
    leave_out: str = "",
    rename: tuple[str, str] = ("", ""),
    rope_scaling: str | None = None,
) -> Path:
    """kind: how linear weights are quantized, None not at all; the rest are ways to be another file than redraft's."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    if rope_scaling:
        writer.add_string(f"{architecture}.rope.scaling.type", rope_scaling)
    tokens = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for own, values in weights().items():
        name = _gguf_name(own)
        if name == leave_out:
            continue
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            values = interleaved(values, HEAD_DIM)
        name = rename[1] if name == rename[0] else name
        if kind is not None and values.ndim == 2:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
