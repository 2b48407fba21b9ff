"""GGUF files to Hugging Face's layout, on a network of two layers written by the gguf package itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redraft.denoiser import families
from redraft.denoiser.shards import read_tensors
from redraft.engine.backends import load_backend
from redraft.errors import RedraftError, RequestError
from redraft.hub import from_gguf
from redraft.hub.tokenizer import Tokenizer
from tests.hub.gguf_files import HEADS, HIDDEN, KV_HEADS, TEMPLATE, interleaved, tiny_gguf, weights

gguf = pytest.importorskip("gguf", reason="in the extra `gguf`, which make test installs")


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    from_gguf.convert(tiny_gguf(tmp_path / "tiny.gguf"), folder)
    return folder


def test_the_config_is_a_llama_that_redraft_reads(converted: Path) -> None:
    config = families.load_config(converted)
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads) == (
        HIDDEN,
        HEADS,
        KV_HEADS,
    )
    assert (config.rope_theta, config.rms_norm_eps) == (100000.0, 1e-5)
    assert config.tie_word_embeddings
    assert config.eos_token_ids == (2,)
    assert config.autoregressive_only


def test_weights_come_back_in_transformers_order(converted: Path) -> None:
    tensors = read_tensors(converted)
    wanted = weights()
    assert set(tensors) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(tensors[name], values, err_msg=name)


@pytest.mark.parametrize("head_dim", [2, 8])
def test_pairs_to_halves_undoes_what_llama_cpp_does(head_dim: int) -> None:
    rows = np.arange(3 * head_dim * 5, dtype=np.float32).reshape(3 * head_dim, 5)
    assert (from_gguf.halves(interleaved(rows, head_dim), head_dim) == rows).all()
    assert (interleaved(rows, head_dim) != rows).any() == (head_dim > 2)


def test_quantized_weights_are_the_numbers_they_stand_for(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q4_1
    path = tiny_gguf(tmp_path / "q4.gguf", kind)
    folder = tmp_path / "model"
    folder.mkdir()
    from_gguf.convert(path, folder)
    name = "model.layers.1.mlp.up_proj.weight"
    values, found = weights()[name], read_tensors(folder)[name]
    np.testing.assert_array_equal(found, gguf.dequantize(gguf.quantize(values, kind), kind))
    assert 0 < np.abs(found - values).max() < 0.1


def test_the_tokenizer_is_rebuilt(converted: Path) -> None:
    tokenizer = Tokenizer.load(converted)
    assert tokenizer.special_ids == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    text = "the 12 thé\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    names = [tokenizer._tokenizer.id_to_token(int(i)) for i in ids]
    assert names[:4] == ["the", "Ġ", "1", "2"]  # merges hold, and digits stand alone
    rendered = tokenizer.render([{"role": "user", "content": "the"}]).tolist()
    assert rendered[0] == 1
    assert rendered.count(2) == 1
    assert json.loads((converted / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE


def test_what_was_converted_runs_on_the_cpu_engine(converted: Path) -> None:
    from redraft.engine.backend import Pass

    backend = load_backend("auto", converted)
    context = backend.new_context(8)
    result = backend.forward([Pass(context, np.array([1, 40, 41]), "all")])[0]
    assert result.encode.shape == (3, backend.config.vocab_size)
    assert np.isfinite(result.encode).all()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


def _garbage(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" * 100)


def test_damage_anywhere_is_told_in_one_line_or_does_no_harm(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    told = whole_ones = 0
    for case in range(36):
        harmed = bytearray(whole)
        if case % 3 == 0:
            del harmed[int(rng.integers(len(whole))) :]
        elif case % 3 == 1:  # a bit of the header
            harmed[int(rng.integers(600))] ^= 1 << int(rng.integers(8))
        else:
            harmed[int(rng.integers(len(whole) // 2))] = 0xBF  # no beginning of a character
        path.write_bytes(harmed)
        (out := tmp_path / str(case)).mkdir()
        try:
            from_gguf.convert(path, out)
        except RedraftError as error:
            told += "\n" not in str(error)
        else:
            whole_ones += 1
    assert told + whole_ones == 36
    assert told >= 12


@pytest.mark.parametrize("harm", [_cut, _garbage, Path.unlink])
def test_a_damaged_file_gets_one_line(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf")
    harm(path)
    with pytest.raises(RequestError) as caught:
        from_gguf.convert(path, tmp_path)
    assert "tiny.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"architecture": "qwen3moe"}, "architecture 'qwen3moe'; redraft reads llama"),
        ({"pre": "tekken"}, "has a gpt2/tekken tokenizer; redraft rebuilds gpt2/gpt-2, gpt2/smollm"),
        ({"leave_out": "blk.1.ffn_up.weight"}, "lacks model.layers.1.mlp.up_proj.weight"),
        ({"leave_out": "token_embd.weight"}, "lacks token_embd.weight"),
        ({"rename": ("blk.0.attn_norm.weight", "blk.0.attn_sinks.weight")}, "holds blk.0.attn_sinks.weight"),
        ({"rope_scaling": "yarn"}, "stretches its rotary positions"),
    ],
)
def test_what_it_cannot_be_is_told(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf", **changes)
    with pytest.raises(RequestError, match=line):
        from_gguf.convert(path, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
