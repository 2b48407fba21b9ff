"""How long the next canvas should be, from how the last steps went and what a step of each length costs.

A pure function of one answer's own history and a fixed table, never of a clock or of who else is in the batch: the
same seed gives the same tokens.

The model is the one of speculative decoding (Leviathan et al. 2023): each slot settles with chance q if all before it
did, and one always does, so a step on r open slots settles (1 - q^r)/(1 - q). q is fitted to the last evaluations;
then a canvas of C slots takes n(C, q) steps, and the length with the least n(C, q) * cost(C) / C is taken.

It is for canvases that settle by themselves. How many tokens of a draft the AR self will keep, the last drafts hardly
tell (correlation 0.2), while the draft's own probabilities do (0.7): draft_layout "auto" goes by those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from redraft.errors import RequestError

RECENT = 32  # evaluations that count: some canvases' worth, so that harder text is noticed within a sentence
FEW_ROWS = 4, 16  # of evaluations that verify a draft and make the next
CHEAP_ROW, BESIDES = 0.03, 0.1  # AR steps
LEAST = 4  # evaluations below which the history says too little: a short canvas is then the smallest mistake
CHANCES = (*(i / 64 for i in range(64)), 1.0)  # values of q that are tried

Evaluation = tuple[int, int]  # slots open before it, and how many of them it settled


@dataclass(frozen=True)
class StepCosts:
    """costs: (slots, what an evaluation with a canvas of so many costs, in AR steps) from short to long. Raises
    RequestError, one line, for a table that can't be."""

    costs: tuple[tuple[int, float], ...] = ((8, 1.3), (16, 1.7), (32, 2.6))

    def __post_init__(self) -> None:
        object.__setattr__(self, "costs", tuple(sorted((s, c) for s, c in self.costs)))
        if not self.costs:
            raise RequestError("step_costs must name at least one canvas length")
        for slots, cost in self.costs:
            if isinstance(slots, bool) or not isinstance(slots, int) or slots < 1:
                raise RequestError(f"step_costs: a canvas has a whole number of slots, not {slots!r}")
            number = isinstance(cost, int | float) and not isinstance(cost, bool)
            if not (number and 0 < cost < math.inf):
                raise RequestError(
                    f"step_costs: the cost of {slots} slots must be a number above 0, not {cost!r}"
                )

    @classmethod
    def of(cls, table: Mapping[Any, Any]) -> StepCosts:
        """From generation_config.json's {"16": 1.7, …}; the built-in table (two cores, int8) for an empty one."""
        if not table:
            return cls()
        try:
            return cls(tuple((int(slots), cost) for slots, cost in table.items()))
        except (TypeError, ValueError):
            raise RequestError(
                f"step_costs must map canvas lengths to numbers, not {dict(table)!r}"
            ) from None

    @property
    def longest(self) -> int:
        return self.costs[-1][0]

    @property
    def row(self) -> float:
        """Cost of one more row in an evaluation of a few, in AR steps."""
        few, more = FEW_ROWS
        return max(0.0, self.at(more) - self.at(few)) / (more - few)

    @property
    def canvas(self) -> float:
        """What a canvas costs besides its rows: where an adapter runs on its rows alone, its nodes."""
        few = FEW_ROWS[0]
        return max(0.0, self.at(few) - 1.0 - (few - 1) * self.row)

    def of_drafts(self, clean: float | None = None) -> tuple[float, float, float]:
        """What a request weighs its drafts by: row_cost, slot_cost and canvas_cost. Where a canvas costs nothing
        besides its rows, a row counts for less than it costs alone, which was fastest on redraft-tiny. clean: cost of
        one more clean row, where it isn't that of a canvas row."""
        if self.canvas <= BESIDES:
            return CHEAP_ROW, CHEAP_ROW, 0.0
        return (self.row if clean is None else clean), self.row, self.canvas

    def at(self, rows: float) -> float:
        """Cost of an evaluation of so many rows: on the line through the two lengths of the table that are nearest,
        and 1 for a single row, an AR step."""
        known = self.costs if self.costs[0][0] == 1 else ((1, 1.0), *self.costs)
        if len(known) == 1:
            return known[0][1]
        above = next((i for i, (slots, _) in enumerate(known) if slots >= rows), len(known) - 1)
        (a, low), (b, high) = known[max(above, 1) - 1], known[max(above, 1)]
        return low + (high - low) * (rows - a) / (b - a)


def choose_length(history: Sequence[Evaluation], costs: StepCosts) -> int:
    """Slots of the next canvas: one of the table's lengths, the shortest while the history is too short."""
    recent = [(before, settled) for before, settled in history[-RECENT:] if before > 0]
    if len(recent) < LEAST:
        return costs.costs[0][0]
    chance = fitted(recent)
    return min(costs.costs, key=lambda c: (steps(c[0], chance) * c[1] / c[0], c[0]))[0]


def fitted(history: Sequence[Evaluation]) -> float:
    """The q of CHANCES under which these evaluations would settle as many slots as they did, the smaller of two that
    fit equally well."""
    settled = sum(count for _, count in history)
    return min(CHANCES, key=lambda q: (abs(sum(gain(before, q) for before, _ in history) - settled), q))


def gain(before: float, chance: float) -> float:
    """Slots that an evaluation on so many open ones settles: from 1 at q = 0 to all of them at q = 1."""
    return before if chance >= 1.0 else (1.0 - chance**before) / (1.0 - chance)


@lru_cache(maxsize=4096)
def steps(slots: int, chance: float) -> float:
    """Evaluations that a canvas of so many slots takes; the last counts for what it still has to do."""
    left, count = float(slots), 0.0
    while left > 1e-9:
        got = gain(max(left, 1.0), chance)
        count += min(1.0, left / got)
        left -= got
    return count
