"""Counter-based randomness: every number is a function of what it is for, never of what was drawn before it.

Philox (Salmon et al. 2011) is keyed by (seed, sample); its counter names the use, the output position and the
step. So a row's noise is the same alone or in a batch, on any backend and platform. Raw 64-bit words are
turned into numbers here, because NumPy promises the bit generator's stream for ever but not that of its
distributions.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_WORD = (1 << 64) - 1
# Uses of noise. A new one gets a new number; numbers are never given again, or seeds would change their
# meaning.
TOKEN, RENOISE, COIN, POSTERIOR, ORDER, TIME, REMASK, START = range(8)


@dataclass(frozen=True)
class NoiseKey:
    """seed: what a person gives; sample: which of several answers to one request. Any integers; taken modulo
    2^64."""

    seed: int
    sample: int = 0


def _raw(key: NoiseKey, first: int, position: int, step: int, use: int, count: int) -> np.ndarray:
    counter = np.array([first & _WORD, position & _WORD, step & _WORD, use], dtype=np.uint64)
    words = np.array([key.seed & _WORD, key.sample & _WORD], dtype=np.uint64)
    return np.random.Philox(key=words, counter=counter).random_raw(count)


def _unit(raw: np.ndarray) -> np.ndarray:
    """float64 in (0, 1), never 0 and never 1: 52 random bits and a half."""
    return ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def uniforms(key: NoiseKey, position: int, count: int, step: int, use: int) -> np.ndarray:
    """float64 [count]: one number in (0, 1) for each output position from `position` on. A position's number
    does not depend on where the canvas starts: Philox makes four words a counter, and each position has a
    counter of its own."""
    return _unit(_raw(key, position, 0, step, use, 4 * count)[::4])


def _gumbel(raw: np.ndarray) -> np.ndarray:
    return -np.log(-np.log(_unit(raw)))


class _Cache:
    """The noise rows used last, up to a number of bytes. Only saves time: a row is a function of its name."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._rows: OrderedDict[tuple[NoiseKey, int, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def row(self, name: tuple[NoiseKey, int, int], make: Callable[[], np.ndarray]) -> np.ndarray:
        with self._lock:
            if name in self._rows:
                self._rows.move_to_end(name)
                return self._rows[name]
        made = make()
        made.flags.writeable = False
        with self._lock:
            if name not in self._rows:
                self._rows[name] = made
                self._held += made.nbytes
            while self._held > self._limit and len(self._rows) > 1:
                self._held -= self._rows.popitem(last=False)[1].nbytes
        return made


_cache = _Cache(limit=32 << 20)


def gumbel(key: NoiseKey, position: int, vocab_size: int) -> np.ndarray:
    """float64 [vocab_size], read-only: the Gumbel noise of one output position, the same at every step and in
    every decode mode, so that argmax(logits + noise) is one draw from softmax(logits) however often it is
    asked for.

    float64, because float32 noise cuts off the tail and thereby lowers the entropy of what is drawn.
    """
    name = (key, position, vocab_size)
    return _cache.row(name, lambda: _gumbel(_raw(key, 0, position, 0, TOKEN, vocab_size)))


def step_gumbel(key: NoiseKey, positions: np.ndarray, step: int, size: int) -> np.ndarray:
    """float64 [rows, size]: noise for draws that must be fresh at every step (the posterior of a process
    whose slots are drawn again and again)."""
    rows = [_gumbel(_raw(key, 0, int(position), step, POSTERIOR, size)) for position in positions]
    return np.stack(rows) if rows else np.zeros((0, size))


def random_tokens(
    key: NoiseKey, position: int, count: int, step: int, vocab_size: int, mask_id: int | None
) -> np.ndarray:
    """int64 [count]: uniform over the vocabulary without the mask, one for each output position from
    `position` on."""
    size = vocab_size - (mask_id is not None)
    tokens = np.floor(uniforms(key, position, count, step, RENOISE) * size).astype(np.int64)
    return tokens if mask_id is None else tokens + (tokens >= mask_id)
