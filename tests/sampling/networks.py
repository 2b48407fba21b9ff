"""Networks small enough to know everything about: exact ones for enumerated texts, and an arbitrary one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from redraft.corruption import Process
from redraft.sampling import Canvas, NoiseKey, SamplerSettings, SlotVocabulary, advance, begin, outcome
from tests.corruption.toy import Toy

Network = Callable[[Canvas], np.ndarray]


def run(
    network: Network, settings: SamplerSettings, vocabulary: SlotVocabulary, key: NoiseKey, **given
) -> Canvas:
    canvas = begin(settings, vocabulary, key, **{"position": 0, **given})
    while not canvas.finished:
        canvas = advance(canvas, network(canvas))
    return canvas


def exact(toy: Toy, process: Process, leave_one_out: bool = True) -> Network:
    """Logits log p(x_i | z) of an enumerated language, at the canvas's own time. A canvas of r times the
    language's length holds r texts side by side that know nothing of one another."""
    z, length = toy.noisy(process), toy.texts.shape[1]
    digits = process.vocab_size ** np.arange(length - 1, -1, -1)
    timeless = float(process.kernel.shares(0.5).uniform) == 0.0  # masks tell nothing but that they are masks
    tables: dict[float, np.ndarray] = {}

    def network(canvas: Canvas) -> np.ndarray:
        t = 0.5 if timeless else min(canvas.time, 1.0 - 1e-9)  # at t = 1 itself nothing of the text is left
        if t not in tables:
            belief = toy.belief(process, z, t, leave_one_out)
            tables[t] = np.log(np.maximum(belief, 1e-30)).astype(np.float32)
        rows = canvas.tokens.reshape(-1, length) @ digits
        return tables[t][rows].reshape(len(canvas.tokens), -1)

    return network


def arbitrary(vocab_size: int, seed: int = 0, scale: float = 3.0) -> Network:
    """Logits that are some fixed function of all the tokens, as a real network's are."""
    rng = np.random.default_rng(seed)
    own, others = rng.normal(size=(2, vocab_size, vocab_size))
    place = rng.normal(size=(512, vocab_size))

    def network(canvas: Canvas) -> np.ndarray:
        tokens = canvas.tokens
        around = others[tokens].mean(axis=0) * 2.0
        logits = own[tokens] + around + place[: len(tokens)]
        return (logits * scale).astype(np.float32)

    return network


def frequencies(
    toy: Toy,
    network: Network,
    settings: SamplerSettings,
    vocabulary: SlotVocabulary,
    count: int,
    together: int = 1,
) -> np.ndarray:
    """How often each text of the toy comes out of `count` samples, `together` of them side by side on a
    canvas (for rules that treat every slot alike, whatever the others do)."""
    length = toy.texts.shape[1]
    settings = dataclasses.replace(settings, canvas_length=length * together)
    digits = 3 ** np.arange(length - 1, -1, -1)
    seen = np.zeros(len(toy.texts))
    for sample in range(count // together):
        tokens = outcome(run(network, settings, vocabulary, NoiseKey(11, sample)))
        seen += np.bincount(np.reshape(tokens, (-1, length)) @ digits, minlength=len(seen))
    return seen / seen.sum()


def agrees(seen: np.ndarray, want: np.ndarray, count: int) -> bool:
    """Every cell within 5 standard deviations (a false alarm in about 1 of 20,000 tests of this size)."""
    return bool((np.abs(seen - want) <= 5 * np.sqrt(want * (1 - want) / count) + 1 / count).all())


def variation(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.abs(p - q).sum() / 2)
