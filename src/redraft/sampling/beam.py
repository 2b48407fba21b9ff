"""Beam search over one canvas: several likely ways to fill it, where a step of threshold decoding takes the likeliest
token alone. Chances are the canvas's own, each token's given those that had settled before it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from redraft.sampling.canvas import Canvas
from redraft.sampling.reading import Reading, read
from redraft.sampling.state import SlotState

_LEAST = 1e-6  # of a token's probability: what is less likely is no way to fill a slot


def parted(
    canvas: Canvas, logits: np.ndarray, width: int, slots: int, allowed: np.ndarray | None = None
) -> list[Canvas]:
    """What may become of a canvas by one evaluation, `width` ways at most. The first `slots` slots count: all surer
    than settings.threshold settle, and the surest of the others takes one of its likeliest tokens. At the last of
    max_steps all settle as they are likeliest. logits, allowed: as for `advance`."""
    settings = canvas.settings
    reading = read(canvas, logits, allowed)
    opened = canvas.open.copy()
    opened[slots:] = False
    last = canvas.step + 1 >= settings.max_steps
    sure = opened if last else opened & (reading.peak > np.float32(settings.threshold))
    one = _settled(canvas, reading, sure)
    unsure = opened & ~sure
    if not unsure.any():
        return [one]
    slot = int(np.where(unsure, reading.peak, -1.0).argmax())
    row = reading.bent[int(np.searchsorted(reading.rows, slot))].astype(np.float64)
    chances = np.exp(row - row.max())
    chances /= chances.sum()
    width = min(width, len(chances))
    some = np.flatnonzero(chances >= np.partition(chances, -width)[-width])
    best = some[np.argsort(-chances[some], kind="stable")[:width]]
    return [_taken(one, slot, int(t), float(chances[t])) for t in best if chances[t] > _LEAST]


def likeliest(canvases: Iterable[Canvas], width: int, slots: int) -> list[Canvas]:
    """The `width` likeliest of these canvases, the likeliest first; of those whose first `slots` slots say the same,
    the likelier one."""
    found: dict[bytes, Canvas] = {}
    for canvas in sorted(canvases, key=lambda canvas: -log_p(canvas, slots)):
        found.setdefault(canvas.tokens[:slots].tobytes(), canvas)
    return list(found.values())[:width]


def log_p(canvas: Canvas, slots: int) -> float:
    """In nats: of what has settled in the first `slots` slots."""
    chances = np.where(canvas.settled, np.maximum(canvas.probability, 1e-9), 1.0)[:slots]
    return float(np.log(chances, dtype=np.float64).sum())


def filled(canvas: Canvas, slots: int) -> bool:
    return not canvas.open[:slots].any()


def _settled(canvas: Canvas, reading: Reading, sure: np.ndarray) -> Canvas:
    """The canvas with the likeliest token in these slots; the others show theirs as a draft."""
    taken = canvas.settled & ~canvas.locked
    state = np.select(
        [canvas.locked, taken, sure], [SlotState.LOCKED, SlotState.SETTLED, SlotState.NEW], SlotState.DRAFT
    )
    return canvas.after(
        tokens=np.where(sure, reading.best, canvas.tokens),
        shown=np.where(canvas.settled, canvas.tokens, reading.best),
        state=state.astype(np.uint8),
        probability=np.where(canvas.settled, canvas.probability, reading.peak),
        entropy=reading.entropy,
        settled=canvas.settled | sure,
        step=canvas.step + 1,
    )


def _taken(canvas: Canvas, slot: int, token: int, chance: float) -> Canvas:
    tokens, shown, state = canvas.tokens.copy(), canvas.shown.copy(), canvas.state.copy()
    probability, settled = canvas.probability.copy(), canvas.settled.copy()
    tokens[slot] = shown[slot] = token
    state[slot], probability[slot], settled[slot] = SlotState.NEW, chance, True
    return canvas.after(tokens=tokens, shown=shown, state=state, probability=probability, settled=settled)
