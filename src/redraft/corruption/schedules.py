"""Noise schedules: survival a(t), the probability that a token is still itself at time t, and its derivative.

t runs from 0 (clean) to 1 (noise): a float, an array or a torch tensor of any shape. Adding a schedule is two
functions and a line in SCHEDULES.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redraft.corruption.arrays import namespace

_EPSILON = 1e-3  # loglinear keeps a thousandth alive at t = 1 (SEDD, MDLM)


@dataclass(frozen=True)
class Schedule:
    """survival: a(t), falling from 1 at t = 0 to (about) 0 at t = 1; slope: its derivative a'(t) ≤ 0."""

    name: str
    survival: Callable[[Any], Any]
    slope: Callable[[Any], Any]


def _linear(t: Any) -> Any:
    return 1.0 - t


def _linear_slope(t: Any) -> Any:
    return 0.0 * t - 1.0


def _loglinear(t: Any) -> Any:
    """Total noise σ = -log a with a = 1 - (1 - ε)t."""
    return 1.0 - (1.0 - _EPSILON) * t


def _loglinear_slope(t: Any) -> Any:
    return 0.0 * t - (1.0 - _EPSILON)


def _cosine(t: Any) -> Any:
    """1 - cos(π/2 (1 - t)), written so that nothing cancels near t = 1."""
    return 2.0 * namespace(t).sin((1.0 - t) * (math.pi / 4)) ** 2


def _cosine_slope(t: Any) -> Any:
    return namespace(t).sin((1.0 - t) * (math.pi / 2)) * (-math.pi / 2)


SCHEDULES: dict[str, Schedule] = {
    "linear": Schedule("linear", _linear, _linear_slope),
    "cosine": Schedule("cosine", _cosine, _cosine_slope),
    "loglinear": Schedule("loglinear", _loglinear, _loglinear_slope),
}
