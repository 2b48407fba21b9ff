"""The exported file, opened as any other program would: by its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_package
import onnxruntime
import pytest

from redraft.denoiser import adapters, checkpoint
from redraft.engine.backend import Pass
from redraft.engine.backends.onnx_adapted import AdaptedOnnxBackend
from redraft.engine.backends.onnx_backend import OnnxBackend
from redraft.engine.backends.onnx_export import export
from redraft.engine.backends.onnx_weights import INTEGER_MAX
from redraft.errors import RedraftError, RequestError
from redraft.hub import store
from tests.engine.models import prompt
from tests.engine.onnx_models import OPTIONS, denoiser, tokens
from tests.engine.test_adapted import LATE, SETTINGS, adapted, base, canvas


@pytest.mark.parametrize("precision", ["fp32", "blocks", "int8"])
@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["qwen3"], OPTIONS["untied"]], ids=str)
def test_the_file_is_the_backend(tmp_path: Path, precision: str, options: dict) -> None:
    checkpoint.save(denoiser(**options), tmp_path / "model")
    written = export(tmp_path / "model", tmp_path / "out", precision, [tokens(20)])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [written.graph.name, written.weights.name]
    assert written.size == sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    assert written.agreement is not None
    assert written.agreement.rows == 28
    onnx_package.load(written.graph)  # references resolve

    model = denoiser(**options)
    tensors = {name: tensor.numpy() for name, tensor in checkpoint.state_dict(model).items()}
    backend = OnnxBackend(model.config, tensors, precision, threads=1, largest=INTEGER_MAX)
    calls = [Pass(backend.new_context(32), tokens(9), "all", tokens(8, seed=1))]
    direct = backend.forward(calls)[0]
    calls[0].context.truncate(0)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    backend.attach(onnxruntime.InferenceSession(written.graph, options))
    from_file = backend.forward(calls)[0]
    assert np.array_equal(from_file.encode, direct.encode)
    assert np.array_equal(from_file.canvas, direct.canvas)


@pytest.mark.parametrize("precision", ["fp32", "blocks", "int8"])
@pytest.mark.parametrize("reach", [{}, LATE])
def test_an_adapter_is_exported_with_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, reach: dict[str, Any]
) -> None:
    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path / "home"))
    model = adapted(reach=reach)
    checkpoint.save(base(), store.local_root() / SETTINGS.base)
    folder = tmp_path / "adapter"
    folder.mkdir()
    adapters.save(adapters.adapter_of(model), model.config, folder)
    written = export(folder, tmp_path / "out", precision, [np.array(prompt(20))])
    assert written.agreement is not None
    backend = AdaptedOnnxBackend.load(folder, precision, threads=1, largest=INTEGER_MAX)
    call = Pass(backend.new_context(40), np.array(prompt(9)), "all", canvas())
    direct = backend.forward([call])[0]
    call.context.truncate(0)
    one = onnxruntime.SessionOptions()
    one.intra_op_num_threads = 1
    backend.attach(onnxruntime.InferenceSession(written.graph, one))
    from_file = backend.forward([call])[0]
    assert np.array_equal(from_file.encode, direct.encode)
    assert np.array_equal(from_file.canvas, direct.canvas)


def test_export_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a model directory"):
        export(tmp_path, tmp_path / "out")
    checkpoint.save(denoiser(), tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(RedraftError, match="can't be made"):
        export(tmp_path / "model", tmp_path / "file" / "out")
