"""The AR self as a GGUF file: what is written is read back by our own reader, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redraft.denoiser import checkpoint, families
from redraft.denoiser.shards import read_tensors
from redraft.errors import RedraftError, RequestError
from redraft.hub import from_gguf, to_gguf
from redraft.hub.tokenizer import Tokenizer
from tests.cli.models import write_network
from tests.engine.models import network
from tests.hub.conftest import TEMPLATE
from tests.hub.gguf_files import interleaved, tiny_gguf

gguf = pytest.importorskip("gguf", reason="in the extra `gguf`, which make test installs")

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, untied": {"tie_word_embeddings": False},
    "qwen2": {"attention_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 16},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ar_self_comes_back(tmp_path: Path, family: str) -> None:
    folder, back = write_network(tmp_path / "mine", **FAMILIES[family]), tmp_path / "back"
    told = to_gguf.export(folder, tmp_path / "mine.gguf")
    assert told.max_difference == 0
    assert told.size == (tmp_path / "mine.gguf").stat().st_size
    back.mkdir()
    from_gguf.convert(tmp_path / "mine.gguf", back)
    due, found = read_tensors(folder), read_tensors(back)
    assert set(due) - set(found) == {"model.canvas_embedding", "model.locked_embedding"}
    assert told.tensors == len(found)
    for name in found:
        np.testing.assert_array_equal(found[name], due[name], err_msg=name)
    config, read = families.load_config(folder), families.load_config(back)
    for field in ("vocab_size", "head_dim", "num_key_value_heads", "rope_theta", "rms_norm_eps", "qk_norm"):
        assert getattr(read, field) == getattr(config, field), field
    assert (read.attention_bias, read.tie_word_embeddings) == (
        config.attention_bias,
        config.tie_word_embeddings,
    )


def test_tokenizer_and_template_come_back(tmp_path: Path) -> None:
    folder, back = write_network(tmp_path / "mine", vocab_size=330), tmp_path / "back"
    to_gguf.export(folder, tmp_path / "mine.gguf")
    back.mkdir()
    from_gguf.convert(tmp_path / "mine.gguf", back)
    ours, theirs = Tokenizer.load(folder), Tokenizer.load(back)
    for text in ("the table is booked", "Zürich — 谢谢\n\n it's 12'S", ""):
        assert theirs.encode(text).tolist() == ours.encode(text).tolist()
    assert theirs.special_ids == ours.special_ids
    told = json.loads((back / "tokenizer_config.json").read_text())
    assert (told["chat_template"], told["eos_token"]) == (TEMPLATE, "<|eos|>")
    file = from_gguf.Gguf(tmp_path / "mine.gguf")
    assert len(file.get("tokenizer.ggml.tokens")) == 330
    spare = 330 - ours.vocab_size
    assert file.get("tokenizer.ggml.token_type")[-spare:] == [to_gguf.UNUSED] * spare
    assert file.get("tokenizer.ggml.eot_token_id") == ours.special_ids["<|user|>"]


def test_what_came_from_a_gguf_file_goes_back_into_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    first = from_gguf.Gguf(tiny_gguf(tmp_path / "tiny.gguf"))
    from_gguf.convert(first.path, folder)
    to_gguf.export(folder, tmp_path / "again.gguf", name="tiny")
    again = from_gguf.Gguf(tmp_path / "again.gguf")
    assert set(again.tensors) == set(first.tensors)
    for name in first.tensors:
        np.testing.assert_array_equal(again.values(name), first.values(name), err_msg=name)
    for key in ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id"):
        assert again.get(f"tokenizer.ggml.{key}") == first.get(f"tokenizer.ggml.{key}"), key
    assert again.get("tokenizer.chat_template") == first.get("tokenizer.chat_template")


@pytest.mark.parametrize("head_dim", [2, 8])
def test_halves_to_pairs_is_what_llama_cpp_does(head_dim: int) -> None:
    rows = np.arange(3 * head_dim * 5, dtype=np.float32).reshape(3 * head_dim, 5)
    assert (to_gguf.pairs(rows, head_dim) == interleaved(rows, head_dim)).all()
    assert (from_gguf.halves(to_gguf.pairs(rows, head_dim), head_dim) == rows).all()


def test_eight_bits_are_off_by_half_a_step(tmp_path: Path) -> None:
    folder = write_network(tmp_path / "mine", intermediate_size=64)
    told = to_gguf.export(folder, tmp_path / "mine.gguf", "int8")
    values = read_tensors(folder)["model.layers.0.mlp.up_proj.weight"]
    found = from_gguf.Gguf(tmp_path / "mine.gguf").values("blk.0.ffn_up.weight")
    blocks, off = values.reshape(-1, to_gguf.BLOCK), np.abs(found - values).reshape(-1, to_gguf.BLOCK)
    largest = np.abs(blocks).max(1)
    assert (off.max(1) <= largest / 127 * 0.5 + largest * 2e-3).all()  # the scale itself is a float16
    assert 0 < told.max_difference < 0.05
    assert told.size < (to_gguf.export(folder, tmp_path / "wide.gguf")).size


def test_the_shipped_models_cutting_has_a_name(shipped: Path) -> None:
    definition = json.loads((shipped / "tokenizer.json").read_text())
    assert to_gguf.cutting_of(definition["pre_tokenizer"]) == "qwen2"


@pytest.fixture
def shipped() -> Path:
    from redraft.hub.store import resolve

    return resolve("redraft-tiny").path


def test_the_two_cuttings_differ_in_one_thing_alone() -> None:
    from tokenizers import Regex, pre_tokenizers

    def pieces(pattern: str, text: str) -> list[str]:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        return [piece for piece, _ in split.pre_tokenize_str(text)]

    same = ["it's what they'd say", "IT'S 1234", "a\n\n b  c", "x'll've 'T", "— 谢谢, Zürich's"]
    for text in same:
        assert pieces(to_gguf.OUR_PIECES, text) == pieces(from_gguf.QWEN_PIECES, text)
    assert pieces(to_gguf.OUR_PIECES, "'SO") == ["'SO"]
    assert pieces(from_gguf.QWEN_PIECES, "'SO") == ["'S", "O"]


@pytest.mark.parametrize(
    "pre",
    [
        {},
        {"type": "Whitespace"},
        {"type": "ByteLevel", "add_prefix_space": True},
        {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "ByteLevel"}]},
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated"},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
    ],
)
def test_other_cuttings_have_none(pre: dict[str, Any], tmp_path: Path) -> None:
    assert to_gguf.cutting_of(pre) is None
    folder = write_network(tmp_path / "mine")
    definition = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(definition | {"pre_tokenizer": pre}))
    with pytest.raises(RequestError, match="no byte-level BPE that llama.cpp has a name for"):
        to_gguf.export(folder, tmp_path / "mine.gguf")


def test_what_has_no_twin_is_not_written(tmp_path: Path) -> None:
    folder = write_network(tmp_path / "mine", layout="full", canvas_rows_marked=False)
    with pytest.raises(RequestError, match="layout full has no autoregressive counterpart"):
        to_gguf.export(folder, tmp_path / "mine.gguf")
    folder = write_network(tmp_path / "other")
    checkpoint.save(network(num_hidden_layers=1), folder)  # other weights, and a vocabulary of fewer tokens
    with pytest.raises(RequestError, match="more tokens than the network"):
        to_gguf.export(folder, tmp_path / "mine.gguf")
    assert not list(tmp_path.glob("*.gguf"))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    folder = write_network(tmp_path / "mine")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RedraftError, match="could not be written"):
        to_gguf.export(folder, tmp_path / "file" / "mine.gguf")
