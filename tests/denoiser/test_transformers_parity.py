"""With the matching options the denoiser is transformers' Llama, Qwen2 or Qwen3, whatever a row may attend to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DiffusionGemmaTextConfig
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaSelfConditioning

from redraft.denoiser import families
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.rotary import RopeScaling, frequencies
from redraft.denoiser.transformer import SelfConditioning
from redraft.errors import RequestError
from tests.denoiser.networks import (
    clean_rows,
    edit_config,
    mask_of,
    our_logits,
    partner,
    partner_logits,
    randomise,
    tokens,
    training_rows,
)

LENGTH, BLOCK = 12, 4


def rows_of(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions [T] and mask bool [1, 1, T, T]."""
    layout = {"causal": "causal_context", "full": "full", "block": "block_causal"}.get(
        kind.split("_")[0], "full"
    )
    rows = (
        training_rows(layout, LENGTH, BLOCK)
        if kind.endswith("_training")
        else clean_rows(layout, LENGTH, BLOCK)
    )
    return rows.position, mask_of(rows)


@pytest.mark.parametrize("kind", ["causal", "full", "block", "causal_training", "block_training"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_logits_equal_transformers(family: str, tied: bool, kv_heads: int, kind: str, tmp_path: Path) -> None:
    other = partner(family, num_key_value_heads=kv_heads, tie_word_embeddings=tied, rope_theta=5e5)
    other.save_pretrained(tmp_path)
    ours = families.load(tmp_path)
    assert ours.config.tie_word_embeddings is tied
    positions, mask = rows_of(kind)
    ids = tokens(2, len(positions))
    torch.testing.assert_close(
        our_logits(ours, ids, positions, mask),
        partner_logits(other, ids, positions, mask),
        atol=1e-5,
        rtol=1e-5,
    )


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ROPES: dict[str, dict[str, Any]] = {
    "theta": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3},
}


@pytest.mark.parametrize("spelling", ["transformers 5", "before"])
@pytest.mark.parametrize("name", list(ROPES))
def test_rope_variants_equal_transformers(name: str, spelling: str, tmp_path: Path) -> None:
    other = partner("llama", rope_parameters=ROPES[name], head_dim=16)
    other.save_pretrained(tmp_path)
    if spelling == "before":
        scaling = {k: v for k, v in ROPES[name].items() if k != "rope_theta"}
        edit_config(
            tmp_path,
            rope_parameters=None,
            rope_theta=ROPES[name]["rope_theta"],
            rope_scaling=None if name == "theta" else scaling,
        )
    ours = families.load(tmp_path)
    positions = torch.arange(0, 120, 5)  # far apart, so that slow frequencies matter
    mask = torch.ones(1, 1, len(positions), len(positions), dtype=torch.bool).tril()
    ids = tokens(1, len(positions))
    got, want = our_logits(ours, ids, positions, mask), partner_logits(other, ids, positions, mask)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    plain = families.load(tmp_path, rope_scaling=None, rope_theta=1e4)
    assert (our_logits(plain, ids, positions, mask) - want).abs().max() > 1e-3  # the variant does matter


def test_partial_rotary_equals_transformers(tmp_path: Path) -> None:
    """GLM-4.5's dense layers are the same block with half of each head turning."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    # All layers dense: first_k_dense_replace is their number.
    changes = {
        "first_k_dense_replace": 2,
        "use_qk_norm": True,
        "attention_bias": True,
        "tie_word_embeddings": True,
    }
    other = partner("glm4_moe", rope_parameters=rope, **changes)
    other.save_pretrained(tmp_path)
    edit_config(tmp_path, model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    ours = families.load(tmp_path, qk_norm=True)
    assert ours.config.rotary_dim == 4
    positions, mask = rows_of("block_training")
    ids = tokens(2, len(positions))
    torch.testing.assert_close(
        our_logits(ours, ids, positions, mask),
        partner_logits(other, ids, positions, mask),
        atol=1e-5,
        rtol=1e-5,
    )


def test_unsupported_rope_names_what_is_supported(tmp_path: Path) -> None:
    partner("llama").save_pretrained(tmp_path)
    edit_config(tmp_path, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0})
    with pytest.raises(RequestError, match=r"'yarn' is not supported; redraft has default, linear, llama3"):
        families.load_config(tmp_path)


@pytest.mark.parametrize(
    "scaling",
    [None, RopeScaling("linear", 4.0), RopeScaling("llama3", 8.0, original_max_position_embeddings=64)],
)
def test_frequencies_are_the_same_in_numpy_and_torch(scaling: RopeScaling | None) -> None:
    sizes: dict[str, Any] = dict.fromkeys(
        ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), 4
    )
    config = DenoiserConfig(**sizes, num_key_value_heads=4, head_dim=64, rope_scaling=scaling)
    exponents = np.arange(0, 64, 2, dtype=np.float32) / np.float32(64)
    array, tensor = frequencies(exponents, config), frequencies(torch.from_numpy(exponents), config)
    assert array.dtype == np.float32
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(array, tensor.numpy(), rtol=3e-7)


@pytest.mark.parametrize("first_step", [False, True])
def test_self_conditioning_equals_diffusion_gemma(first_step: bool) -> None:
    other = DiffusionGemmaSelfConditioning(
        DiffusionGemmaTextConfig(hidden_size=32, intermediate_size=48, rms_norm_eps=1e-5)
    )
    sizes = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    ours = SelfConditioning(DenoiserConfig(**sizes, num_attention_heads=4, num_key_value_heads=4, head_dim=8))
    randomise(other, 0)
    ours.load_state_dict(other.state_dict())
    generator = torch.Generator().manual_seed(3)
    embedding, soft = torch.randn(2, 2, 5, 32, generator=generator)
    soft = torch.zeros_like(soft) if first_step else soft
    torch.testing.assert_close(ours(embedding, soft), other(embedding, soft), atol=1e-5, rtol=1e-5)
