"""Hybrid corruption: mask noise with a share of random tokens in the middle of time (GIDD, von Rütte et al.
2025).

With base survival a(t) and c = B sqrt(a(1 - a)): alpha = a/(1 + c), mask = (1 - a)/(1 + c), uniform = c/(1 +
c). B = 2 p_u/(1 - p_u) makes the uniform share p_u where a = 1/2, its maximum. GIDD's own process is a = 1 -
t, γ = 1. It starts and ends like the absorbing process and equals it for p_u = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redraft.corruption.process import Shares
from redraft.corruption.schedules import Schedule
from redraft.errors import RequestError


@dataclass(frozen=True)
class Hybrid:
    """uniform_share: p_u in [0, 1), the greatest share of random tokens. The slopes grow without bound where
    a(t) is 0 or 1, as the derivative of a square root does."""

    schedule: Schedule
    uniform_share: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.uniform_share < 1.0:
            raise RequestError(f"uniform_share must be at least 0 and below 1, not {self.uniform_share!r}")

    @property
    def strength(self) -> float:
        """B."""
        return 2.0 * self.uniform_share / (1.0 - self.uniform_share)

    def shares(self, t: Any) -> Shares:
        a = self.schedule.survival(t)
        c = self.strength * (a * (1.0 - a)) ** 0.5
        return Shares(a / (1.0 + c), (1.0 - a) / (1.0 + c), c / (1.0 + c))

    def slopes(self, t: Any) -> Shares:
        a, slope = self.schedule.survival(t), self.schedule.slope(t)
        if self.strength == 0.0:
            return Shares(slope, -slope, 0.0 * slope)
        total = 1.0 + self.strength * (a * (1.0 - a)) ** 0.5
        change = 0.5 * self.strength * (1.0 - 2.0 * a) * slope / (a * (1.0 - a)) ** 0.5
        return Shares(
            (slope * total - a * change) / total**2,
            (-slope * total - (1.0 - a) * change) / total**2,
            change / total**2,
        )
