"""Calls of few rows run on one thread and wider ones on all of them, and the bits are the same."""

from __future__ import annotations

import numpy as np
import pytest

from redraft.engine.backend import Pass
from redraft.engine.backends import onnx_backend
from redraft.engine.backends.onnx_rows import Share, visible, write_mask
from tests.engine.onnx_models import denoiser, onnx, tokens

WIDE = {"hidden_size": 192, "intermediate_size": 512, "vocab_size": 1000, "num_hidden_layers": 2}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_row_is_the_same_on_any_number_of_threads(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_backend, "physical_cores", lambda: 2)
    model = denoiser(**WIDE)
    work = onnx_backend.linear_weights(model.config)
    monkeypatch.setattr(onnx_backend, "ONE_THREAD_BELOW", 8 * work)
    backend = onnx(model, precision, threads=0)
    ids = tokens(40)
    context = backend.new_context(64)
    whole = backend.forward([Pass(context, ids, "all")])[0].encode  # 40 rows: on two threads
    assert {kind.threads for kind in backend._runners} == {1, 2}
    context.truncate(0)
    parts = [
        backend.forward([Pass(context, ids[at : at + n], "all")])[0].encode
        for at, n in ((0, 1), (1, 2), (3, 5), (8, 8), (16, 9), (25, 15))  # up to 8 rows: on one
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_few_rows_of_many_requests_run_on_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_backend, "physical_cores", lambda: 2)
    backend = onnx(denoiser(**WIDE), threads=0)
    alone = backend.new_context(64)
    backend.forward([Pass(alone, tokens(20))])
    one = backend.forward([Pass(alone, tokens(1), "last")])[0].encode
    assert {kind.threads for kind in backend._runners} == {1}
    contexts = [backend.new_context(64) for _ in range(onnx_backend.FEW_LANES + 1)]
    for context in contexts:
        backend.forward([Pass(context, tokens(20))])
    together = backend.forward([Pass(context, tokens(1), "last") for context in contexts])
    assert {kind.threads for kind in backend._runners} == {1, 2}
    assert all(np.array_equal(result.encode, one) for result in together)


def test_a_given_number_of_threads_holds_for_every_call() -> None:
    backend = onnx(denoiser(), threads=2)
    context = backend.new_context(64)
    for rows in (1, 40):
        backend.forward([Pass(context, tokens(rows))])
    assert set(backend._runners) == {(2, 1, False)}


@pytest.mark.parametrize("encode", [0, 1, 5, 16, 17])
@pytest.mark.parametrize(("canvas", "branches"), [(0, ()), (1, ()), (4, ()), (4, (1, 3)), (6, (1, 2, 4))])
def test_a_mask_written_row_by_row_is_the_layouts(
    encode: int, canvas: int, branches: tuple[int, ...]
) -> None:
    config = denoiser().config
    share = Share(1, encode, canvas, 7, branches if max(branches, default=0) <= encode else ())
    mask = np.full((3, 1, max(2, share.rows), 48), np.nan, np.float32)
    write_mask(config, (share,), mask)
    assert np.array_equal(mask[1, 0, : share.rows] == 0, visible(config, share, 48))
    assert (mask[[0, 2]] == 0).all()
