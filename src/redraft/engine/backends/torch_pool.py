"""Keys and values for recorded evaluations: one block of memory that stays where it is, a lane of it for each context.

A recorded CUDA graph reads and writes the addresses that it was recorded with. So contexts own no memory: they sit in
lanes, and an evaluation on n lanes reads the first n. Who must be among those and isn't trades places, once, when the
company changes.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.backend import check_room

ROW_BLOCK = 128  # rows of a lane are a multiple of it
SCRATCH = 1  # lanes before the first: rows that fill a shape up are written there


@dataclass(eq=False)
class Seat:
    """A context's place, counted from 0 behind the scratch lane."""

    lane: int


class Pool:
    """keys, values [layers, scratch + lanes, rows, kv_heads, head_dim]; hidden [scratch + lanes, rows, hidden], states
    after the last norm, for models whose canvas rows predict what follows them (of size 0 for others).

    generation: grows when the memory moves, and with it everything that was recorded becomes worthless.
    """

    def __init__(self, config: DenoiserConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.generation = config, 0
        self._lane = config.num_key_value_heads, config.head_dim
        self._free: list[int] = []
        self._left: deque[Seat] = deque()  # contexts may go at any time, also while lanes are being moved
        self._seats: dict[int, Seat] = {}
        shape = (config.num_hidden_layers, SCRATCH, ROW_BLOCK, *self._lane)
        # Zeros: what nobody wrote gets probability 0, but 0 times NaN would be NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        width = config.hidden_size if config.shift else 0
        self.hidden = torch.zeros((SCRATCH, ROW_BLOCK, width), dtype=dtype, device=device)

    @property
    def lanes(self) -> int:
        return self.keys.shape[1] - SCRATCH

    @property
    def rows(self) -> int:
        return self.keys.shape[2]

    def take(self, rows: int) -> Seat:
        """A seat in a lane of at least `rows` rows. The pool grows, by doubling, when there's none."""
        self._clear()
        lanes = self.lanes if self._free else max(1, 2 * self.lanes)
        self.grow(lanes, rows)
        seat = Seat(self._free.pop(0))
        self._seats[seat.lane] = seat
        return seat

    def leave(self, seat: Seat) -> None:
        """Gives a seat back; it counts as free from the next call on that needs one."""
        self._left.append(seat)

    def _clear(self) -> None:
        while self._left:
            lane = self._left.popleft().lane
            del self._seats[lane]
            self._free = sorted((*self._free, lane))

    def grow(self, lanes: int, rows: int) -> None:
        """At least so many lanes and rows; rows at least double, up to the model's positions."""
        lanes, have = max(lanes, self.lanes), self.rows
        if rows > have:
            most = _round_up(self.config.max_position_embeddings)
            rows = min(max(_round_up(rows), 2 * have), max(most, have))
        if lanes == self.lanes and rows <= have:
            return
        rows = max(rows, have)
        with torch.inference_mode():
            self.keys, self.values = (_enlarged(t, 1, lanes, rows) for t in (self.keys, self.values))
            self._free += range(len(self._free) + len(self._seats), lanes)
            self.hidden = _enlarged(self.hidden, 0, lanes, rows)
        self.generation += 1

    def bring_forward(self, seats: Collection[Seat], lanes: int) -> None:
        """Moves these into the first `lanes` lanes, of which there must be as many as seats at least."""
        self._clear()
        taken = {seat.lane for seat in seats}
        open_lanes = [lane for lane in range(lanes) if lane not in taken]
        for seat in seats:
            if seat.lane >= lanes:
                self._trade(seat, open_lanes.pop(0))

    def _trade(self, seat: Seat, lane: int) -> None:
        """Moves into a lane; who sits there takes the other one."""
        own, other = seat.lane, self._seats.get(lane)
        mine, theirs = own + SCRATCH, lane + SCRATCH
        with torch.inference_mode():
            for tensor in (self.keys.transpose(0, 1), self.values.transpose(0, 1), self.hidden):
                moved = tensor[mine].clone()
                if other is not None:
                    tensor[mine] = tensor[theirs]
                tensor[theirs] = moved
        seat.lane, self._seats[lane] = lane, seat
        if other is None:
            del self._seats[own]
            self._free = sorted((own, *(free for free in self._free if free != lane)))
        else:
            other.lane, self._seats[own] = own, other


class StaticContext:
    """Committed tokens of one request: the first `length` rows of its lane. The lane goes back when nobody holds the
    context."""

    def __init__(self, pool: Pool, capacity: int) -> None:
        self.pool, self.limit = pool, pool.config.max_position_embeddings
        self.seat = pool.take(max(1, min(capacity, self.limit)))
        self._length = 0
        weakref.finalize(self, pool.leave, self.seat)

    @property
    def length(self) -> int:
        return self._length

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on; their memory stays."""
        if length < self._length:
            self._length = max(0, length)

    @torch.inference_mode()
    def copy(self, other: StaticContext, length: int) -> None:
        """Takes over the first `length` tokens of another context; this one holds none yet."""
        self.reserve(length)
        own, theirs = self.seat.lane + SCRATCH, other.seat.lane + SCRATCH
        pool, others = self.pool, other.pool
        pool.keys[:, own, :length] = others.keys[:, theirs, :length]
        pool.values[:, own, :length] = others.values[:, theirs, :length]
        pool.hidden[own, :length] = others.hidden[theirs, :length]
        self._length = length

    def extend(self, rows: int) -> None:
        """Counts `rows` rows that a pass has written as clean tokens."""
        self._length += rows

    def reserve(self, rows: int) -> None:
        """Makes room for `rows` more rows. Raises RequestError past the model's positions."""
        check_room(self._length, rows, self.limit)
        self.pool.grow(self.pool.lanes, self._length + rows)


def _round_up(rows: int) -> int:
    return -(-rows // ROW_BLOCK) * ROW_BLOCK


def _enlarged(tensor: Tensor, axis: int, lanes: int, rows: int) -> Tensor:
    """A copy with so many lanes behind the scratch one, along `axis`, and rows along the next; zeros where new."""
    shape = list(tensor.shape)
    shape[axis], shape[axis + 1] = SCRATCH + lanes, rows
    out = tensor.new_zeros(shape)
    out.narrow(axis, 0, tensor.shape[axis]).narrow(axis + 1, 0, tensor.shape[axis + 1]).copy_(tensor)
    return out
