"""Adapted bases on ONNX Runtime: clean rows the base's own, canvases as the torch backend has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from redraft.denoiser import adapters
from redraft.denoiser.checkpoint import state_dict
from redraft.engine import Request
from redraft.engine.backend import Pass
from redraft.engine.backends.onnx_adapted import AdaptedOnnxBackend
from redraft.engine.backends.onnx_backend import OnnxBackend
from redraft.engine.backends.onnx_graph import Precision
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.sampling import SamplerSettings
from tests.engine.models import EOS, NOTHING, prompt, run
from tests.engine.test_adapted import FAMILIES, SETTINGS, adapted, base, canvas


def on_onnx(precision: Precision = "fp32", **options: Any) -> AdaptedOnnxBackend:
    model = adapted(**options)
    prefix = adapters.PREFIX
    numbers = {
        name.removeprefix(prefix): p.detach().numpy()
        for name, p in adapters.adapter_of(model).named_tensors().items()
    }
    names = {k for k in options if k != "shift"}
    weights = {k: v.numpy() for k, v in state_dict(base(**{k: options[k] for k in names})).items()}
    return AdaptedOnnxBackend.of(model.config, weights, numbers, SETTINGS, precision, threads=1)


@pytest.mark.parametrize("changes", [*FAMILIES, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("shift", [True, False])
def test_canvases_are_as_on_torch(changes: dict[str, Any], shift: bool) -> None:
    ours, theirs = on_onnx(shift=shift, **changes), TorchBackend(adapted(shift=shift, **changes))
    contexts = ours.new_context(64), theirs.new_context(64)
    text, locked = np.array(prompt(15)), np.arange(8) == 2
    for part in (text, NOTHING, text[:3]):  # with the first rows, over a cache, and both
        got, due = (
            backend.forward([Pass(context, part, "all", canvas=canvas(), locked=locked)])[0]
            for backend, context in zip((ours, theirs), contexts, strict=True)
        )
        assert got.canvas is not None
        assert due.canvas is not None
        np.testing.assert_allclose(got.canvas, due.canvas, atol=2e-3)
        np.testing.assert_allclose(got.encode, due.encode, atol=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "mixed", "int8"])
def test_clean_rows_are_the_base_bit_for_bit(precision: Precision) -> None:
    ours = on_onnx(precision)
    weights = {k: v.numpy() for k, v in state_dict(base()).items()}
    theirs = OnnxBackend(base().config, weights, precision, threads=1)
    context, other = ours.new_context(64), theirs.new_context(64)
    text = np.array(prompt(23))
    for part in (text[:11], text[11:13], text[13:]):
        got = ours.forward([Pass(context, part, "all", canvas=canvas())])[0].encode
        np.testing.assert_array_equal(got, theirs.forward([Pass(other, part, "all")])[0].encode)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_verified_gives_the_tokens_of_ar(temperature: float) -> None:
    backend = on_onnx()
    sampler = SamplerSettings(canvas_length=6, max_steps=6, temperature=temperature)
    common = {"prompt": prompt(), "max_tokens": 20, "seed": 2, "sampler": sampler, "eos_ids": (EOS,)}
    ((verified,), (ar,)) = (run([Request(decode=d, **common)], backend) for d in ("verified", "ar"))  # type: ignore[arg-type]
    assert verified.writer is not None
    assert ar.writer is not None
    assert verified.writer.output.tokens == ar.writer.output.tokens


def test_requests_that_share_a_call_get_what_they_get_alone() -> None:
    backend = on_onnx()

    def passes() -> list[Pass]:
        first = Pass(backend.new_context(64), np.array(prompt(9)), "last", canvas=canvas())
        second = Pass(backend.new_context(64), np.array(prompt(5, seed=1)), "all")
        third = Pass(backend.new_context(64), np.array(prompt(7, seed=2)), canvas=canvas(6))
        return [first, second, third]

    together = backend.forward(passes())
    for alone, result in zip([backend.forward([p])[0] for p in passes()], together, strict=True):
        np.testing.assert_array_equal(alone.encode, result.encode)
        if result.canvas is None:
            assert alone.canvas is None
        else:
            np.testing.assert_array_equal(alone.canvas, result.canvas)
