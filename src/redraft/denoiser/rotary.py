"""Rotary position frequencies with the variants that Llama-type bases use. Works on numpy arrays and torch tensors.

Each library raises its own float32 powers (they differ in the last bit), so the caller passes the exponents and gets
back what its library makes of them: the reference stays equal to the networks whose weights it loads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redraft.errors import RequestError

if TYPE_CHECKING:
    from redraft.denoiser.config import DenoiserConfig

ROPE_TYPES = ("linear", "llama3")


@dataclass(frozen=True)
class RopeScaling:
    """How frequencies are stretched to reach past the context a base was first trained on.

    linear: all of them divided by `factor` (position interpolation, Chen et al. 2023). llama3: only those whose
    wavelength is long beside `original_max_position_embeddings`, with a smooth passage between the two (Llama 3.1).
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            kinds = ", ".join(("default", *ROPE_TYPES))
            raise RequestError(
                f"config: rope scaling {self.rope_type!r} is not supported; redraft has {kinds}"
            )
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise RequestError(f"config: rope scaling {name} must be a positive number, not {value!r}")
        if self.high_freq_factor <= self.low_freq_factor:
            raise RequestError("config: rope scaling high_freq_factor must be above low_freq_factor")


def frequencies(exponents: Any, config: DenoiserConfig) -> Any:
    """Radians per position, float32 [rotary_dim / 2], for `exponents` = (0, 2, 4, …) / rotary_dim in float32."""
    plain = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    if scaling.rope_type == "linear":
        return plain / scaling.factor
    # How often a frequency turns within the old context decides: at most `low` times, stretched; at least `high`, kept.
    turns = scaling.original_max_position_embeddings / (2 * math.pi / plain)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clip(0.0, 1.0)
    return (1.0 - kept) * plain / scaling.factor + kept * plain
