"""The loss curves of a run as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def plot_losses(metrics: Path, out: Path, message: Callable[[str], None]) -> None:
    """Writes a PNG of training and held-out losses; where matplotlib isn't installed or the file can't be written, says
    so and goes on: a run doesn't fail for its picture."""
    try:
        import matplotlib
    except ImportError:
        message("no loss plot: pip install 'redraft[train]' for matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure, axis = plt.subplots(figsize=(7, 4), dpi=120)
    for key, label, style in (
        ("canvas_loss", "canvas, training", "-"),
        ("ar_loss", "AR, training", "-"),
        ("ce", "drafts, training", "-"),
        ("fill", "holes, training", "-"),
        ("valid_fill", "holes, held out", "o-"),
        ("valid_nelbo", "NELBO, held out", "o-"),
        ("valid_ar", "AR, held out", "s-"),
    ):
        points = [(r["step"], r[key]) for r in records if key in r]
        if points:
            axis.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
    axis.set_xlabel("step")
    axis.set_ylabel("nats a token")
    axis.legend()
    figure.tight_layout()
    try:
        figure.savefig(out)
    except OSError as error:
        message(f"no loss plot: {out} can't be written: {error.strerror or error}")
    finally:
        plt.close(figure)
