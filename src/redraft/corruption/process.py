"""The forward process q(x_t | x_0) and all that follows from it, for every corruption in one place.

A corruption is three shares that add up to 1: at time t a token is itself with alpha_t, the mask with mask_t,
and a random token with uniform_t:  q_t(y | x) = alpha_t [y = x] + n_t(y),  n_t(y) = mask_t [y = mask] +
uniform_t/N [y ∈ U], where U are the N tokens that noise may be: all but the mask, unless told otherwise.
Between s < t a token is kept with alpha_t/alpha_s or drawn anew from n_t - (alpha_t/alpha_s) n_s, which makes
the process Markov (GIDD).

Every slot is corrupted on its own, so the functions take tokens of any shape and a time that broadcasts
against it. numpy throughout, float64; `nelbo` and `weight` also take torch tensors and are differentiable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from redraft.corruption.arrays import like, namespace, pick
from redraft.errors import RequestError

Belief = Literal["leave_one_out", "full"]


class Shares(NamedTuple):
    """What a slot holds at time t, or the time derivative of that: floats, arrays or tensors of t's shape."""

    alpha: Any
    mask: Any
    uniform: Any


class Kernel(Protocol):
    """One corruption (absorbing.py, uniform.py, hybrid.py)."""

    def shares(self, t: Any) -> Shares: ...

    def slopes(self, t: Any) -> Shares: ...


