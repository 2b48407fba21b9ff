"""Corruptions by name. A new one is a file with a Kernel and a line in CORRUPTIONS."""

from __future__ import annotations

from collections.abc import Callable

from redraft.corruption.absorbing import Absorbing
from redraft.corruption.hybrid import Hybrid
from redraft.corruption.process import Kernel, Process
from redraft.corruption.schedules import SCHEDULES, Schedule
from redraft.corruption.uniform import Uniform
from redraft.errors import RequestError

# Each takes a schedule and the greatest share of random tokens, which only the hybrid heeds.
CORRUPTIONS: dict[str, Callable[[Schedule, float], Kernel]] = {
    "absorbing": lambda schedule, uniform_share: Absorbing(schedule),
    "uniform": lambda schedule, uniform_share: Uniform(schedule),
    "hybrid": Hybrid,
}


def process(
    corruption: str,
    vocab_size: int,
    mask_id: int | None = None,
    schedule: str = "linear",
    uniform_share: float = 0.1,
    noise_ids: tuple[int, ...] | None = None,
) -> Process:
    """The forward process of that name over a vocabulary. uniform_share is the hybrid's p_u. Raises
    RequestError for an unknown name, and when the corruption needs a mask the vocabulary lacks."""
    if corruption not in CORRUPTIONS:
        raise RequestError(f"corruption {corruption!r} is unknown; one of {', '.join(CORRUPTIONS)}")
    if schedule not in SCHEDULES:
        raise RequestError(f"schedule {schedule!r} is unknown; one of {', '.join(SCHEDULES)}")
    kernel = CORRUPTIONS[corruption](SCHEDULES[schedule], uniform_share)
    return Process(kernel, vocab_size, mask_id, noise_ids)
