"""8 bits by blocks: a scale for every 64 or 32 neighbours, of weights and of activations, in one node a layer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from redraft.denoiser import checkpoint
from redraft.denoiser.transformer import Denoiser
from redraft.engine.agreement import agreement
from redraft.engine.backend import Pass
from redraft.engine.backends import onnx_backend, onnx_processor
from redraft.engine.backends.onnx_backend import choose_precision
from redraft.engine.backends.onnx_graph import Weight, build_graph
from redraft.engine.backends.onnx_processor import block_product, multiplies_blocks
from redraft.engine.backends.onnx_scale import BLOCKS, block_of
from redraft.engine.backends.onnx_weights import SMALLEST_STEP, in_blocks, prepare
from tests.engine.onnx_models import denoiser, onnx, tokens

MOST = 127
in_eight_bits_here = pytest.mark.skipif(
    not multiplies_blocks(), reason="onnxruntime has no 8-bit product of blocks for this processor"
)


def arrays(model: Denoiser) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in checkpoint.state_dict(model).items()}


@in_eight_bits_here
@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    block=st.sampled_from(BLOCKS),
    blocks=st.integers(1, 4),
    rows=st.integers(1, 17),
    outputs=st.integers(1, 70),
    extreme=st.booleans(),
)
def test_products_are_those_of_exact_integers(
    seed: int, block: int, blocks: int, rows: int, outputs: int, extreme: bool
) -> None:
    """Scales are powers of two and sums at most 4 * 64 * 2 * 255 * 127 of the smallest, below 2^24: nothing is left to
    round."""
    rng = np.random.default_rng(seed)
    shape = (outputs, blocks, block)
    weight = rng.choice([-MOST, MOST], shape) if extreme else rng.integers(-MOST, MOST + 1, shape)
    weight[..., 0] = MOST  # so that a block's step is known
    x = (
        rng.choice([-MOST, MOST], (rows, blocks, block))
        if extreme
        else rng.integers(-MOST, MOST + 1, (rows, *shape[1:]))
    )
    x[..., 0] = -MOST
    step = 2.0 ** (rng.integers(-9, 3, (outputs, 1, 1)) + rng.integers(0, 2, (outputs, blocks, 1)))
    integers, steps = in_blocks((weight * step).reshape(outputs, -1).astype(np.float32), block)
    assert (integers == weight + 128).all()
    assert (steps == step.reshape(-1)).all()
    due = np.einsum("nbk,obk->no", x, weight * step)
    assert (block_product(integers, steps, x.reshape(rows, -1).astype(np.float32)) == due).all()


def saturating(integers: np.ndarray, steps: np.ndarray, x: np.ndarray) -> np.ndarray:
    """As AVX2 without VNNI would, were two products added at once: unsigned weights, 16 bits."""
    pairs = np.rint(x)[:, None].repeat(len(integers), 1) * integers.reshape(len(integers), -1)
    sums = pairs.reshape(*pairs.shape[:2], -1, 2).sum(-1).clip(-(2**15), 2**15 - 1)
    return np.asarray(sums.sum(-1) - 128 * np.rint(x).sum(-1, keepdims=True), np.float32)


def in_float32(integers: np.ndarray, steps: np.ndarray, x: np.ndarray) -> np.ndarray:
    """As onnxruntime does where it has no kernel."""
    return x @ (integers.reshape(len(integers), -1) - np.float32(128)).T


@pytest.mark.parametrize("product", [saturating, in_float32])
def test_a_product_that_is_wrong_or_not_in_eight_bits_is_noticed(
    monkeypatch: pytest.MonkeyPatch, product: object
) -> None:
    monkeypatch.setattr(onnx_processor, "block_product", product)
    assert not multiplies_blocks.__wrapped__()


def test_where_blocks_are_not_multiplied_float32_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    large = denoiser(hidden_size=512, intermediate_size=512, num_hidden_layers=3).config
    others = dataclasses.replace(large, canvas_rows_marked=False)
    for right, due in ((True, "blocks"), (False, "fp32")):
        monkeypatch.setattr(onnx_backend, "multiplies_blocks", lambda right=right: right)
        assert choose_precision(others) == due
        assert choose_precision(large) == "int8"


@given(
    hnp.arrays(np.float32, (3, 128), elements=st.floats(-1e3, 1e3, width=32)),
    st.sampled_from(BLOCKS),
)
def test_weights_in_blocks(weight: np.ndarray, block: int) -> None:
    integers, steps = in_blocks(weight, block)
    assert (integers.dtype, integers.shape) == (np.uint8, (3, 128 // block, block))
    assert (steps.dtype, steps.shape) == (np.float32, (3 * 128 // block,))
    assert integers.min() >= 1  # 128 ± 127
    each = steps.reshape(3, -1, 1).astype(np.float64)
    held = (integers - 128.0) * each
    off = np.abs(held - weight.reshape(integers.shape))
    assert (off <= np.where(each > 0, 0.501 * each, MOST * SMALLEST_STEP)).all()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("rows", [1, 8])
def test_zeros_stay_zeros(block: int, rows: int) -> None:
    """Rows and blocks without a number to set their scale, beside others: exactly 0 where nothing else is added."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(32, 3 * block)).astype(np.float32)
    weight[4] = 0
    weight[:, block : 2 * block] = 0
    weight[5] = 1e-38  # too small for a step of its own
    x = rng.normal(size=(rows, 3 * block)).astype(np.float32)
    made = in_blocks(weight, block)
    y = block_product(*made, x)
    assert (y[:, 4:6] == 0).all()
    assert np.isfinite(y).all()
    assert (np.delete(y, [4, 5], 1) != 0).all()
    x[:, block : 2 * block] *= 1e4  # which only zeros read
    np.testing.assert_array_equal(block_product(*made, x), y)
    x[-1] = 0
    assert (block_product(*made, x)[-1] == 0).all()


