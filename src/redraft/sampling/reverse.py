"""The reverse process itself: samplers that follow time back instead of the network's confidence.

With the exact denoiser, first_hitting draws from the exact distribution, and so does ancestral as its steps
get short. A rule is a function (canvas, reading, last) -> Move; adding one is a function and a line in RULES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np

from redraft.corruption import Belief, Process, process
from redraft.sampling.noise import COIN, ORDER, TIME, step_gumbel, uniforms
from redraft.sampling.revise import remask_share, taken_back
from redraft.sampling.warp import sharpen

if TYPE_CHECKING:
    from redraft.sampling.canvas import Canvas
    from redraft.sampling.reading import Reading
    from redraft.sampling.settings import SamplerSettings


@dataclass(frozen=True, eq=False)
class Move:
    """tokens int64 [C] and settled bool [C] after the step; clock: grid steps taken so far; time: where the
    process now is; done: this was the last step and everything is settled."""

    tokens: np.ndarray
    settled: np.ndarray
    clock: int
    time: float
    done: bool


@lru_cache(maxsize=64)
def _process(corruption: str, size: int, mask_id: int | None, schedule: str, uniform_share: float) -> Process:
    return process(corruption, size, mask_id, schedule, uniform_share)


def process_of(canvas: Canvas) -> Process:
    """The forward process that the canvas's settings name, over its vocabulary."""
    settings, vocabulary = canvas.settings, canvas.vocabulary
    mask_id = vocabulary.mask_id
    return _process(
        settings.corruption, vocabulary.vocab_size, mask_id, settings.schedule, settings.uniform_share
    )


def grid_time(settings: SamplerSettings, clock: int) -> float:
    """Time before grid step `clock`: settings.start at 0, exactly 0 after the last step of the timetable."""
    return settings.start * max(settings.timetable - clock, 0) / settings.timetable


def ancestral(canvas: Canvas, reading: Reading, last: bool) -> Move:
    """x_s ~ q(x_s | x_t, p_θ) on an even grid of `steps` times (D3PM, MDLM, UDLM, GIDD; ReMDM with
    `remask`)."""
    if canvas.settings.corruption == "absorbing":
        return _ancestral_absorbing(canvas, reading, last)
    return _ancestral_posterior(canvas, reading, last)


def _ancestral_absorbing(canvas: Canvas, reading: Reading, last: bool) -> Move:
    """An open slot is unmasked with probability (α_s - (1 - σ)α_t)/(1 - α_t), a settled one masked with σ.
    Which slots does not depend on the network, so a grid step in which nothing happens costs no evaluation
    (MDLM's cache)."""
    settings, survival = canvas.settings, process_of(canvas).kernel.shares
    settled, tokens, clock = canvas.settled, canvas.tokens, canvas.clock
    probability = np.where(settled, canvas.probability, reading.probability)
    changed = False
    while True:
        t, s = grid_time(settings, clock), 0.0 if last else grid_time(settings, clock + 1)
        alpha_t, alpha_s = float(survival(t).alpha), float(survival(s).alpha)
        share = remask_share(settings, settled & ~canvas.locked, probability, alpha_t, alpha_s)
        taken = taken_back(canvas, settled & ~canvas.locked, share, clock)
        coins = uniforms(canvas.key, canvas.position, len(settled), clock, COIN)
        hit = canvas.live & ~settled & (coins * (1.0 - alpha_t) < alpha_s - (1.0 - share) * alpha_t)
        clock += 1
        if s == 0.0:
            hit, taken = canvas.live & ~settled, np.zeros_like(taken)
        tokens = np.where(hit, reading.choice, tokens)  # what stays open, the canvas fills with masks
        settled = settled & ~taken | hit
        changed = changed or bool(hit.any() or taken.any())
        if s == 0.0 or (changed and (settings.remask is None or (canvas.live & ~settled).any())):
            return Move(tokens, settled, clock, s, s == 0.0)


def _ancestral_posterior(canvas: Canvas, reading: Reading, last: bool) -> Move:
    """Every slot is drawn anew from the posterior, with fresh noise at each step; none settles before time
    0."""
    settings, rows = canvas.settings, reading.rows
    t = grid_time(settings, canvas.clock)
    s = 0.0 if last else grid_time(settings, canvas.clock + 1)
    if reading.temperature == 0.0:
        believed = np.zeros(reading.bent.shape)
        believed[np.arange(len(rows)), reading.best[rows]] = 1.0
    else:
        logits = sharpen(reading.bent, settings, reading.temperature)
        believed = np.exp(logits - logits.max(axis=-1, keepdims=True))
        believed /= believed.sum(axis=-1, keepdims=True)
    belief = cast(Belief, settings.belief)
    chances = process_of(canvas).posterior(canvas.tokens[rows], believed, s, t, belief)
    noise = step_gumbel(canvas.key, canvas.position + rows, canvas.clock, canvas.vocabulary.vocab_size)
    with np.errstate(divide="ignore"):
        drawn = (np.log(chances) + noise).argmax(axis=-1)
    tokens = canvas.tokens.copy()
    tokens[rows] = drawn
    settled = np.ones_like(canvas.settled) if s == 0.0 else canvas.settled
    return Move(tokens, settled, canvas.clock + 1, s, s == 0.0)


def first_hitting(canvas: Canvas, reading: Reading, last: bool) -> Move:
    """One open slot an evaluation, each as likely as the others, at the time the absorbing process next
    unmasks one: with n masks left the base noise 1 - α falls by u^(1/n) (Zheng et al. 2024; BD3-LM). Exact,
    unlike any grid; when the budget of steps ends before the slots do, the last step settles all and is
    not."""
    slots = np.flatnonzero(canvas.open)
    settled, time = canvas.settled.copy(), canvas.time
    if last:
        hit, time = slots, 0.0
    else:
        pick, wait = (uniforms(canvas.key, canvas.position, 1, canvas.step, use)[0] for use in (ORDER, TIME))
        hit = slots[[int(pick * len(slots))]]
        time = time * wait ** (1.0 / len(slots))
    tokens = canvas.tokens.copy()
    tokens[hit] = reading.choice[hit]
    settled[hit] = True
    return Move(tokens, settled, canvas.clock + 1, float(time), last)


RULES: dict[str, Callable[[Canvas, Reading, bool], Move]] = {
    "ancestral": ancestral,
    "first_hitting": first_hitting,
}
