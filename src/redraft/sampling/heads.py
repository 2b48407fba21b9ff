"""Heads behind a canvas, in numpy: what its logits become when a slot is told the token before it, and how likely a
draft is to be accepted. See denoiser.heads for what they are; here they need nothing but logits.

A row's hidden state h isn't asked for. The confidence head is linear in it, and so are the logits H h: some of them,
weighted so that Hᵀ c is the head's own vector, are that vector times h (exactly, where these rows of H span the space).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from redraft.errors import RedraftError, RequestError
from redraft.sampling.canvas import Canvas
from redraft.sampling.reading import drawn, wanted

# Likeliest tokens of a slot that the token before it is weighed into; the rest hardly ever win.
CANDIDATES = 64
GROUPS = 24  # of the vocabulary, for each of these
MOVES = 4096  # tokens whose move is kept
# Rows of H that the confidence is read from, for each number of a hidden state: one would do if they were independent,
# and what 8 bits leave wrong in a logit counts the less the more there are.
READ_FROM = 2
EPSILON = 1e-6  # in rms_norm of an embedding, as in denoiser.heads

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class DraftHeads:
    """float32 arrays. embedding, output: [V, hidden], the base's embeddings and what its hidden states are multiplied
    by for logits. markov_a, markov_b: [r, hidden], confidence_weight: [hidden], the others [places]: as in
    denoiser.heads.Heads, None for a head that there isn't. candidates: tokens of a slot whose logits are corrected."""

    embedding: Array
    output: Array
    markov_a: Array | None = None
    markov_b: Array | None = None
    confidence_weight: Array | None = None
    confidence_bias: Array | None = None
    confidence_scale: Array | None = None
    confidence_shift: Array | None = None
    candidates: int = CANDIDATES
    _moves: dict[int, Array] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, Array],
        embedding: Array,
        output: Array,
        markov_rank: int,
        confident_places: int,
        source: str,
    ) -> DraftHeads | None:
        """From an adapter's tensors, by their names in `Heads`. markov_rank 0: without a Markov head; confident_places:
        slots of a canvas, 0: without a confidence head; None without either. Raises RequestError for heads that don't
        fit the adapter."""
        size = embedding.shape[1]
        due: dict[str, tuple[int, ...]] = {}
        if markov_rank:
            due |= {"markov_A": (markov_rank, size), "markov_B": (markov_rank, size)}
        if confident_places:
            due |= {f"confidence_{part}": (confident_places,) for part in ("bias", "scale", "shift")}
            due["confidence_weight"] = (size,)
        shapes = {name: np.shape(tensors[name]) for name in tensors}
        for name in sorted(due.keys() | shapes.keys()):
            if due.get(name) != shapes.get(name):
                raise RequestError(f"the heads of {source} don't fit the adapter: {name}; train them anew")
        if not due:
            return None
        own: dict[str, Any] = {name.lower(): np.asarray(tensors[name], np.float32) for name in due}
        return cls(embedding, output, **own)

    @property
    def markov(self) -> bool:
        return self.markov_a is not None

    @property
    def confident(self) -> bool:
        return self.confidence_weight is not None

    def move(self, previous: int) -> Array:
        """float32 [hidden]: by what the token before a slot moves the slot's hidden state."""
        moved = self._moves.get(previous)
        if moved is None:
            if len(self._moves) >= MOVES:
                self._moves.clear()
            moved = self._moves[previous] = self._move(previous)
        return moved

    def _move(self, previous: int) -> Array:
        assert self.markov_a is not None
        assert self.markov_b is not None
        own = self.embedding[previous].astype(np.float32)
        normed = own / np.sqrt(own @ own / np.float32(len(own)) + np.float32(EPSILON))
        moved: Array = (self.markov_a @ normed) @ self.markov_b
        return moved

    @cached_property
    def mean_output(self) -> Array:
        """float32 [hidden]: the mean of H's rows."""
        mean: Array = self.output.mean(0)
        return mean

    @cached_property
    def readout(self) -> Array:
        """float32 [m]: of the first m tokens' logits, the weights that make them confidence_weight times the hidden
        state (the shortest such vector)."""
        assert self.confidence_weight is not None
        rows = self.output[: READ_FROM * self.output.shape[1]].astype(np.float64)
        square = rows.T @ rows
        square += 1e-9 * np.trace(square) / len(square) * np.eye(len(square))
        weights: Array = (rows @ np.linalg.solve(square, self.confidence_weight)).astype(np.float32)
        return weights

    def chances(self, slots: Array, logits: Array, moves: Array | None) -> Array:
        """float32 [k]: chances that the drafts of these slots are accepted, each if all before it were. logits: float32
        [k, V], not corrected; moves: float32 [k, hidden], what corrects them, or None."""
        assert self.confidence_weight is not None
        assert self.confidence_bias is not None
        assert self.confidence_scale is not None
        assert self.confidence_shift is not None
        place = np.minimum(slots, len(self.confidence_bias) - 1)
        odds = logits[:, : len(self.readout)] @ self.readout + self.confidence_bias[place]
        if moves is not None:
            odds = odds + moves @ self.confidence_weight
        odds = self.confidence_scale[place] * odds + self.confidence_shift[place]
        chances: Array = 1 / (1 + np.exp(-np.clip(odds, -60, 60)))
        return chances


