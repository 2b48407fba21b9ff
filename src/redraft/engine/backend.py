"""What the engine asks of a network, numpy in and numpy out; backends/ has one file for each way to run
it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.errors import RequestError
from redraft.sampling.heads import DraftHeads


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

    branches: the slots are as many canvases of one length side by side, each blind to the others; number i stands
    behind the first branches[i] (1 or more) of the tokens to encode, and sees no later ones. None: one canvas behind
    them all. For models with causal context. (One canvas for each length a draft may be accepted at: TiDAR, arXiv
    2511.08923.)

    ahead: for models with a shift: each canvas has one slot more than `canvas` has rows for it, the one that its last
    row predicts; `canvas_rows` counts it.
    """

    context: Context
    encode: np.ndarray
    encode_logits: Literal["none", "last", "all"] = "none"
    canvas: np.ndarray | None = None
    locked: np.ndarray | None = None
    canvas_rows: np.ndarray | None = None
    expected: np.ndarray | None = None
    branches: tuple[int, ...] | None = None
    ahead: bool = False

    @property
    def slots(self) -> int:
        """Canvas rows, of all branches together."""
        return 0 if self.canvas is None else len(self.canvas)

    @property
    def starts(self) -> tuple[int, ...]:
        """Behind how many of the encoded tokens each canvas stands."""
        return (len(self.encode),) if self.branches is None else self.branches

    @property
    def wanted(self) -> np.ndarray:
        """int64 [k]: the slots whose logits are wanted, counted through all canvases."""
        if self.canvas_rows is None:
            return np.arange(self.slots + (len(self.starts) if self.ahead and self.slots else 0))
        return np.asarray(self.canvas_rows, np.int64)

    @property
    def slot_positions(self) -> np.ndarray:
        """int64 [C]: the position in the text of each slot that has a row."""
        each = np.arange(self.slots // len(self.starts))
        return (self.context.length + np.array(self.starts)[:, None] + each).reshape(-1)

    def before(self, slots: np.ndarray) -> np.ndarray:
        """With a shift: the rows of this pass, counted from its first, that predict these slots: int64. A canvas's
        first slot is predicted by the clean row before it, -1 where the context holds that."""
        rows = self.slots // len(self.starts)
        number, place = np.divmod(slots, rows + self.ahead)
        first = np.array(self.starts)[number] - 1
        return np.where(place == 0, first, len(self.encode) + number * rows + place - 1)


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

    @property
    def heads(self) -> DraftHeads | None:
        """What goes over the logits of a canvas that drafts; of adapters that have such."""
        ...

    def new_context(self, capacity: int) -> Context: ...

    def forward(self, passes: Sequence[Pass]) -> list[PassResult]: ...


def check_room(length: int, rows: int, limit: int) -> None:
    """Raises RequestError when `rows` more than a context's `length` don't fit the model's positions."""
    if length + rows > limit:
        raise RequestError(
            f"{length + rows} tokens don't fit into the context of {limit}: shorten the prompt"
        )
