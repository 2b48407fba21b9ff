"""benchmarks/training.py measures what it says, on a corpus of its own where none is prepared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_benchmark_reports_consistent_numbers(tmp_path: Path) -> None:
    sizes = ["hidden_size=16", "intermediate_size=32", "num_hidden_layers=2", "num_attention_heads=1"]
    overrides = [f"model.{s}" for s in (*sizes, "num_key_value_heads=1", "head_dim=16")]
    overrides += ["train.batch_rows=2", "train.row_length=64", "prepare.vocab_size=320", "train.device=cpu"]
    flags = [f for o in overrides for f in ("--set", o)]
    benchmark, recipe = ROOT / "benchmarks" / "training.py", ROOT / "recipes" / "tiny.yaml"
    done = subprocess.run(
        [sys.executable, benchmark, "--recipe", recipe, *flags, "--steps", "2", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert 0 < report["tokens_per_second"] * report["step_ms"] / 1000 <= 2 * 64 * 1.001
    parts = report["parts_ms"]
    assert set(parts) == {"average", "backward", "batch", "forward", "optimizer"}
    assert sum(parts.values()) <= report["step_ms"] * 1.001
    inside = parts["forward"] + parts["backward"] + parts["optimizer"]
    assert abs(report["overhead"] - (1 - inside / report["step_ms"])) < 1e-6
    assert abs(report["share"] - report["gflops"] / report["gemm_gflops"]) < 1e-9
    assert report["peak_memory_mib"] > 50
    # Every clean token goes through both layers' matrices, forward and (twice the work) backward.
    weights = 2 * (4 * 16 * 16 + 3 * 16 * 32)
    assert report["gflop_per_step"] * 1e9 > 6 * weights * 2 * 64
