"""Each family's checkpoint as it is published: config, tensor names, special tokens; and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM

import redraft
from redraft.denoiser import checkpoint, families
from redraft.errors import RequestError
from tests.denoiser.networks import (
    VOCAB,
    clean_rows,
    edit_config,
    mask_of,
    our_logits,
    partner,
    partner_logits,
    tiny,
    tokens,
)

MASK = VOCAB - 3


def write_tokenizer(folder: Path, **added: int) -> None:
    """tokenizer.json with these added tokens, by text."""
    entries = [{"id": token, "content": text, "special": True} for text, token in added.items()]
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": entries, "model": {}})
    )


def check_logits(folder: Path, other: Any, attention: str, block_length: int = 4, **overrides: Any) -> None:
    """Loaded from `folder`, our logits under this layout equal the partner's."""
    ours = families.load(folder, **overrides)
    assert ours.config.layout == attention
    assert not ours.config.canvas_rows_marked
    rows = clean_rows(attention, 10, block_length)
    ids = tokens(2, 10)
    got = our_logits(ours, ids, rows.position, mask_of(rows))
    want = partner_logits(other, ids, rows.position, mask_of(rows))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_autoregressive_bases(family: str, tmp_path: Path) -> None:
    other = partner(family)
    other.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2]}))
    config = families.load_config(tmp_path)
    assert config.eos_token_ids == (2, 5)
    assert config.mask_token_id is None
    assert not config.shift
    assert config.model_type == "redraft"
    check_logits(tmp_path, other, "causal_context")


def test_sharded_base_in_bf16(tmp_path: Path) -> None:
    partner("qwen3").to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    other = Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert (tmp_path / checkpoint.INDEX).exists()
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    check_logits(tmp_path, other, "causal_context")
    assert families.load(tmp_path, torch.bfloat16).lm_head.weight.dtype == torch.bfloat16


LLADA_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}


def write_llada(folder: Path, other: Any, **changes: Any) -> None:
    """A Llama as LLaDA-8B publishes it."""
    out = {
        "model.transformer.wte.weight": other.model.embed_tokens.weight,
        "model.transformer.ln_f.weight": other.model.norm.weight,
        "model.transformer.ff_out.weight": other.lm_head.weight,
    }
    for i, layer in enumerate(other.model.layers):
        for name, weight in layer.named_parameters():
            out[f"model.transformer.blocks.{i}.{LLADA_BLOCK[name.removesuffix('.weight')]}.weight"] = weight
    save_file({k: v.detach().contiguous() for k, v in out.items()}, folder / "model.safetensors")
    config = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "block_type": "llama",
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "attention_layer_norm": False,
        "alibi": False,
        "rope": True,
        "include_bias": False,
        "include_qkv_bias": False,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 4,
        "mlp_hidden_size": 48,
        "vocab_size": VOCAB,
        "embedding_size": VOCAB,
        "max_sequence_length": 128,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "weight_tying": False,
        "eos_token_id": 2,
        "mask_token_id": MASK,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))


def llada_partner() -> Any:
    return partner("llama", num_key_value_heads=4, rope_theta=5e5, rms_norm_eps=1e-5)


def test_llada(tmp_path: Path) -> None:
    other = llada_partner()
    write_llada(tmp_path, other)
    write_tokenizer(tmp_path, **{"<|eot_id|>": 7, "<|mdm_mask|>": 9})
    config = families.load_config(tmp_path)
    assert config.mask_token_id == MASK  # config.json goes before the tokenizer
    assert config.eos_token_ids == (2, 7)
    assert not config.shift
    check_logits(tmp_path, other, "full")


