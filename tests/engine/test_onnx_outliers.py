"""Entries of an input that stand out: found without torch, and kept apart from what is held in 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from redraft.denoiser import checkpoint
from redraft.denoiser.transformer import Denoiser, Visibility
from redraft.engine.agreement import agreement
from redraft.engine.backends import onnx_proto as proto
from redraft.engine.backends.onnx_backend import OnnxBackend
from redraft.engine.backends.onnx_graph import (
    IR_VERSION,
    OPSET,
    OUTLIERS,
    GraphWriter,
    Precision,
    build_graph,
    outlier_count,
)
from redraft.engine.backends.onnx_outliers import largest_inputs, outliers
from redraft.engine.backends.onnx_weights import in_eight_bits
from tests.engine.onnx_models import OPTIONS, denoiser, onnx, tokens


def arrays(model: Denoiser) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in checkpoint.state_dict(model).items()}


def watched(model: Denoiser, text: np.ndarray) -> dict[str, np.ndarray]:
    """The largest magnitudes that torch's own layers see, by the layer's name in the checkpoint."""
    seen: dict[str, np.ndarray] = {}

    def watch(name: str, module: torch.nn.Module) -> None:
        def hook(_: Any, given: tuple[torch.Tensor, ...]) -> None:
            seen[name] = given[0].reshape(-1, given[0].shape[-1]).abs().amax(0).numpy()

        module.register_forward_pre_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            watch(name, module)
    count = len(text)
    causal = torch.ones(count, count, dtype=torch.bool)
    causal = causal if model.config.layout == "full" else causal.tril()
    with torch.no_grad():
        hidden, _ = model(
            torch.from_numpy(text)[None],
            torch.arange(count)[None],
            Visibility(dense=Visibility.additive(causal)[None, None]),
        )
        model.logits(hidden)
    return seen


@pytest.mark.parametrize("name", [n for n in OPTIONS if not n.startswith("self_conditioned")])
def test_inputs_are_those_of_the_network(name: str) -> None:
    model, text = denoiser(**OPTIONS[name]), tokens(13)
    due, found = watched(model, text), largest_inputs(model.config, arrays(model), text)
    assert len(found) == 4 * model.config.num_hidden_layers + 1
    for layer, values in found.items():
        own = {"qkv": "q_proj", "gate_up": "up_proj"}.get(layer.rpartition(".")[2])
        expected = due[f"{layer.rpartition('.')[0]}.{own}" if own else layer]
        np.testing.assert_allclose(values, expected, rtol=2e-4, atol=1e-5, err_msg=layer)


def test_what_was_planted_is_found() -> None:
    model = denoiser()
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[5] = 60
        model.model.norm.weight[9] = -60
        model.model.layers[0].mlp.up_proj.weight[17] *= 60
    found = outliers(model.config, arrays(model), 4)
    assert found["model.layers.1.mlp.gate_up"][0] == 5
    assert found["lm_head"][0] == 9
    assert found["model.layers.0.mlp.down_proj"][0] == 17
    again = outliers(model.config, arrays(model), 4)
    assert all((again[name] == columns).all() for name, columns in found.items())


def test_entries_that_stand_out_are_no_longer_in_the_way() -> None:
    """The same network with one entry of an input at 60 times its size, and the weights that read it at a sixtieth."""
    model = denoiser(hidden_size=64)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm, readers in (
                (
                    layer.input_layernorm,
                    (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                ),
                (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
            ):
                norm.weight[5] *= 60
                for reader in readers:
                    reader.weight[:, 5] /= 60
    texts = [tokens(40, seed) for seed in range(3)]
    off = {p: agreement(onnx(model), onnx(model, p), texts).max_difference for p in ("int8", "mixed")}
    assert off["mixed"] < off["int8"] / 3


def test_parts_add_up_to_the_weight() -> None:
    weight = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
    parts = in_eight_bits(weight, np.array([30, 2]), 127)
    assert parts["columns"].tolist() == [2, 30]
    assert np.flatnonzero(parts["others"] == 0).tolist() == [2, 30]
    assert (parts["outlying"] == weight[:, [2, 30]]).all()
    assert not parts["integers"][[2, 30]].any()
    whole = parts["integers"].T * parts["scale"][:, None]
    whole[:, [2, 30]] += parts["outlying"]
    assert (np.abs(whole - weight) <= 0.501 * parts["scale"][:, None]).all()


def test_mixed_keeps_some_of_an_input_or_has_it_in_sixteen_bits() -> None:
    config = denoiser(hidden_size=512).config
    weights = {w.name: w for w in build_graph(config, "mixed").weights}
    counts = {name: w.shape[0] for name, w in weights.items() if name.endswith(".columns")}
    assert len(counts) == 3 * config.num_hidden_layers + 1
    assert not any("down_proj" in name for name in counts)
    assert counts["lm_head.columns"] == OUTLIERS
    assert counts["model.layers.0.self_attn.o_proj.columns"] == outlier_count(32) == 4
    assert not any(w.name.endswith(".columns") for w in build_graph(config, "int8").weights)


def test_sixteen_bits_are_nearer_than_eight() -> None:
    """Rows with one huge entry each, in places of their own, into a matrix whose weights are integers already: all
    that is left is the rounding of the inputs."""
    model = denoiser(num_hidden_layers=1, intermediate_size=64)
    with torch.no_grad():
        weight = model.model.layers[0].mlp.down_proj.weight
        weight.copy_(torch.randint(-127, 128, weight.shape, generator=torch.Generator().manual_seed(0)) / 127)
        weight[:, 0] = 1
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 8, 64)).astype(np.float32)
    x[0, np.arange(8), rng.integers(0, 64, 8)] *= 300
    due = x[0] @ weight.detach().numpy().T
    off = {p: np.abs(linear_alone(p, weight.detach().numpy(), x) - due).max() for p in ("int8", "mixed")}
    assert off["mixed"] < off["int8"] / 100


def linear_alone(precision: Precision, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[N, outputs] of one layer called down_proj, x [1, N, inputs]."""
    writer = GraphWriter(precision)
    outputs, inputs = weight.shape
    writer.op("Identity", writer.linear("x", "down_proj", inputs, outputs), to="y")
    parts = in_eight_bits(weight, largest=127)
    values = {f"down_proj.{name}": values for name, values in parts.items()}
    constants = [proto.tensor(name, array) for name, array in values.items()]
    graph = proto.model(
        writer.nodes,
        [*constants, *writer.constants.values()],
        [proto.value("x", "float32", [1, "N", inputs]), proto.value("turn", "int64", [1, "N"])],
        [proto.value("y", "float32", [1, "N", outputs])],
        {"": OPSET, "com.microsoft": 1},
        IR_VERSION,
    )
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x, "turn": np.arange(x.shape[1])[None]})
    return np.asarray(y[0])


def test_a_row_depends_on_no_other() -> None:
    model = denoiser(canvas_rows_marked=False, hidden_size=64)
    backend = OnnxBackend(model.config, arrays(model), "mixed", 1)
    assert backend.exact_rows == 1
