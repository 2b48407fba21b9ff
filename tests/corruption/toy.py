"""A data distribution small enough to enumerate, and exact denoisers for it."""

from __future__ import annotations

import itertools

import numpy as np

from redraft.corruption import Process


class Toy:
    """p(x) over all texts of `length` tokens out of range(text); other tokens (a mask) occur in noise
    only."""

    def __init__(self, text: int, length: int, seed: int = 0, sharpness: float = 1.5) -> None:
        self.texts = np.array(list(itertools.product(range(text), repeat=length)))
        weight = np.exp(np.random.default_rng(seed).normal(size=len(self.texts)) * sharpness)
        self.p = weight / weight.sum()

    def noisy(self, process: Process) -> np.ndarray:
        """All x_t, [V^L, L]."""
        return np.array(list(itertools.product(range(process.vocab_size), repeat=self.texts.shape[1])))

    def likelihood(self, process: Process, z: np.ndarray, t: float) -> np.ndarray:
        """q_t(z_i | x_i) for every noisy z, text x and slot i: [Z, X, L]."""
        q = process.marginal(self.texts, t)  # [X, L, V]
        return np.stack([q[:, i, :][:, z[:, i]].T for i in range(z.shape[1])], axis=-1)

    def belief(self, process: Process, z: np.ndarray, t: float, leave_one_out: bool) -> np.ndarray:
        """p(x_i | z) or p(x_i | z without slot i), [Z, L, V], from nothing but Bayes. Impossible z give 0."""
        chance = self.likelihood(process, z, t)
        out = np.zeros((*z.shape, process.vocab_size))
        for i in range(z.shape[1]):
            seen = [j for j in range(z.shape[1]) if j != i or not leave_one_out]
            weight = self.p * chance[:, :, seen].prod(axis=-1)  # [Z, X]
            for token in range(process.vocab_size):
                out[:, i, token] = weight[:, self.texts[:, i] == token].sum(axis=-1)
        return out / np.maximum(out.sum(axis=-1, keepdims=True), 1e-300)


def quadrature(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on (0, 1), crowded at both ends where a root or a logarithm has its corner."""
    node, weight = np.polynomial.legendre.leggauss(count)
    v, w = (node + 1) / 2, weight / 2
    return v**3 * (10 - 15 * v + 6 * v * v), w * 30 * (v * (1 - v)) ** 2