@dataclass(frozen=True)
class Process:
    """A corruption over one vocabulary.

    mask_id: None for a vocabulary without one (uniform corruption only). noise_ids: the tokens U that random
    noise may be; None: all but the mask. Raises RequestError when the corruption needs what the vocabulary
    lacks.
    """

    kernel: Kernel
    vocab_size: int
    mask_id: int | None = None
    noise_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.mask_id is None and float(self.kernel.shares(0.5).mask) > 0.0:
            raise RequestError("this corruption needs a mask token and the vocabulary has none: use uniform")
        ids = self.noise_tokens
        if not len(ids) or ids.min() < 0 or ids.max() >= self.vocab_size or self.mask_id in ids:
            raise RequestError("noise_ids must name tokens of the vocabulary other than the mask")

    @cached_property
    def noise_tokens(self) -> np.ndarray:
        """int64 [N]: U, in rising order."""
        ids = range(self.vocab_size) if self.noise_ids is None else sorted(set(self.noise_ids))
        dropped = self.mask_id if self.noise_ids is None else None
        return np.array([i for i in ids if i != dropped], dtype=np.int64)

    @cached_property
    def _is_noise(self) -> np.ndarray:
        """float64 [V]: 1 for the tokens of U."""
        out = np.zeros(self.vocab_size)
        out[self.noise_tokens] = 1.0
        return out

    # Corrupting

    def corrupt(self, x0: np.ndarray, t: Any, rng: np.random.Generator) -> np.ndarray:
        """A draw of x_t, int64 like x0; t broadcasts against x0."""
        return self._place(x0, t, rng.random(np.shape(x0)), self._random(np.shape(x0), rng))

    def coupled_corrupt(
        self, x0: np.ndarray, t: Any, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Two noisy copies, at t and 1 - t, that share one uniform number a slot, as u and 1 - u.

        Each is an exact draw by itself, and together they vary less: absorbing and linear, the masks of one
        are the visible slots of the other, so that two passes supervise every token once.
        """
        u = rng.random(np.shape(x0))
        first = self._place(x0, t, u, self._random(np.shape(x0), rng))
        # 1 - u lies in (0, 1]; 1 itself must stay below every limit that is 1
        second = self._place(
            x0, 1.0 - np.asarray(t), np.nextafter(1.0 - u, 0.0), self._random(np.shape(x0), rng)
        )
        return first, second

    def _random(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return self.noise_tokens[rng.integers(len(self.noise_tokens), size=shape)]

    def _place(self, x0: np.ndarray, t: Any, u: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Mask where u falls into the first mask_t of (0, 1), random in the next uniform_t, else x0."""
        shares = self.kernel.shares(np.asarray(t, dtype=np.float64))
        xt = np.where(u < shares.mask + shares.uniform, noise, x0)
        return xt if self.mask_id is None else np.where(u < shares.mask, self.mask_id, xt)

    def prior(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """int64 tokens to start generation from: x_1 once nothing of x_0 survives."""
        shares = self.kernel.shares(1.0)
        noise = self._random(shape, rng)
        if self.mask_id is None:
            return noise
        masked = rng.random(shape) < shares.mask / (shares.mask + shares.uniform)
        return np.where(masked, self.mask_id, noise)

    # Distributions

    def noise(self, t: Any) -> np.ndarray:
        """float64 [..., V]: n_t, the part of q_t(· | x) that does not depend on x; its sum is 1 - alpha_t."""
        return self._vector(self.kernel.shares(np.asarray(t, dtype=np.float64)))

    def _vector(self, shares: Shares) -> np.ndarray:
        out = np.asarray(shares.uniform)[..., None] / len(self.noise_tokens) * self._is_noise
        if self.mask_id is not None:
            out[..., self.mask_id] += shares.mask
        return out

    def marginal(self, x0: np.ndarray, t: Any) -> np.ndarray:
        """float64 [..., V]: q(x_t | x_0); x0 is int64 tokens [...] or a distribution over them, float [...,
        V]."""
        alpha = np.asarray(self.kernel.shares(np.asarray(t, dtype=np.float64)).alpha)
        return alpha[..., None] * self._distribution(x0) + self.noise(t)

    def transition(self, xs: np.ndarray, s: Any, t: Any) -> np.ndarray:
        """float64 [..., V]: q(x_t | x_s) for s ≤ t; xs is tokens or a distribution."""
        kept, fresh = self._between(s, t)
        return kept[..., None] * self._distribution(xs) + fresh

    def posterior(
        self, xt: np.ndarray, x0: np.ndarray, s: Any, t: Any, belief: Belief = "leave_one_out"
    ) -> np.ndarray:
        """float64 [..., V]: q(x_s | x_t, x_0) for s < t.

        x0: int64 tokens [...], or a network's distribution over them, float [..., V]. Then `belief` says what
        it stands for: "leave_one_out", p(x_0 | all slots but this one), is put in the place of x_0 (UDLM,
        GIDD: what the NELBO teaches); for "full", p(x_0 | all slots), it is the mean of q(x_s | x_t, x_0)
        over x_0 (D3PM: what cross-entropy teaches). At a mask of the absorbing process they are the same. An
        x_t that can't occur at t (text given from outside) tells nothing: then it is q(x_s | x_0).
        """
        beliefs = self._distribution(x0)
        if belief == "full":
            beliefs = self.leave_one_out(beliefs, xt, t)
        kept, fresh = self._between(s, t)
        before = self.marginal(beliefs, s)
        out = pick(np.broadcast_to(fresh, before.shape), xt)[..., None] * before
        here = np.asarray(xt)[..., None]
        stayed = np.take_along_axis(out, here, -1) + kept[..., None] * np.take_along_axis(before, here, -1)
        np.put_along_axis(out, here, stayed, axis=-1)
        total = out.sum(axis=-1, keepdims=True)
        return np.where(total > 0.0, out / np.where(total > 0.0, total, 1.0), before)

    def leave_one_out(self, full: np.ndarray, xt: np.ndarray, t: Any) -> np.ndarray:
        """float64 [..., V]: p(x_0 | all slots but this one) from full = p(x_0 | all slots), by Bayes: divided
        by q(x_t | x_0) and normalised. Where x_t can only come from itself (a visible token, absorbing) it is
        certain."""
        shares = self.kernel.shares(np.asarray(t, dtype=np.float64))
        chance = pick(np.broadcast_to(self._vector(shares), np.shape(full)), xt)[..., None]
        here = np.asarray(xt)[..., None]
        certain = np.arange(self.vocab_size) == here
        itself = np.where(certain, np.asarray(shares.alpha)[..., None], 0.0) + chance
        ratio = np.divide(full, itself, out=np.zeros(np.shape(full)), where=itself > 0.0)
        total = ratio.sum(axis=-1, keepdims=True)
        return np.where(total > 0.0, ratio / np.where(total > 0.0, total, 1.0), certain)

    def _between(self, s: Any, t: Any) -> tuple[np.ndarray, np.ndarray]:
        """alpha_{t|s} [...] and n_{t|s} [..., V]."""
        early = self.kernel.shares(np.asarray(s, dtype=np.float64))
        late = self.kernel.shares(np.asarray(t, dtype=np.float64))
        kept = np.asarray(late.alpha / np.maximum(early.alpha, 1e-300))
        # rounding may leave a difference a hair below 0
        fresh = np.maximum(self._vector(late) - kept[..., None] * self._vector(early), 0.0)
        return kept, fresh

    def _distribution(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x)
        if not np.issubdtype(x.dtype, np.integer):
            return x.astype(np.float64)
        return (x[..., None] == np.arange(self.vocab_size)).astype(np.float64)

    # The bound

    def weight(self, z: Any, x: Any, t: Any) -> Any:
        """w_t(z, x) = [n'(z) - (alpha'/alpha) n(z)]/q_t(z | x), one number a slot: the rate at which noise
        makes z out of a slot at time t, against the chance to see z there. z = x_t and x = x_0, int64 [...];
        t in (0, 1), a float array or tensor that broadcasts against them. 0 where z can't be noise."""
        xp = namespace(t)
        shares, slopes = self.kernel.shares(t), self.kernel.slopes(t)
        noise = self._noise_at(z, shares)
        rate = self._noise_at(z, slopes) - slopes.alpha / shares.alpha * noise
        seen = noise + shares.alpha * (z == x)
        possible = noise > 0.0
        return xp.where(possible, rate / xp.where(possible, seen, 1.0), 0.0)

    def nelbo(self, logprobs: Any, z: Any, x: Any, t: Any) -> Any:
        """The NELBO's integrand in nats, one number a slot: its mean over t ~ U(0, 1) and z ~ q_t(· | x),
        summed over the slots, is at least -log p(x) (the rest of the bound, KL at t = 1 to the prior, is 0
        when alpha_1 = 0).

            w_t(z, x) · [ KL(q_t(· | x) ‖ q_t(· | x_θ)) + r - log r - 1 ],   r = q_t(z | x)/q_t(z | x_θ)

        This is GIDD's bound (von Rütte et al. 2025), which asks nothing of the process but its shares.
        Absorbing it is -a'/(1 - a) · CE at masks and 0 elsewhere; uniform, the closed form of UDLM and Duo.

        logprobs float [..., V]: log x_θ, normalised without the mask, whose entry is not read. z = x_t and x
        = x_0, int64 [...]; t in (0, 1) broadcasts against them. All numpy or all torch; the result has
        logprobs' dtype and is differentiable in it. x_θ stands for p(x_0 | all slots but this one): there the
        bound is least. Beside logprobs at most three arrays of its size live at once, none without random
        tokens.
        """
        xp = namespace(logprobs)
        t = like(t, logprobs)
        shares = self.kernel.shares(t)
        alpha, noise_x, noise_z = shares.alpha, self._noise_at(x, shares), self._noise_at(z, shares)
        text = pick(logprobs, z)
        if self.mask_id is not None:
            text = xp.where(z == self.mask_id, -math.inf, text)
        with np.errstate(divide="ignore"):
            log_alpha = xp.log(alpha)
            log_x = xp.logaddexp(log_alpha + pick(logprobs, x), xp.log(noise_x))
            log_z = xp.logaddexp(log_alpha + text, xp.log(noise_z))
            log_ratio = xp.log(noise_z + alpha * (z == x)) - log_z
        # KL = Σ_U (u/N) log[(u/N)/q(y|x_θ)] over random tokens, plus what x itself adds; the mask's terms
        # cancel
        divergence = _xlogx(alpha + noise_x) - _xlogx(noise_x) - alpha * log_x
        if self._has_random:
            divergence = divergence + self._random_divergence(logprobs, shares)
        return self.weight(z, x, t) * (divergence + xp.exp(log_ratio) - log_ratio - 1.0)

    def _random_divergence(self, logprobs: Any, shares: Shares) -> Any:
        xp, count = namespace(logprobs), len(self.noise_tokens)
        each = shares.uniform / count
        mixed = xp.log(xp.exp(logprobs) * shares.alpha[..., None] + each[..., None])
        if self.noise_ids is not None:
            total = mixed @ like(self._is_noise, logprobs)
        else:
            total = mixed.sum(-1) if self.mask_id is None else mixed.sum(-1) - mixed[..., self.mask_id]
        return each * (count * xp.log(each) - total)

    def _noise_at(self, token: Any, shares: Shares) -> Any:
        """n(token) for each token of an array; of the slopes, n'."""
        if self.noise_ids is not None:
            random = like(self._is_noise, shares.alpha)[token]
        else:
            random = token != (-1 if self.mask_id is None else self.mask_id)
        out = shares.uniform / len(self.noise_tokens) * random
        return out if self.mask_id is None else out + shares.mask * (token == self.mask_id)

    @cached_property
    def _has_random(self) -> bool:
        return float(self.kernel.shares(0.5).uniform) > 0.0


def _xlogx(value: Any) -> Any:
    xp = namespace(value)
    return value * xp.log(xp.where(value > 0.0, value, 1.0))