def test_llada_mask_from_the_tokenizer_or_an_error(tmp_path: Path) -> None:
    write_llada(tmp_path, llada_partner(), mask_token_id=None)
    with pytest.raises(RequestError, match="don't tell its mask_token_id: give mask_token_id"):
        families.load_config(tmp_path)
    assert families.load_config(tmp_path, mask_token_id=8).mask_token_id == 8
    write_tokenizer(tmp_path, **{"<|mdm_mask|>": 9, "<|unmasked|>": 10})
    assert families.load_config(tmp_path).mask_token_id == 9
    write_tokenizer(tmp_path, **{"<|mdm_mask|>": 9, "[MASK]": 10})
    with pytest.raises(RequestError, match=r"2 mask tokens \[9, 10\]: set mask_token_id"):
        families.load_config(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": {"content": "[MASK]"}}))
    assert families.load_config(tmp_path).mask_token_id == 10


def test_llada_variants_that_are_another_network(tmp_path: Path) -> None:
    for change in ({"attention_layer_norm": True}, {"block_type": "sequential"}, {"include_qkv_bias": True}):
        write_llada(tmp_path, llada_partner(), **change)
        with pytest.raises(RequestError, match=f"{next(iter(change))} = .* is not supported"):
            families.load_config(tmp_path)


def test_llada_with_a_tensor_of_another_network(tmp_path: Path) -> None:
    write_llada(tmp_path, llada_partner())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.transformer.blocks.0.q_norm.weight"] = torch.ones(8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RequestError, match="holds model.transformer.blocks.0.q_norm.weight"):
        families.load(tmp_path)


def test_dream(tmp_path: Path) -> None:
    other = partner("qwen2", rope_theta=1e6)
    other.save_pretrained(tmp_path)
    edit_config(
        tmp_path,
        architectures=["DreamModel"],
        model_type="Dream",
        mask_token_id=MASK,
        rope_parameters=None,
        rope_theta=1e6,
    )
    write_tokenizer(tmp_path, **{"<|im_end|>": 6})
    config = families.load_config(tmp_path)
    assert config.shift
    assert config.attention_bias
    assert config.mask_token_id == MASK
    assert config.eos_token_ids == (2, 6)
    check_logits(tmp_path, other, "full")


def test_sdar(tmp_path: Path) -> None:
    other = partner("qwen3", rope_theta=1e6)
    other.save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["SDARForCausalLM"], model_type="sdar", block_size=4)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|MASK|>": MASK}))
    config = families.load_config(tmp_path)
    assert config.qk_norm
    assert not config.shift
    assert (config.mask_token_id, config.canvas_length) == (MASK, 4)
    check_logits(tmp_path, other, "block_causal")
    edit_config(tmp_path, block_size=None)
    with pytest.raises(RequestError, match="don't tell its canvas_length: give canvas_length"):
        families.load_config(tmp_path)
    check_logits(tmp_path, other, "block_causal", block_length=2, canvas_length=2)


