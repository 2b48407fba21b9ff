"""How long a text is, decided before what it says: for gaps, whose last slots may stay empty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from redraft.sampling import reverse

if TYPE_CHECKING:
    from redraft.sampling.canvas import Canvas
    from redraft.sampling.reading import Reading


def decide(canvas: Canvas, reading: Reading, accepted: np.ndarray) -> reverse.Move:
    """Step 0 with `length_first`: in each run of open slots all from the first on that is rather null than not become
    null, as far as they may, and `accepted` gives way to that: a null before them isn't meant."""
    null = canvas.vocabulary.null_id
    assert null is not None
    size = np.zeros(len(canvas.tokens))
    highest = reading.bent.max(axis=-1, keepdims=True)
    weight = np.exp(np.maximum(reading.bent - highest, -1e4))
    size[reading.rows] = weight[:, null] / weight.sum(axis=-1)
    empty = np.zeros(len(canvas.tokens), dtype=bool)
    for slot in np.flatnonzero(canvas.open).tolist():
        follows = slot > 0 and canvas.open[slot - 1] and empty[slot - 1]
        empty[slot] = size[slot] > 0.0 and (follows or size[slot] > 0.5)
    kept = accepted & (reading.choice != null) & ~empty
    tokens = np.where(empty, null, np.where(kept, reading.choice, canvas.tokens))
    return reverse.Move(tokens, canvas.settled | kept | empty, canvas.clock + 1, 1.0, False)


def without_null(canvas: Canvas, allowed: np.ndarray | None) -> np.ndarray:
    """bool [V] or [C, V]: what is allowed, the null apart."""
    mask = np.ones(canvas.vocabulary.vocab_size, dtype=bool) if allowed is None else allowed.copy()
    mask[..., canvas.vocabulary.null_id] = False
    return mask
