"""Tiny networks with weights large enough that every part of them shows in the logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.layouts import Rows, allowed, canvas_start, clean_start
from redraft.denoiser.transformer import Denoiser, Visibility

VOCAB = 41
PARTNERS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "glm4_moe": (Glm4MoeConfig, Glm4MoeForCausalLM),
}


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Norm weights around 1, all else around 0; biases and learnt embeddings too, which start at 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") or "layernorm" in name else 0.0
            p.copy_(centre + 0.25 * torch.randn(p.shape, generator=generator))


def tiny(seed: int = 0, **changes: Any) -> Denoiser:
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "mask_token_id": VOCAB - 1,
        "null_token_id": VOCAB - 2,
    }
    model = Denoiser(DenoiserConfig(**(sizes | changes))).eval()
    randomise(model, seed)
    return model


def partner(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of transformers, two layers of width 32."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "attn_implementation": "sdpa",
    }
    config_class, model_class = PARTNERS[family]
    model = model_class(config_class(**(sizes | changes))).eval()
    randomise(model, seed)
    return model


def edit_config(folder: Path, **changes: Any) -> None:
    """Rewrites keys of config.json; None drops one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def tokens(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCAB - 2, (batch, length), generator=torch.Generator().manual_seed(seed))


def training_rows(layout: str, length: int, canvas_length: int) -> Rows:
    """[x_0 ‖ x_t] for one document: `length` clean rows, then canvases side by side over the same positions."""
    position = torch.arange(length)
    anchor = position // canvas_length * canvas_length
    whole = torch.cat((position, position))
    start = (clean_start(layout, position, canvas_length), canvas_start(layout, anchor, canvas_length))
    return Rows(
        canvas=torch.arange(2 * length) >= length,
        document=torch.zeros(2 * length, dtype=torch.int64),
        position=whole,
        start=torch.cat(start),
        block=torch.cat((anchor * 0, anchor if layout != "full" else anchor * 0)),
    )


def clean_rows(layout: str, length: int, block_length: int) -> Rows:
    position = torch.arange(length)
    zeros = torch.zeros(length, dtype=torch.int64)
    start = clean_start(layout, position, block_length)
    return Rows(canvas=zeros.bool(), document=zeros, position=position, start=start, block=zeros)


def mask_of(rows: Rows) -> torch.Tensor:
    """bool [1, 1, T, T]."""
    return allowed(rows.queries(), rows.keys())[None, None]


def our_logits(
    model: Denoiser, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """ids [B, T], positions [T], mask bool [1 or B, 1, T, T] -> logits [B, T, V]."""
    batch = ids.shape[0]
    visible = Visibility(dense=Visibility.additive(mask.expand(batch, -1, -1, -1)))
    with torch.no_grad():
        hidden, _ = model(ids, positions.expand(batch, -1), visible)
        return model.logits(hidden)


def partner_logits(
    model: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    batch = ids.shape[0]
    with torch.no_grad():
        return model(
            input_ids=ids,
            position_ids=positions.expand(batch, -1),
            attention_mask=Visibility.additive(mask.expand(batch, -1, -1, -1)),
            use_cache=False,
        ).logits
