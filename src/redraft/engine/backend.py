"""What the engine asks of a network, numpy in and numpy out; backends/ has one file for each way to run
it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.errors import RequestError


class Context(Protocol):
    """Committed clean tokens of one request and their keys and values, owned by the backend."""

    @property
    def length(self) -> int: ...

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on."""
        ...

    def copy(self, other: Any, length: int) -> None:
        """Takes over the first `length` tokens of another context of the same backend; this one holds none yet."""
        ...


@dataclass(frozen=True)
class Pass:
    """One request's share of one network evaluation: first encode, then denoise over the context so extended.

    encode: int64 [n] clean tokens to append to the context, or empty. encode_logits: which of their AR logits
    are wanted. canvas: int64 [C] slots at the positions that follow, or None. locked: bool [C]. canvas_rows:
    the slots whose logits are wanted (int64), None for all. expected: float32 [C, V], for self-conditioning.
    """

    context: Context
    encode: np.ndarray
    encode_logits: Literal["none", "last", "all"] = "none"
    canvas: np.ndarray | None = None
    locked: np.ndarray | None = None
    canvas_rows: np.ndarray | None = None
    expected: np.ndarray | None = None


@dataclass(frozen=True)
class PassResult:
    """float32 logits: encode [0 | 1 | n, V] as asked for, canvas [C or rows, V] or None."""

    encode: np.ndarray
    canvas: np.ndarray | None


class Backend(Protocol):
    """Runs passes. A row's result never depends on which other requests share the call (DESIGN decision
    2)."""

    config: DenoiserConfig
    name: str

    def new_context(self, capacity: int) -> Context: ...

    def forward(self, passes: Sequence[Pass]) -> list[PassResult]: ...


def check_room(length: int, rows: int, limit: int) -> None:
    """Raises RequestError when `rows` more than a context's `length` don't fit the model's positions."""
    if length + rows > limit:
        raise RequestError(
            f"{length + rows} tokens don't fit into the context of {limit}: shorten the prompt"
        )
