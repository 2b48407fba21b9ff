"""Reading safetensors without torch, and what becomes of the weights."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file

from redraft.denoiser import checkpoint
from redraft.denoiser.shards import read_tensors, widen
from redraft.engine.backend import Pass
from redraft.engine.backends.onnx_backend import OnnxBackend, choose_precision
from redraft.engine.backends.onnx_processor import integer_max, multiplies_blocks
from redraft.engine.backends.onnx_weights import INTEGER_MAX, quantize
from redraft.errors import RequestError
from tests.engine.onnx_models import denoiser, reference, tokens


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_float_type_reads_as_torch_reads_it(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 5).to(dtype)
    save_file({"odd": torch.zeros(3, dtype=torch.uint8), "x": tensor}, tmp_path / "model.safetensors")
    tensors = read_tensors(tmp_path)
    assert sorted(tensors) == ["odd", "x"]
    assert tensors["x"].dtype == np.float32
    assert np.array_equal(tensors["x"], tensor.float().numpy())
    with pytest.raises(RequestError, match="odd is U8"):
        tensors["odd"]


@given(st.integers(0, 2**16 - 1))
def test_widening_is_torchs(bits: int) -> None:
    raw = np.array([bits], np.uint16)
    truth = torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.array_equal(widen(raw).view(np.uint32), truth.view(np.uint32))


def test_shards(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert sorted(read_tensors(tmp_path)) == ["a", "b"]
    index["weight_map"]["c"] = "two.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RequestError, match="lists c, which no shard holds"):
        read_tensors(tmp_path)
    index["weight_map"]["b"] = "../two.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RequestError, match="outside the folder"):
        read_tensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(RequestError, match=re.escape("index.json can't be read")):
        read_tensors(tmp_path)


@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    file = folder / "model.safetensors"
    save_file({"x": torch.randn(40), "y": torch.randn(3)}, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(RequestError, match="truncated"):
        read_tensors(folder)


@pytest.mark.parametrize(
    "header",
    [b"[]", b"{", b'{"x": 3}', b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}', b"\xff"],
)
def test_a_nonsense_header_is_refused(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(RequestError, match="not a safetensors file"):
        read_tensors(tmp_path)


def test_bytes_that_dont_fit_the_shape(tmp_path: Path) -> None:
    header = b'{"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(RequestError, match="x has 8 bytes"):
        read_tensors(tmp_path)["x"]


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no model.safetensors"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "blocks", "int8"])
def test_weights_of_another_model(tmp_path: Path, precision: str) -> None:
    checkpoint.save(denoiser(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"qk_norm": True}, "lacks 'model.layers.0.self_attn.q_norm.weight'"),
        ({"intermediate_size": 40}, "gate_up"),
        ({"num_key_value_heads": 4}, "qkv"),
        ({"vocab_size": 60}, "embed_tokens"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(RequestError, match=message):
            OnnxBackend.load(tmp_path, precision)


@given(
    hnp.arrays(np.float32, (4, 6), elements=st.floats(-1e3, 1e3, width=32)),
    st.sampled_from([INTEGER_MAX, 127]),
)
def test_quantized_weights(weight: np.ndarray, largest: int) -> None:
    integers, scale = quantize(weight, largest)
    assert integers.shape == (6, 4)
    assert integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max() <= largest
    assert (np.abs(integers.T * scale[:, None] - weight) <= scale[:, None] * 0.501 + 1e-30).all()
    assert 2 * 255 * INTEGER_MAX < 2**15  # what one AVX2 instruction adds up in 16 bits


def test_the_processors_products_are_right_up_to_the_largest_integer() -> None:
    """A matrix of the largest weights there are, against the sum in exact arithmetic."""
    largest = integer_max()
    assert largest in (INTEGER_MAX, 127)
    model = denoiser(tie_word_embeddings=False)
    tensors = {k: v.numpy().copy() for k, v in checkpoint.state_dict(model).items()}
    name = "model.layers.0.mlp.gate_proj.weight"
    tensors[name][:] = np.sign(tensors[name]) * 0.5
    truth = OnnxBackend(model.config, tensors, "fp32", 1)
    rows = [Pass(truth.new_context(8), np.array([7, 8, 3]), "all")]
    due = truth.forward(rows)[0].encode
    got = OnnxBackend(model.config, tensors, "int8", 1)
    found = got.forward([Pass(got.new_context(8), np.array([7, 8, 3]), "all")])[0].encode
    assert np.abs(found - due).max() < 0.1 * np.abs(due).max()


def test_a_row_of_zeros_stays_zero() -> None:
    """Quantizing divides by the row's largest entry; rows without one must not turn into NaN."""
    model = denoiser()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = 0
        model.model.canvas_embedding.zero_()
    backend = OnnxBackend(
        model.config, {k: v.numpy() for k, v in checkpoint.state_dict(model).items()}, "int8", 1
    )
    got = backend.forward([Pass(backend.new_context(8), np.array([7, 7, 3]), "all")])[0].encode
    truth = reference(model, np.array([7, 7, 3]))
    assert np.isfinite(got).all()
    assert np.abs(got - truth).max() < 0.2 * np.abs(truth).max() + 0.05


def test_other_families_load_by_their_own_names(tmp_path: Path) -> None:
    """LLaDA's, whose every tensor has another name than ours."""
    from redraft.denoiser import families

    whole = {"embed_tokens": "wte", "norm": "ln_f"}
    block = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ff_norm",
        "o_proj": "attn_out",
        "gate_proj": "ff_proj",
        "down_proj": "ff_out",
    }
    model = denoiser(
        layout="full", canvas_rows_marked=False, tie_word_embeddings=False, num_key_value_heads=4
    )
    tensors = {}
    for name, tensor in checkpoint.state_dict(model).items():
        parts = name.split(".")
        if parts[0] == "lm_head":
            tensors["model.transformer.ff_out.weight"] = tensor
        elif parts[1] == "layers":
            tensors[f"model.transformer.blocks.{parts[2]}.{block.get(parts[-2], parts[-2])}.weight"] = tensor
        else:
            tensors[f"model.transformer.{whole[parts[1]]}.weight"] = tensor
    save_file(tensors, tmp_path / "model.safetensors")
    raw = {"architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 32, "mlp_hidden_size": 48}
    raw |= {"n_layers": 2, "n_heads": 4, "vocab_size": 50, "mask_token_id": 48, "weight_tying": False}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    backend = OnnxBackend.load(tmp_path, "fp32", threads=1)
    canvas = tokens(12)
    got = backend.forward([Pass(backend.new_context(16), canvas[:0], canvas=canvas)])[0].canvas
    assert np.abs(got - reference(families.load(tmp_path), canvas[:0], canvas)).max() < 1e-4


def test_precision_follows_size() -> None:
    assert choose_precision(denoiser().config) == "fp32"
    large = denoiser(hidden_size=512, intermediate_size=512, num_hidden_layers=3).config
    assert choose_precision(large) == "int8"
    others = dataclasses.replace(large, canvas_rows_marked=False)  # outliers among activations: see there
    assert choose_precision(others) == ("blocks" if multiplies_blocks() else "fp32")
