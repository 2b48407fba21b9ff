"""From logits to the logits a token is drawn from: one function for every decode mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from redraft.errors import RedraftError, RequestError
from redraft.sampling.noise import NoiseKey, gumbel

if TYPE_CHECKING:
    from redraft.sampling.settings import SlotVocabulary, WarpSettings

_HEAD = 256  # tokens that top-p sorts before it sorts them all


def bend(
    logits: np.ndarray,
    settings: WarpSettings,
    chosen: Sequence[int] | np.ndarray = (),
    allowed: np.ndarray | None = None,
    banned: Sequence[int] = (),
    dtype: Any = None,
) -> np.ndarray:
    """The part of `warp` that is left at temperature 0: bias, penalties, forbidden tokens at -inf. A new
    array of shape [..., V] and the same dtype, or `dtype`. Raises RedraftError when nothing remains to be chosen."""
    out = np.array(logits, dtype=dtype, copy=True)
    for token, bias in settings.logit_bias:
        if token >= out.shape[-1]:
            raise RequestError(f"logit_bias names token {token}; the vocabulary has {out.shape[-1]}")
        out[..., token] += bias
    if settings.penalises and len(chosen):
        _penalise(out, settings, np.asarray(chosen, dtype=np.int64))
    if allowed is not None:
        out[~np.broadcast_to(allowed, out.shape)] = -np.inf
    for token in banned:  # few: an index array would take longer
        out[..., token] = -np.inf
    if allowed is not None and (out == -np.inf).all(axis=-1).any():
        raise RedraftError(
            "no token is allowed at this place: the grammar and the banned tokens exclude every one"
        )
    return out


def _penalise(out: np.ndarray, settings: WarpSettings, chosen: np.ndarray) -> None:
    tokens, counts = np.unique(chosen, return_counts=True)
    values = out[..., tokens]
    penalty = settings.repetition_penalty
    values = np.where(values > 0, values / penalty, values * penalty)
    values -= settings.frequency_penalty * counts + settings.presence_penalty
    out[..., tokens] = values


def warp(
    logits: np.ndarray,
    settings: WarpSettings,
    chosen: Sequence[int] | np.ndarray = (),
    allowed: np.ndarray | None = None,
    banned: Sequence[int] = (),
    temperature: float | None = None,
) -> np.ndarray:
    """float64 [..., V] logits of the distribution a token is drawn from; what cannot be drawn is at -inf.

    In order: logit bias, penalties over the tokens chosen so far, allowed tokens (bool [V] or [..., V], a
    grammar's hook), banned tokens, temperature, top-k, top-p. The best token always survives. temperature
    overrides the settings'; at 0 only the first half applies, since the argmax is taken. Ties at the edge of
    top-k all stay.
    """
    bent = bend(logits, settings, chosen, allowed, banned, np.float64)
    temperature = settings.temperature if temperature is None else temperature
    return bent if temperature == 0.0 else sharpen(bent, settings, temperature)


def sharpen(bent: np.ndarray, settings: WarpSettings, temperature: float) -> np.ndarray:
    """The second half of `warp`: temperature (above 0), top-k and top-p. A new float64 array [..., V]."""
    out = np.asarray(bent, dtype=np.float64) / temperature
    if 0 < settings.top_k < out.shape[-1]:
        edge = np.partition(out, -settings.top_k, axis=-1)[..., -settings.top_k, None]
        out[out < edge] = -np.inf
    if settings.top_p < 1.0:
        _nucleus(out, settings.top_p)
    return out


def _nucleus(out: np.ndarray, top_p: float) -> None:
    """Keeps the most probable tokens until their mass reaches top_p (Holtzman et al. 2020), and what ties
    with the last of them, so that the result depends on the values alone and not on an order of sorting."""
    flat = out.reshape(-1, out.shape[-1])
    top = flat.max(axis=-1, keepdims=True)
    total = np.exp(flat - top).sum(axis=-1)
    edge = np.empty(len(flat))
    left = np.arange(len(flat))
    for size in (
        min(_HEAD, flat.shape[-1]),
        flat.shape[-1],
    ):  # the nucleus is nearly always short: sort a head first
        ranked = -np.sort(-np.partition(flat[left], -size, axis=-1)[:, -size:], axis=-1)
        mass = np.exp(ranked - top[left]) / total[left, None]
        count = (np.cumsum(mass, axis=-1) - mass < top_p).sum(axis=-1)
        edge[left] = ranked[np.arange(len(left)), count - 1]
        left = left[(count == size) & (size < flat.shape[-1])]
        if not len(left):
            break
    flat[flat < edge[:, None]] = -np.inf
    out[...] = flat.reshape(out.shape)


def untouched_argmax(
    logits: np.ndarray, settings: WarpSettings, banned: Sequence[int] = ()
) -> np.ndarray | None:
    """int64 [k]: the argmax of bend(logits [k, V]), for settings without penalties, when bias and bans can't have
    changed it; None when they may have. A copy of a vocabulary is saved where, as nearly always, no row's best
    token is one of them."""
    top: np.ndarray = logits.argmax(axis=-1)
    best = top.tolist()
    for token in banned:
        if token in best:
            return None
    for token, bias in settings.logit_bias:
        if bias > 0 or token in best:
            return None
    return top


def choose(
    logits: np.ndarray,
    settings: WarpSettings,
    vocabulary: SlotVocabulary,
    key: NoiseKey,
    position: int,
    chosen: Sequence[int] | np.ndarray = (),
    allowed: np.ndarray | None = None,
    guess: int | None = None,
    ratio: float = 1.0,
) -> int:
    """AR's token at output position `position`, from logits [V]: argmax(warp(logits) + gumbel), the plain
    argmax at temperature 0. Never the mask, a null or a banned token. A `guess` stands in its place where it has at
    least `ratio` of its probability, exp(warp + gumbel) compared (1: only where it is that token). Raises
    RedraftError for logits that are not numbers."""
    banned = vocabulary.never_text
    if settings.temperature == 0.0 and allowed is None and not settings.penalises:
        top = untouched_argmax(logits[None], settings, banned)
        if top is not None and math.isfinite(highest := float(logits[top[0]])):
            if ratio == 1.0 or guess is None or guess == top[0]:
                return int(top[0])
            if not settings.logit_bias:  # as below, without a copy of the vocabulary
                near = guess not in banned and float(logits[guess]) >= highest + math.log(ratio)
                return guess if near else int(top[0])
    warped = warp(logits, settings, chosen, allowed, banned)
    best = int(warped.argmax())
    if not math.isfinite(warped[best]):
        raise RedraftError("the network returned logits that are not finite numbers")
    if settings.temperature > 0.0:
        warped = warped + gumbel(key, position, vocabulary.vocab_size)
        best = int(warped.argmax())
    if guess is not None and ratio < 1.0 and warped[guess] >= warped[best] + math.log(ratio):
        return guess
    return best
