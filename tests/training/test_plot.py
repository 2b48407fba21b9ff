"""The picture of a run, which no run fails for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from redraft.errors import RedraftError
from redraft.training import metrics
from redraft.training.plot import plot_losses

RECORDS = [
    {"step": 1, "canvas_loss": 5.0, "ar_loss": 6.0},
    {"step": 2, "canvas_loss": 4.0, "ar_loss": 5.0},
    {"step": 2, "valid_nelbo": 4.5, "valid_ar": 5.5, "samples": ["é"]},
]


def test_the_losses_are_drawn(tmp_path: Path) -> None:
    for record in RECORDS:
        metrics.append(tmp_path, record)
    messages: list[str] = []
    plot_losses(tmp_path / metrics.METRICS, tmp_path / "loss.png", messages.append)
    assert messages == []
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    plot_losses(tmp_path / metrics.METRICS, tmp_path / "no" / "loss.png", messages.append)
    assert len(messages) == 1
    assert "can't be written" in messages[0]


def test_without_matplotlib_a_message_says_how_to_get_it(tmp_path: Path) -> None:
    """In a process of its own, where the import fails."""
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\n"
        "from redraft.training.plot import plot_losses\n"
        f"plot_losses(Path('none'), Path({str(tmp_path / 'loss.png')!r}), print)\n"
    )
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": source}
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'redraft[train]'" in done.stdout
    assert not (tmp_path / "loss.png").exists()


def test_metrics_after_a_step_are_forgotten(tmp_path: Path) -> None:
    for record in RECORDS:
        metrics.append(tmp_path, record)
    with open(tmp_path / metrics.METRICS, "a") as file:
        file.write('{"step": 1, "can')  # the process was killed
    metrics.drop_after(tmp_path, 1)
    lines = (tmp_path / metrics.METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == RECORDS[:1]
    metrics.drop_after(tmp_path / "absent", 1)
    with pytest.raises(RedraftError, match="can't be written"):
        metrics.append(tmp_path / "absent", {"step": 1})
