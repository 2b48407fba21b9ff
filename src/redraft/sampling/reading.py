"""What one network evaluation says about each slot of a canvas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from redraft.errors import RedraftError
from redraft.sampling.noise import gumbel
from redraft.sampling.warp import bend, sharpen

if TYPE_CHECKING:
    from redraft.sampling.canvas import Canvas

_FLOOR = np.float32(-1e4)  # exp() of it is 0, and 0 * it is 0, where -inf would make NaN


@dataclass(frozen=True, eq=False)
class Reading:
    """rows int64 [k]: the slots that were read; bent [k, V]: their logits after bias, penalties and bans;
    temperature: this step's. choice (the token that would be accepted: the argmax, or a draw) and best (the
    argmax) int64 [C]; probability of the choice, peak probability of the argmax, and entropy in nats, float32
    [C]. Slots that were not read keep their token and their last numbers."""

    rows: np.ndarray
    bent: np.ndarray
    temperature: float
    choice: np.ndarray
    best: np.ndarray
    probability: np.ndarray
    peak: np.ndarray
    entropy: np.ndarray


def wanted(canvas: Canvas) -> np.ndarray:
    """int64 [k]: the slots whose logits the next `advance` reads. Others need not be computed."""
    read = canvas.open if canvas.settings.edit_threshold is None else canvas.live & ~canvas.locked
    return np.flatnonzero(read) if not canvas.finished else np.zeros(0, dtype=np.int64)


def read(canvas: Canvas, logits: np.ndarray, allowed: np.ndarray | None = None) -> Reading:
    """Reads float32 logits [C, V], or [k, V] for the slots `wanted` names (allowed, bool [V] or one row a
    slot of the canvas). Confidence and entropy are those of the distribution before temperature and
    truncation (LLaDA), or they would be 1 and 0 at low temperature whatever the model thinks; the entropy
    bound takes them at the temperature (DiffusionGemma). Raises RedraftError for a wrong shape or for logits
    that are not numbers."""
    rows = wanted(canvas)
    logits = _rows_of(canvas, logits, rows)
    bent = _bend(canvas, logits, rows, allowed)
    settings = canvas.settings
    temperature = settings.temperature_at(canvas.step)
    scaled = (
        bent / np.float32(temperature) if settings.accept == "entropy_bound" and temperature > 0 else bent
    )
    top = scaled.argmax(axis=-1)
    span = np.arange(len(rows))
    highest = scaled[span, top]
    if not np.isfinite(highest).all():
        raise RedraftError("the network returned logits that are not finite numbers")
    shifted = np.maximum(scaled - highest[:, None], _FLOOR)
    weight = np.exp(shifted)
    total = weight.sum(axis=-1)
    # of the whole distribution, not of the drawn token's probability alone
    entropy = np.maximum(np.log(total) - np.einsum("kv,kv->k", weight, shifted) / total, 0.0)

    drawn, fresh = top, ~canvas.settled[rows]
    if temperature > 0.0 and fresh.any():
        size = canvas.vocabulary.vocab_size
        noise = np.stack([gumbel(canvas.key, canvas.position + int(row), size) for row in rows[fresh]])
        drawn = top.copy()
        drawn[fresh] = (sharpen(bent[fresh], settings, temperature) + noise).argmax(axis=-1)

    choice, best = canvas.shown.copy(), canvas.shown.copy()
    probability, peak, uncertainty = (
        canvas.probability.copy(),
        canvas.probability.copy(),
        canvas.entropy.copy(),
    )
    choice[rows], best[rows] = drawn, top
    probability[rows], peak[rows], uncertainty[rows] = weight[span, drawn] / total, 1.0 / total, entropy
    return Reading(rows, bent, temperature, choice, best, probability, peak, uncertainty)


def _rows_of(canvas: Canvas, logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    slots, size = len(canvas.tokens), canvas.vocabulary.vocab_size
    if logits.shape == (slots, size):
        return logits[rows]
    if logits.shape == (len(rows), size):
        return logits
    raise RedraftError(
        f"logits have shape {logits.shape}; this canvas takes {(slots, size)} or {(len(rows), size)}"
    )


def _bend(canvas: Canvas, logits: np.ndarray, rows: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    settings, banned = canvas.settings, canvas.vocabulary.never
    if allowed is not None and np.ndim(allowed) == 2:
        allowed = np.asarray(allowed)[rows]
    if not settings.penalises:
        return bend(logits, settings, (), allowed, banned)
    settled = canvas.settled & ~_is(canvas.tokens, canvas.vocabulary.null_id)
    out = np.empty_like(logits)
    shared = np.concatenate([np.asarray(canvas.chosen, dtype=np.int64), canvas.tokens[settled]])
    fresh = ~settled[rows]
    out[fresh] = bend(logits[fresh], settings, shared, _part(allowed, fresh), banned)
    for index in np.flatnonzero(~fresh).tolist():  # a settled token is no repetition of itself
        others = settled.copy()
        others[rows[index]] = False
        chosen = np.concatenate([np.asarray(canvas.chosen, dtype=np.int64), canvas.tokens[others]])
        out[index] = bend(logits[index], settings, chosen, _part(allowed, index), banned)
    return out


def _part(allowed: np.ndarray | None, index: np.ndarray | int) -> np.ndarray | None:
    return allowed if allowed is None or np.ndim(allowed) == 1 else allowed[index]


def _is(tokens: np.ndarray, token: int | None) -> np.ndarray:
    return np.zeros(len(tokens), dtype=bool) if token is None else tokens == token
