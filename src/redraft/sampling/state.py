"""The state of a slot, as people watch it."""

from __future__ import annotations

from enum import IntEnum


class SlotState(IntEnum):
    """NOISE: nothing known. DRAFT: the model's present guess, not accepted. NEW: accepted in this step.
    REVISED: an accepted token that this step replaced or took back. SETTLED: accepted earlier.
    LOCKED: given, never changes."""

    NOISE = 0
    DRAFT = 1
    NEW = 2
    REVISED = 3
    SETTLED = 4
    LOCKED = 5
