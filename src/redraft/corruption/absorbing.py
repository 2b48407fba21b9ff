"""Absorbing corruption: a token is itself or the mask (MDLM, LLaDA; D3PM's absorbing state)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redraft.corruption.process import Shares
from redraft.corruption.schedules import Schedule


@dataclass(frozen=True)
class Absorbing:
    schedule: Schedule

    def shares(self, t: Any) -> Shares:
        a = self.schedule.survival(t)
        return Shares(a, 1.0 - a, 0.0 * a)

    def slopes(self, t: Any) -> Shares:
        slope = self.schedule.slope(t)
        return Shares(slope, -slope, 0.0 * slope)
