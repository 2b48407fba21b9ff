"""Uniform corruption: a token is itself or any token at all (UDLM, Duo, DiffusionGemma). Needs no mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redraft.corruption.process import Shares
from redraft.corruption.schedules import Schedule


@dataclass(frozen=True)
class Uniform:
    schedule: Schedule

    def shares(self, t: Any) -> Shares:
        a = self.schedule.survival(t)
        return Shares(a, 0.0 * a, 1.0 - a)

    def slopes(self, t: Any) -> Shares:
        slope = self.schedule.slope(t)
        return Shares(slope, 0.0 * slope, -slope)
