"""What one network evaluation says about each slot of a canvas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np

from redraft.errors import RedraftError
from redraft.sampling.noise import gumbel
from redraft.sampling.warp import bend, sharpen, untouched_argmax

if TYPE_CHECKING:
    from redraft.sampling.canvas import Canvas

_FLOOR = np.float32(-1e4)  # exp() of it is 0, and 0 * it is 0, where -inf would make NaN


@dataclass(frozen=True, eq=False)
class Reading:
    """rows int64 [k]: the slots that were read; temperature: this step's. choice (the token that would be accepted:
    the argmax, or a draw) and best (the argmax) int64 [C]; probability of the choice, peak probability of the argmax,
    and entropy in nats, float32 [C]. Slots that were not read keep their token and their last numbers.
    make_bent: what `bent` comes from, made only if a rule asks for it."""

    rows: np.ndarray
    temperature: float
    choice: np.ndarray
    best: np.ndarray
    probability: np.ndarray
    peak: np.ndarray
    entropy: np.ndarray
    make_bent: Callable[[], np.ndarray]

    @cached_property
    def bent(self) -> np.ndarray:
        """[k, V]: the logits of the rows after bias, penalties and bans."""
        return self.make_bent()


def wanted(canvas: Canvas) -> np.ndarray:
    """int64 [k]: the slots whose logits the next `advance` reads. Others need not be computed."""
    return canvas.wanted


def read(canvas: Canvas, logits: np.ndarray, allowed: np.ndarray | None = None) -> Reading:
    """Reads float32 logits [C, V], or [k, V] for the slots `wanted` names (allowed, bool [V] or one row a
    slot of the canvas). Confidence and entropy are those of the distribution before temperature and
    truncation (LLaDA), or they would be 1 and 0 at low temperature whatever the model thinks; the entropy
    bound takes them at the temperature (DiffusionGemma). Raises RedraftError for a wrong shape or for logits
    that are not numbers."""
    rows = wanted(canvas)
    logits = _rows_of(canvas, logits, rows)
    settings = canvas.settings
    temperature = settings.temperature_at(canvas.step)
    bent = cache(lambda: _bend(canvas, logits, rows, allowed))
    top, shifted = _shifted(canvas, logits, allowed, bent, temperature)
    entropy = canvas.entropy[rows]
    if canvas.watched or settings.needs_entropy:
        weight = np.exp(shifted)
        total = weight.sum(axis=-1)
        entropy = _entropy(weight, shifted, total)
    else:
        weight = np.exp(shifted, out=shifted)
        total = weight.sum(axis=-1)

    drawn = top
    if temperature > 0.0 and (fresh := ~canvas.settled[rows]).any():
        size = canvas.vocabulary.vocab_size
        noise = np.stack([gumbel(canvas.key, canvas.position + int(row), size) for row in rows[fresh]])
        drawn = top.copy()
        drawn[fresh] = (sharpen(bent()[fresh], settings, temperature) + noise).argmax(axis=-1)

    best, peak = _put(canvas.shown, rows, top), _put(canvas.probability, rows, 1.0 / total)
    uncertainty = _put(canvas.entropy, rows, entropy)
    if drawn is top:
        return Reading(rows, temperature, best, best, peak, peak, uncertainty, bent)
    choice = _put(canvas.shown, rows, drawn)
    probability = _put(canvas.probability, rows, weight[np.arange(len(rows)), drawn] / total)
    return Reading(rows, temperature, choice, best, probability, peak, uncertainty, bent)


def drawn(canvas: Canvas, logits: np.ndarray, slot: int) -> int:
    """The token that `read` takes for one open slot, from its logits [1, V]."""
    settings, vocabulary = canvas.settings, canvas.vocabulary
    temperature = settings.temperature_at(canvas.step)
    if temperature == 0.0 and not settings.penalises:
        top = untouched_argmax(logits, settings, vocabulary.never)
        if top is not None:
            return int(top[0])
    bent = _bend(canvas, logits, np.array([slot]), None)
    if temperature > 0.0:
        noise = gumbel(canvas.key, canvas.position + slot, vocabulary.vocab_size)
        bent = sharpen(bent, settings, temperature) + noise
    return int(bent[0].argmax())


def _shifted(
    canvas: Canvas,
    logits: np.ndarray,
    allowed: np.ndarray | None,
    bent: Callable[[], np.ndarray],
    temperature: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The argmax [k], and a new array [k, V] of the logits less their highest. What is touched in a few columns only
    (bans, bias) is touched after that: passes over the vocabulary are what a step spends outside the network."""
    settings, banned = canvas.settings, canvas.vocabulary.never
    at_temperature = settings.accept == "entropy_bound" and temperature > 0
    top = None
    if allowed is None and not at_temperature and not settings.penalises:
        top = untouched_argmax(logits, settings, banned)
    if top is not None:
        shifted = logits - _highest(logits, top)
        for token, bias in settings.logit_bias:
            shifted[:, token] += np.float32(bias)
        for token in banned:
            shifted[:, token] = _FLOOR
        return top, shifted
    scaled = bent() / np.float32(temperature) if at_temperature else bent()
    top = scaled.argmax(axis=-1)
    shifted = scaled - _highest(scaled, top)
    return top, np.maximum(shifted, _FLOOR, out=shifted)


def _highest(logits: np.ndarray, top: np.ndarray) -> np.ndarray:
    """[k, 1]: the logits of the argmax."""
    highest = logits[np.arange(len(top)), top]
    if not np.isfinite(highest).all():
        raise RedraftError("the network returned logits that are not finite numbers")
    return highest[:, None]


def _entropy(weight: np.ndarray, shifted: np.ndarray, total: np.ndarray) -> np.ndarray:
    """[k] nats, of the whole distribution and not of the drawn token's probability alone."""
    mean = np.einsum("kv,kv->k", weight, shifted)
    if not np.isfinite(mean).all():  # a logit was -inf
        mean = np.einsum("kv,kv->k", weight, np.maximum(shifted, _FLOOR))
    out: np.ndarray = np.maximum(np.log(total) - mean / total, 0.0)
    return out


def _put(values: np.ndarray, rows: np.ndarray, new: np.ndarray) -> np.ndarray:
    """A copy of values [C] with those of `rows` replaced."""
    if len(rows) == len(values):  # rows are in order, so these are all
        return new
    out = values.copy()
    out[rows] = new
    return out


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


def is_one_of(tokens: np.ndarray, ids: tuple[int, ...]) -> np.ndarray | None:
    """bool, as np.isin, which takes twenty times as long for a few slots; None when there are no ids."""
    found = None
    for token in ids:
        found = tokens == token if found is None else found | (tokens == token)
    return found
