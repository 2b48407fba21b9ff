"""What the engine tells while it writes. The terminal, streams, pages and tests all read these same
events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.sampling.state import SlotState

__all__ = ["Commit", "SlotState", "Step"]


@dataclass(frozen=True)
class Step:
    """The canvas after one denoising step.

    canvas: which canvas of this request, from 0. step: steps taken on it so far. position: tokens of output
    committed before it. tokens int64 [C] (what a person should see: the settled tokens, and the model's
    current choice for the rest), state uint8 [C] of SlotState, probability and entropy (nats) float32 [C].
    nfe: the request's network evaluations so far.
    """

    canvas: int
    step: int
    position: int
    tokens: np.ndarray
    state: np.ndarray
    probability: np.ndarray
    entropy: np.ndarray
    nfe: int


@dataclass(frozen=True)
class Commit:
    """Tokens that joined the output: nulls dropped, cut at EOS. finish_reason: "stop", "length" or None (goes
    on). ar_nll: of a canvas that was a trial, whose tokens joined nothing: -log p in nats, by the AR self, of them and
    of what was given behind them."""

    canvas: int
    tokens: tuple[int, ...]
    nfe: int
    finish_reason: str | None = None
    ar_nll: float | None = None
