"""How far a sampler is from the truth when its denoiser is exact: all error is then the sampler's own.

The language is a hidden Markov model, whose p(x_i | noisy text) forward-backward gives exactly, for any corruption.
Perplexities can't tell a wrong sampler from a right one; the distance of its texts' distribution from p can.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from redraft.corruption import Process
from redraft.sampling import Canvas, NoiseKey, SamplerSettings, SlotVocabulary, advance, begin, outcome
from redraft.sampling.reverse import process_of

Denoiser = Callable[[Canvas], np.ndarray]


@dataclass(frozen=True, eq=False)
class HMM:
    """Texts of `length` tokens. start float64 [S], step [S, S] and emit [S, V]: distributions along the last axis. A
    Markov chain is one whose states are its tokens, emit the identity."""

    start: np.ndarray
    step: np.ndarray
    emit: np.ndarray
    length: int

    @property
    def tokens(self) -> int:
        return int(self.emit.shape[1])

    @cached_property
    def texts(self) -> np.ndarray:
        """int64 [V^L, L]: all of them, in the order of their digits."""
        return np.array(list(itertools.product(range(self.tokens), repeat=self.length)))

    @cached_property
    def p(self) -> np.ndarray:
        """float64 [V^L]: the truth, by the forward algorithm."""
        reach = self.start * self.emit.T[self.texts[:, 0]]
        for i in range(1, self.length):
            reach = (reach @ self.step) * self.emit.T[self.texts[:, i]]
        out: np.ndarray = reach.sum(axis=-1)
        return out

    @cached_property
    def independent(self) -> np.ndarray:
        """float64 [V^L]: the product of the slots' marginals, which drawing all slots at once gives."""
        out = np.ones(len(self.p))
        for slot in self.texts.T:
            out *= np.bincount(slot, self.p, self.tokens)[slot]
        return out

    def belief(self, evidence: np.ndarray, leave_one_out: bool) -> np.ndarray:
        """float64 [L, V]: p(x_i | evidence), of all slots or of all but i, from evidence [L, V], the chance of what is
        seen at each slot given its token."""
        told = evidence @ self.emit.T  # [L, S]: chance of what is seen given the state
        before, after = np.empty_like(told), np.ones_like(told)
        before[0] = self.start
        for i in range(1, self.length):
            reach = (before[i - 1] * told[i - 1]) @ self.step
            before[i] = reach / reach.sum()
        for i in range(self.length - 2, -1, -1):
            back = self.step @ (after[i + 1] * told[i + 1])
            after[i] = back / back.sum()
        out = (before * after) @ self.emit
        if not leave_one_out:
            out = out * evidence
        normal: np.ndarray = out / out.sum(axis=-1, keepdims=True)
        return normal


def markov_chain(length: int) -> HMM:
    """Three tokens that follow one another almost surely: where drawing slots at once goes wrong."""
    step = np.array([[0.85, 0.1, 0.05], [0.05, 0.15, 0.8], [0.3, 0.6, 0.1]])
    return HMM(np.array([0.5, 0.3, 0.2]), step, np.eye(3), length)


def hidden_chain(length: int) -> HMM:
    """Two states that seldom change, each with a token of its own and one in common: distant slots depend too."""
    step, emit = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.8, 0.2, 0.0], [0.0, 0.3, 0.7]])
    return HMM(np.array([0.6, 0.4]), step, emit, length)


def denoiser(model: HMM, belief: str = "leave_one_out") -> Denoiser:
    """The exact network of a language: float32 [L, V'] logits of a canvas, at its own process and time.

    V' is the canvas's vocabulary, the mask (never likely) among it. belief: as in SamplerSettings.
    """
    known: dict[tuple[bytes, float], np.ndarray] = {}

    def network(canvas: Canvas) -> np.ndarray:
        q = process_of(canvas)
        timeless = canvas.settings.corruption == "absorbing"  # a mask tells nothing but that it is one
        t = 0.5 if timeless else min(canvas.time, 1.0 - 1e-9)  # at 1 itself nothing of the text is left
        key = (canvas.tokens.tobytes(), t)
        if key not in known:
            known[key] = _logits(model, q, canvas.tokens, t, belief == "leave_one_out")
        return known[key]

    return network


