"""Tokens a grammar permits, while a canvas is written in any order.

What may stand in a slot depends on all tokens before it. So a canvas under a grammar settles from the left: its first
open slot chooses among what the settled ones before it permit, and further slots settle in the same step as far as
each one's choice is permitted after the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from redraft.errors import RequestError

if TYPE_CHECKING:
    from redraft.sampling.canvas import Canvas

# From the tokens of the text so far to which tokens may come next, bool [V]
Allow = Callable[[list[int]], np.ndarray]


def permitted(allow: Allow, before: list[int], vocab_size: int) -> np.ndarray:
    """bool [V]. Raises RequestError when what a grammar returns is no such array."""
    mask = np.asarray(allow(before))
    if mask.dtype != np.bool_ or mask.shape != (vocab_size,):
        raise RequestError(
            f"allow must return one bool for each of {vocab_size} tokens, not {mask.dtype} {list(mask.shape)}"
        )
    return mask


def first_allowed(canvas: Canvas, allow: Allow) -> np.ndarray:
    """bool [C, V]: what the first open slot may hold; any token elsewhere."""
    out = np.ones((len(canvas.tokens), canvas.vocabulary.vocab_size), dtype=bool)
    if canvas.any_open:
        first = int(canvas.open.argmax())
        out[first] = _slot(canvas, allow, canvas.tokens[:first].tolist())
    return out


def in_order(canvas: Canvas, accepted: np.ndarray, choice: np.ndarray, allow: Allow) -> np.ndarray:
    """bool [C]: of the accepted slots those that the grammar lets settle now, the first open one among them."""
    out = np.zeros_like(accepted)
    first = int(canvas.open.argmax())
    before = canvas.tokens[:first].tolist()
    for slot in range(first, len(accepted)):
        token = int(choice[slot])
        if slot > first and not (accepted[slot] and _slot(canvas, allow, before)[token]):
            break
        out[slot] = True
        before.append(token)
        if token in canvas.vocabulary.eos:
            break
    return out


def _slot(canvas: Canvas, allow: Allow, before: list[int]) -> np.ndarray:
    """bool [V]: what a slot may hold. No null, since a grammar speaks of text."""
    mask = permitted(allow, before, canvas.vocabulary.vocab_size)
    null = canvas.vocabulary.null_id
    if null is not None and mask[null]:
        mask = mask.copy()
        mask[null] = False
    return mask
