"""bench backends on a random network of two layers, and the script for shapes without a checkpoint."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from redraft.api import Model
from redraft.denoiser import checkpoint, families
from redraft.engine.agreement import agreement
from redraft.engine.backend import Pass
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.errors import RequestError
from redraft.evaluation import backends, numbers
from redraft.evaluation.benches import BENCHES, Options, run_bench
from tests.engine.models import network

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "backends.py"


@pytest.fixture(scope="module")
def told(model: Model, folder: Path) -> dict:
    return run_bench("backends", model, Options(folder=folder, quick=True))


def test_every_precision_is_timed_and_compared(told: dict) -> None:
    assert list(told["backends"]) == ["torch", "onnx-fp32", "onnx-blocks", "onnx-int8"]
    assert told["chosen"] == "onnx-fp32"
    torch_alone, fp32 = told["backends"]["torch"], told["backends"]["onnx-fp32"]
    assert "agreement" not in torch_alone
    assert fp32["agreement"]["rows"] > 2 * 24
    assert fp32["agreement"]["argmax_share"] > 0.99
    assert (
        fp32["agreement"]["max_difference"]
        < 1e-3
        < told["backends"]["onnx-int8"]["agreement"]["max_difference"]
    )
    for name in ("onnx-fp32", "onnx-int8"):
        b = told["backends"][name]
        assert 0 < b["canvas_least_ms"] <= b["canvas_median_ms"]
        assert b["canvas_times_torch"] == torch_alone["canvas_median_ms"] / b["canvas_median_ms"]
    json.dumps(told)


def test_it_is_told_to_people_and_drawn(told: dict, tmp_path: Path) -> None:
    report = "\n".join(BENCHES["backends"].lines(told))
    assert "redraft chooses onnx-fp32" in report
    assert "16 slots ms" in report
    block = numbers.value_of("backends", {"backends": told})
    assert block.count("| onnx-") == 3
    BENCHES["backends"].plot(told, tmp_path / "backends.svg")
    assert "<svg" in (tmp_path / "backends.svg").read_text()[:2000]


def test_the_baseline_computes_what_the_backend_does() -> None:
    """Timed is the plain network: its logits behind the context are those of the torch backend."""
    denoiser = network(seed=3)
    settings = backends.Backends(slots=8, context=12)
    seen: list[np.ndarray] = []

    def watched(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(denoiser.lm_head(hidden).numpy())
        return torch.from_numpy(seen[-1])

    denoiser.logits = watched  # type: ignore[method-assign]
    steps = backends.eager_steps(denoiser, settings)
    steps["canvas"]()
    steps["ar"]()
    text, canvas = backends._rows(denoiser.config.vocab_size, settings)
    backend = TorchBackend(denoiser)
    context = backend.new_context(32)
    backend.forward([Pass(context, text)])
    del denoiser.logits
    due = backend.forward([Pass(context, text[:0], canvas=canvas)])[0].canvas
    np.testing.assert_allclose(seen[0][0], due, rtol=1e-4, atol=1e-4)
    due = backend.forward([Pass(context, canvas[:1], "last")])[0].encode
    np.testing.assert_allclose(seen[1][0], due, rtol=1e-4, atol=1e-4)


def test_the_same_network_agrees_with_itself(folder: Path) -> None:
    backend = TorchBackend(families.load(folder))
    found = agreement(backend, backend, [np.arange(6, 40)])
    assert (found.argmax_share, found.max_difference) == (1.0, 0.0)


def test_an_adapter_is_refused(model: Model, tmp_path: Path) -> None:
    checkpoint.save(network(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(RequestError, match="measure its base"):
        backends.backends(model, tmp_path, backends.Dialogues((), "none"), backends.Backends())


def test_the_script_measures_a_shape(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("backends_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setitem(script.SHAPES, "tiny", (50, 32, 48, 2, 4, 2, 8))
    arguments = ["backends.py", "--shape", "tiny", "--rounds", "1", "--threads", "1", "--cpu-time", "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    told = json.loads(capsys.readouterr().out)
    assert told["backends"]["onnx-int8"]["canvas_times_torch"] > 0
    assert "agreement" not in told["backends"]["onnx-int8"]
    assert (told["clock"], told["threads"], told["chosen"]) == ("cpu", 1, "onnx-fp32")