def test_what_block_a_row_is_parted_into() -> None:
    assert [block_of(inputs) for inputs in (576, 1536, 96, 32, 48, 8)] == [64, 64, 32, 32, None, None]
    config = denoiser(hidden_size=96, num_attention_heads=8, intermediate_size=48).config
    weights = {w.name: w for w in build_graph(config, "blocks").weights}
    layer, wide = "model.layers.0", (8 + 2 * 2) * 8
    assert weights[f"{layer}.self_attn.qkv.blocks"] == Weight(
        f"{layer}.self_attn.qkv.blocks", "uint8", (wide, 3, 32)
    )
    assert weights[f"{layer}.self_attn.o_proj.blocks"].shape == (96, 1, 64)
    assert weights["lm_head.steps"] == Weight("lm_head.steps", "float32", (50 * 3,))
    assert weights[f"{layer}.mlp.down_proj.integers"].shape == (48, 96)  # 48 numbers are no blocks


def test_a_weight_is_held_once() -> None:
    model = denoiser(hidden_size=64, intermediate_size=128)
    wanted = build_graph(model.config, "blocks").weights
    held = prepare(model.config, arrays(model), wanted)
    assert set(held) == {w.name for w in wanted}
    assert all(held[w.name].dtype == w.dtype for w in wanted)
    linear = [
        w.name
        for w in wanted
        if "_proj" in w.name or "qkv" in w.name or "gate_up" in w.name or "lm_" in w.name
    ]
    assert {name.rpartition(".")[2] for name in linear} == {"blocks", "steps"}


def test_entries_that_stand_out_are_in_the_way_of_their_block_alone() -> None:
    """The same network with one entry of an input at 60 times its size, and the weights that read it at a sixtieth."""
    model = denoiser(hidden_size=256)
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                norm.weight[5] *= 60
                for reader in readers:
                    reader.weight[:, 5] /= 60
    texts = [tokens(40, seed) for seed in range(3)]
    off = {p: agreement(onnx(model), onnx(model, p), texts).max_difference for p in ("int8", "blocks")}
    assert off["blocks"] < off["int8"] / 1.5


@pytest.mark.parametrize("sizes", [(576, 960), (1536, 576), (96, 5000)])
def test_a_row_is_the_same_in_any_company_on_one_thread_and_on_two(sizes: tuple[int, int]) -> None:
    """What seeds, batches and verified = ar rest on, for every number of rows up to 33."""
    hidden, vocab = sizes
    shape = {"hidden_size": hidden, "intermediate_size": 192, "vocab_size": vocab, "num_hidden_layers": 1}
    model = denoiser(**shape, head_dim=16, canvas_rows_marked=False)
    text = np.random.default_rng(0).integers(0, vocab, 33)
    backends = [onnx(model, "blocks", threads) for threads in (1, 2)]
    contexts = [backend.new_context(40) for backend in backends]
    whole = backends[0].forward([Pass(contexts[0], text, "all")])[0].encode
    for backend, context in zip(backends, contexts, strict=True):
        for count in range(1, 34):
            for start in {0, 33 - count}:
                context.truncate(0)
                if start:
                    backend.forward([Pass(context, text[:start])])
                found = backend.forward([Pass(context, text[start:][:count], "all")])[0].encode
                np.testing.assert_array_equal(found, whole[start:][:count])
        assert backend.exact_rows == 1