def _logits(model: HMM, q: Process, noisy: np.ndarray, t: float, leave_one_out: bool) -> np.ndarray:
    seen = q.marginal(np.arange(model.tokens), t)[:, noisy].T  # [L, V]: chance of z_i given x_i
    out = np.zeros((model.length, q.vocab_size))
    out[:, : model.tokens] = model.belief(seen, leave_one_out)
    return np.log(np.maximum(out, 1e-30)).astype(np.float32)


@dataclass(frozen=True)
class Sampled:
    """shares float64 [V^L]: how often each text came; count: of how many; steps: mean evaluations a text."""

    shares: np.ndarray
    count: int
    steps: float

    def distance(self, p: np.ndarray) -> float:
        """Total variation: the greatest difference of any event's probability."""
        return float(np.abs(self.shares - p).sum() / 2)


def sampled(model: HMM, settings: SamplerSettings, count: int, seed: int = 0) -> Sampled:
    """Texts by a sampler, one canvas each, and the exact denoiser of the settings' corruption and belief."""
    mask = None if settings.corruption == "uniform" and settings.open_noise == "uniform" else model.tokens
    vocabulary = SlotVocabulary(model.tokens + (mask is not None), mask_id=mask)
    settings = replace(settings, canvas_length=model.length)
    network = denoiser(model, settings.belief)
    digits = model.tokens ** np.arange(model.length - 1, -1, -1)
    seen, steps = np.zeros(len(model.texts)), 0
    for sample in range(count):
        canvas = begin(settings, vocabulary, NoiseKey(seed, sample), 0)
        while not canvas.finished:
            canvas = advance(canvas, network(canvas)[canvas.wanted])
        seen[int(np.array(outcome(canvas)) @ digits)] += 1
        steps += canvas.step
    return Sampled(seen / count, count, steps / count)


def floor(p: np.ndarray, count: int) -> float:
    """The distance that `count` exact draws of p have on average: below it nothing can be told apart.

    A share's mean absolute error is sqrt(2 p (1 - p) / (π n)), for n p large.
    """
    return float(np.sqrt(2 * p * (1 - p) / (np.pi * count)).sum() / 2)


Curve = Callable[[int], SamplerSettings]


def _warm(**settings: object) -> SamplerSettings:
    return SamplerSettings(temperature=1.0, **settings)  # type: ignore[arg-type]


# Samplers by name, each as a function of its steps, for curves of error over steps.
CURVES: dict[str, Curve] = {
    "quota": lambda n: _warm(accept="quota", steps=n),
    "ancestral, absorbing": lambda n: _warm(accept="ancestral", steps=n),
    "ancestral, uniform": lambda n: _warm(accept="ancestral", corruption="uniform", steps=n),
    "ancestral, hybrid": lambda n: _warm(accept="ancestral", corruption="hybrid", steps=n),
    "first hitting": lambda n: _warm(accept="first_hitting", max_steps=n),
    "ancestral, remasking": lambda n: _warm(accept="ancestral", steps=n, remask="rescale", remask_eta=0.2),
    "quota, remasking": lambda n: _warm(accept="quota", steps=n, remask="conf"),
    "quota, editing": lambda n: _warm(accept="quota", steps=n, edit_threshold=0.8),
}
# Samplers whose steps follow from a bound: name, then a setting for each bound from strict to lax.
BOUNDS: dict[str, tuple[Callable[[float], SamplerSettings], tuple[float, ...]]] = {
    "threshold": (lambda x: _warm(threshold=x), (1.0, 0.9, 0.8, 0.6, 0.4, 0.0)),
    "entropy bound": (
        lambda x: _warm(accept="entropy_bound", entropy_bound=x),
        (0.0, 0.2, 0.5, 1.0, 2.0, 1e9),
    ),
}