def draft(
    heads: DraftHeads, canvas: Canvas, logits: Array, previous: int
) -> tuple[Array | None, Array | None]:
    """What the heads make of a canvas's logits: the tokens that its rows are drafted as (int64 [k]; None without a
    Markov head), and their chances (float32 [k]; None without a confidence head).

    logits: float32 [k, V] of the slots that `wanted` names, corrected in place by the token before each: that of a
    settled slot, or the one drawn for the slot before. previous: the token that stands in slot 0, which isn't drafted.
    Raises RedraftError for logits of another shape or that are not numbers.
    """
    slots = wanted(canvas)
    if logits.shape != (len(slots), canvas.vocabulary.vocab_size):
        raise RedraftError(f"logits have shape {logits.shape}; this canvas takes {len(slots)} rows")
    if not heads.markov:
        return None, heads.chances(slots, logits, None) if heads.confident else None
    raw = logits[:, : len(heads.readout)].copy() if heads.confident else logits
    moves = np.zeros((len(slots), heads.embedding.shape[1]), np.float32)
    tokens = np.zeros(len(slots), np.int64)
    row_of = {slot: row for row, slot in enumerate(slots.tolist())}
    dropped = {canvas.vocabulary.mask_id, canvas.vocabulary.null_id}
    for slot in range(len(canvas.tokens)):
        row = row_of.get(slot)
        token = previous if slot == 0 else int(canvas.tokens[slot])
        if row is not None:
            if slot:
                moves[row] = heads.move(previous)
                _correct(logits[row], moves[row], heads)
            tokens[row] = drawn(canvas, logits[row : row + 1], slot)
            token = token if slot == 0 else int(tokens[row])
        if token not in dropped:
            previous = token
    if not np.isfinite(logits[np.arange(len(slots)), tokens]).all():
        raise RedraftError("the network returned logits that are not finite numbers")
    return tokens, heads.chances(slots, raw, moves) if heads.confident else None


def _correct(logits: Array, move: Array, heads: DraftHeads) -> None:
    """Adds H times the move to the largest logits [V], in place; less its mean over all tokens, which stands for what
    the others aren't given (softmax doesn't see what is the same for all)."""
    few = _likeliest(logits, heads.candidates)
    logits[few] += heads.output[few] @ move - heads.mean_output @ move


def _likeliest(logits: Array, count: int) -> Array:
    """int64 [m]: which are the largest of logits [V], at least `count` of them. The edge is the count-th of the maxima
    of `count` groups or more, which is quicker to find than the count-th of all and hardly lower."""
    if len(logits) <= count:
        return np.arange(len(logits))
    groups = min(GROUPS * count, len(logits))
    each = len(logits) // groups
    highest = logits[: groups * each].reshape(each, groups).max(0)
    edge = np.partition(highest, groups - count)[groups - count]
    return np.flatnonzero(logits >= edge)
