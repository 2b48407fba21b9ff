"""Which open slots settle in this step, judged by the network's own confidence.

A rule is a function Look -> bool [C], true only for open slots; adding one is a function and a line in RULES.
Every rule accepts at least one open slot, so a canvas always comes to its end. A rule sees one canvas only:
what another request in the batch does can't change its decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from redraft.sampling.settings import SamplerSettings


@dataclass(frozen=True, eq=False)
class Look:
    """One canvas as a rule sees it: step from 0, opened (slots that were open at first), open bool [C], and
    the probability of each slot's choice and its entropy in nats, float32 [C]. back: settled slots that this step takes
    back, which are not open yet."""

    settings: SamplerSettings
    step: int
    opened: int
    open: np.ndarray
    probability: np.ndarray
    entropy: np.ndarray
    back: int = 0


def threshold(look: Look) -> np.ndarray:
    """All slots whose choice has a probability above τ, and at least the best ones: one, or this step's quota
    when `steps` is set (Fast-dLLM's parallel decoding; LLaDA2's and SDAR's dynamic rule). At τ = 1 one slot a
    step."""
    least = 1 if look.settings.steps is None else _owed(look)
    passed = look.open & (look.probability > np.float32(look.settings.threshold))
    if least == 1 and passed.any():  # the best is among them
        return passed
    return passed | _best(look, least)


def quota(look: Look) -> np.ndarray:
    """The most probable slots, a fixed number a step (LLaDA's low-confidence remasking)."""
    ends = look.step >= look.settings.timetable - 1
    return look.open.copy() if ends else _best(look, _owed(look))


def entropy_bound(look: Look) -> np.ndarray:
    """The slots of lowest entropy as long as the entropies before each add up to at most the bound, which
    bounds what the accepted tokens can tell about one another (Ben-Hamu et al. 2025; DiffusionGemma). The
    first always passes."""
    slots = np.flatnonzero(look.open)
    order = slots[np.argsort(look.entropy[slots], kind="stable")]
    entropies = look.entropy[order].astype(np.float64)
    accepted = np.zeros(len(look.open), dtype=bool)
    accepted[order] = np.cumsum(entropies) - entropies <= look.settings.entropy_bound
    return accepted


def _owed(look: Look) -> int:
    """How many slots this step must settle so that all have by the end of the timetable; at least one.

    With masks ⌊n/N⌋ a step and one more in the first n mod N (LLaDA); with random tokens, and where masks come back,
    what is missing to ⌈(step+1)·n/N⌉ in all (DiffusionGemma's block refinement)."""
    steps = look.settings.timetable
    if look.settings.renoise == "uniform" or look.settings.doubt is not None:
        target = -(-(look.step + 1) * look.opened // steps)
        return max(1, target - (look.opened - int(look.open.sum()) - look.back))
    base, more = divmod(look.opened, steps)
    return max(1, base + (look.step < more))


def _best(look: Look, count: int) -> np.ndarray:
    """The `count` open slots of highest probability; of equals the earlier ones."""
    slots = look.open.nonzero()[0]
    accepted = np.zeros(len(look.open), dtype=bool)
    if count == 1 and len(slots):
        accepted[slots[look.probability[slots].argmax()]] = True
        return accepted
    order = np.argsort(-look.probability[slots], kind="stable")
    accepted[slots[order[:count]]] = True
    return accepted


RULES: dict[str, Callable[[Look], np.ndarray]] = {
    "threshold": threshold,
    "quota": quota,
    "entropy_bound": entropy_bound,
}