def test_fast_dllm(tmp_path: Path) -> None:
    other = partner("qwen2", tie_word_embeddings=True)
    other.save_pretrained(tmp_path)
    names = {"architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen"}
    edit_config(tmp_path, **names, bd_size=32)
    decoder = {"added_tokens_decoder": {str(MASK): {"content": "|<MASK>|"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(decoder))
    config = families.load_config(tmp_path)
    assert config.shift
    assert (config.mask_token_id, config.canvas_length) == (MASK, 32)
    check_logits(tmp_path, other, "block_causal", block_length=32)


@pytest.mark.parametrize(
    ("base", "architecture"),
    [("llama", "A2DLlamaLMHeadModel"), ("qwen2", "A2DQwen2LMHeadModel"), ("qwen3", "A2DQwen3LMHeadModel")],
)
def test_tiny_a2d(base: str, architecture: str, tmp_path: Path) -> None:
    other = partner(base, tie_word_embeddings=True)
    other.save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=[architecture], model_type=f"a2d-{base}")
    write_tokenizer(tmp_path, **{"<|mask|>": MASK})
    assert families.load_config(tmp_path).mask_token_id == MASK
    check_logits(tmp_path, other, "full")
    check_logits(tmp_path, other, "block_causal", layout="block_causal")


def test_a_diffusion_model_saved_as_its_base_is_told_so(tmp_path: Path) -> None:
    """Open-dCoder's config.json says Qwen2; only the caller knows more."""
    other = partner("qwen2")
    other.save_pretrained(tmp_path)
    write_tokenizer(tmp_path, **{"[MASK]": MASK})
    config = families.load_config(tmp_path, layout="full", shift=True)
    assert config.shift
    assert config.mask_token_id == MASK
    check_logits(tmp_path, other, "full", layout="full", shift=True)


def test_old_llama_files_hold_computed_frequencies(tmp_path: Path) -> None:
    other = partner("llama")
    other.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors")
    check_logits(tmp_path, other, "causal_context")


def test_our_own_and_what_was_loaded_and_saved_again(tmp_path: Path) -> None:
    model = tiny()
    checkpoint.save(model, tmp_path / "ours")
    again = families.load(tmp_path / "ours")
    assert again.config == model.config
    rows = clean_rows("causal_context", 9, 4)
    ids = tokens(1, 9)
    want = our_logits(model, ids, rows.position, mask_of(rows))
    assert torch.equal(our_logits(again, ids, rows.position, mask_of(rows)), want)
    write_llada(tmp_path, llada_partner())
    first = families.load(tmp_path)
    checkpoint.save(first, tmp_path / "converted")
    second = families.load(tmp_path / "converted")
    assert second.config == first.config
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"architectures": ["LLaDAMoEModelLM"], "model_type": "llada", "num_experts": 64},
            "LLaDAMoEModelLM with model_type 'llada' (mixture of experts)",
        ),
        (
            {"architectures": ["LLaDA2MoeModelLM"], "model_type": "llada2_moe", "num_experts": 256},
            "LLaDA2MoeModelLM with model_type 'llada2_moe' (mixture of experts)",
        ),
        (
            {
                "architectures": ["DiffusionGemmaForBlockDiffusion"],
                "model_type": "diffusion_gemma",
                "text_config": {"num_experts": 8},
            },
            "DiffusionGemmaForBlockDiffusion with model_type 'diffusion_gemma' (mixture of experts)",
        ),
        (
            {"architectures": ["LlamaForCausalLM"], "model_type": "qwen2"},
            "LlamaForCausalLM with model_type 'qwen2'",
        ),
        (
            {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"},
            "GPT2LMHeadModel with model_type 'gpt2'",
        ),
        ({"model_type": "llada"}, "a network with model_type 'llada'"),
    ],
)
def test_other_networks_are_refused_in_one_line(config: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError) as error:
        families.load(tmp_path)
    message = str(error.value)
    assert f"{told} is not supported; redraft reads its own models and " in message
    assert "\n" not in message
    for name in ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "LLaDAModelLM", "DreamModel"):
        assert name in message.split("redraft reads")[1]


def test_a_config_of_nothing_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RequestError, match="names neither model_type nor architectures"):
        families.load(tmp_path)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"attention_bias": True}, "attention_bias = True is not supported; only False is"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True is not supported"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; only 'silu' is"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config = a value is not supported"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window = True is not supported"),
        ("qwen3", {"num_hidden_layers": None}, "config.json lacks num_hidden_layers"),
        ("qwen3", {"num_attention_heads": "four"}, "num_attention_heads must be a positive whole number"),
        ("qwen3", {"eos_token_id": 1000}, "eos token 1000 lies outside the vocabulary"),
    ],
)
def test_variants_of_a_base_that_redraft_does_not_have(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    partner(family).save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(RequestError, match=message):
        families.load_config(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"added_tokens": [{"id": 3}]}', '{"added_tokens": {"a": 1}}'])
def test_a_broken_tokenizer_file_is_named(text: str, tmp_path: Path) -> None:
    partner("llama").save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(RequestError, match="token"):
        families.load_config(tmp_path)


def test_names_are_unique_and_a_config_needs_no_torch(tmp_path: Path) -> None:
    networks = [network for family in families.FAMILIES for network in family.networks]
    assert len(set(networks)) == len(networks)
    partner("qwen3").save_pretrained(tmp_path)
    code = (
        "import sys; from redraft.denoiser import families; "
        f"families.load_config({str(tmp_path)!r}); sys.exit('torch' in sys.modules)"
    )
    source = str(Path(redraft.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}, check=False)
    assert done.returncode == 0
