"""Comparing two backends, and a backend with itself."""

from __future__ import annotations

import numpy as np
import pytest

from redraft.engine.agreement import agreement, smallest_exact_rows
from redraft.engine.backend import Pass, PassResult
from redraft.engine.backends.onnx_backend import OnnxBackend
from tests.engine.onnx_models import denoiser, onnx, reference, tokens


class Doubled(OnnxBackend):
    """Passes of fewer than three rows come out a little different, as from a kernel of their own."""

    def forward(self, passes: list[Pass]) -> list[PassResult]:
        results = super().forward(passes)
        few = [len(p.encode) + len(NONE if p.canvas is None else p.canvas) < 3 for p in passes]
        return [
            PassResult(r.encode * (1 + 1e-7 * f) + 1e-6 * f, r.canvas)
            for r, f in zip(results, few, strict=True)
        ]


NONE = np.empty(0, np.int64)


def test_a_backend_agrees_with_itself() -> None:
    backend = onnx(denoiser())
    result = agreement(backend, backend, [tokens(20), tokens(5)])
    assert (result.rows, result.max_difference, result.argmax_share, result.widest_lead) == (
        20 + 5 + 8 + 5,
        0,
        1,
        0,
    )


def test_difference_share_and_lead_are_counted() -> None:
    """Two unlike models without canvases to compare: everything checked against the torch rows themselves."""
    models = [denoiser(seed, mask_token_id=None) for seed in (0, 1)]
    texts = [tokens(20), tokens(7, seed=1)]
    a, b = (np.concatenate([reference(m, t) for t in texts]) for m in models)
    result = agreement(*(onnx(m) for m in models), texts)
    assert result.rows == 27
    assert result.max_difference == pytest.approx(np.abs(a - b).max(), abs=1e-4)
    assert result.argmax_share == pytest.approx((a.argmax(-1) == b.argmax(-1)).mean())
    rows = np.arange(27)
    assert result.widest_lead == pytest.approx((a.max(-1) - a[rows, b.argmax(-1)]).max(), abs=1e-4)
    assert result.argmax_share < 1


def test_int8_agrees_with_fp32() -> None:
    model = denoiser(hidden_size=128, intermediate_size=256)
    result = agreement(onnx(model), onnx(model, "int8"), [tokens(60, seed) for seed in range(5)])
    assert result.rows == 5 * (60 + 8)
    assert result.argmax_share > 0.9
    assert result.widest_lead < 0.25


def test_full_layout_compares_canvases_only() -> None:
    backend = onnx(denoiser(layout="full"))
    assert agreement(backend, backend, [tokens(20)]).rows == 8


def test_exact_rows_are_found() -> None:
    model = denoiser()
    assert smallest_exact_rows(onnx(model)) == 1
    tensors = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    assert OnnxBackend(model.config, tensors, "int8", 1, exact=False).exact_rows == 2
    assert smallest_exact_rows(Doubled(model.config, tensors, "fp32", 1)) == 3
