"""bench gpu without a GPU: everything runs, nothing is recorded."""

from __future__ import annotations

import json
from pathlib import Path

from redraft.api import Model
from redraft.evaluation.benches import BENCHES, Options, run_bench


def test_it_runs_on_a_cpu_where_nothing_is_recorded(model: Model, folder: Path, tmp_path: Path) -> None:
    told = run_bench("gpu", model, Options(folder=folder, quick=True, tokens=4))
    json.dumps(told)
    assert told["backend"] == told["speed"]["backend"] == told["batch"]["backend"] == "torch-static"
    assert told["shapes"] == 0
    assert {step["replay_ms"] for step in told["steps"].values()} == {None}
    assert all(step["engine_ms"] > 0 for step in told["steps"].values())
    assert set(told["batch"]["modes"]["ar"]["sizes"]) == {"1", "2"}
    assert told["speed"]["same_as_ar"] == 1.0
    weights = sum(p.numel() * 4 for p in model.backend.model.parameters())  # type: ignore[attr-defined]
    assert told["memory"]["weight_bytes"] == weights
    report = "\n".join(BENCHES["gpu"].lines(told))
    assert "0 shapes recorded" in report
    assert "16 encoded, canvas of 16" in report
    BENCHES["gpu"].plot(told, tmp_path / "gpu.svg")
    assert "<svg" in (tmp_path / "gpu.svg").read_text()[:2000]
