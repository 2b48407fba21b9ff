"""Error correction: settled tokens that the model now doubts are overwritten or taken back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from redraft.sampling.noise import REMASK, uniforms

if TYPE_CHECKING:
    from redraft.sampling.canvas import Canvas
    from redraft.sampling.reading import Reading
    from redraft.sampling.settings import SamplerSettings


def edits(canvas: Canvas, reading: Reading) -> np.ndarray | None:
    """bool [C], None without token editing: settled slots whose argmax is another token, with a probability above
    edit_threshold (LLaDA2.1's T2T), and with edit_spread the run of slots around each whose argmax is another token,
    however sure. They take the argmax."""
    limit = canvas.settings.edit_threshold
    if limit is None:
        return None
    editable = canvas.settled & canvas.live & ~canvas.locked
    other = editable & (reading.best != canvas.tokens)
    sure = other & (reading.peak > np.float32(limit))
    if not canvas.settings.edit_spread:
        return sure
    run = np.cumsum(~other)  # one number for each run of slots that differ
    return other & np.isin(run, run[sure])


def undoubted(canvas: Canvas, reading: Reading, last: bool) -> np.ndarray:
    """bool [C]: the settled slots without those whose token has a probability below settings.doubt among all that could
    stand there, as the model sees the whole canvas. Hidden again, such a slot is filled from both sides without its own
    token, which a network that sees it finds likelier than it should. In the last step all stay. (The planner of P2,
    Peng et al. 2025, ranks slots by the same number; here a bound decides.)"""
    limit = canvas.settings.doubt
    if limit is None or last:
        return canvas.settled
    looked = (canvas.settled & canvas.live & ~canvas.locked)[reading.rows]
    if not looked.any():
        return canvas.settled
    rows, bent = reading.rows[looked], reading.bent[looked].astype(np.float64)
    weight = np.exp(bent - bent.max(axis=-1, keepdims=True))
    own = weight[np.arange(len(rows)), canvas.tokens[rows]] / weight.sum(axis=-1)
    kept = canvas.settled.copy()
    kept[rows[own < limit]] = False
    return kept


def _cap(eta: float, most: float, slots: np.ndarray, probability: np.ndarray) -> np.ndarray:
    return np.full(len(slots), min(eta, most))


def _rescale(eta: float, most: float, slots: np.ndarray, probability: np.ndarray) -> np.ndarray:
    return np.full(len(slots), eta * most)


def _conf(eta: float, most: float, slots: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """σ_max shared out by softmax(-p), p the probability a token had when it was accepted: the doubtful go
    first."""
    weight = np.where(slots, np.exp(-probability.astype(np.float64)), 0.0)
    return most * weight / max(weight.sum(), 1e-300)


# ReMDM (Wang et al. 2025): σ of each slot from η, σ_max, the settled slots and their probabilities when
# accepted.
REMASK_SCHEDULES: dict[str, Callable[[float, float, np.ndarray, np.ndarray], np.ndarray]] = {
    "cap": _cap,
    "rescale": _rescale,
    "conf": _conf,
}


def remask_share(
    settings: SamplerSettings, settled: np.ndarray, probability: np.ndarray, alpha_t: float, alpha_s: float
) -> np.ndarray:
    """float64 [C]: σ, the probability with which a settled slot goes back to the mask between times t and s <
    t, at most σ_max = min(1, (1 - α_s)/α_t); 0 without remasking. settled bool [C]: those that may;
    probability: theirs when they were accepted. `conf` gives all others 0, cap and rescale give one σ to
    all."""
    if settings.remask is None:
        return np.zeros(len(settled))
    most = min(1.0, (1.0 - alpha_s) / alpha_t) if alpha_t > 0.0 else 1.0
    return REMASK_SCHEDULES[settings.remask](settings.remask_eta, most, settled, probability)


def taken_back(canvas: Canvas, settled: np.ndarray, share: np.ndarray, clock: int) -> np.ndarray:
    """bool [C]: which of the settled slots go back to the mask in grid step `clock`, each with its share."""
    if canvas.settings.remask is None:
        return np.zeros(len(settled), dtype=bool)
    return settled & (uniforms(canvas.key, canvas.position, len(settled), clock, REMASK) < share)
