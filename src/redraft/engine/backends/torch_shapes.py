"""The fixed shapes of recorded evaluations, and the integers that tell one what it works on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.layouts import canvas_start, clean_start
from redraft.engine.backend import Pass
from redraft.engine.backends.torch_pool import ROW_BLOCK, SCRATCH
from redraft.errors import RedraftError

LEAST_WANTED = 16  # logits of fewer rows cost as much as of so many
PACKING_PAYS = (
    0.75  # share of a grid's places that rows may fill at most, for the copies that a list of them costs
)


@dataclass(frozen=True)
class Bucket:
    """rows: of all passes together; lanes by columns: the grid that attention sees; context: rows of each lane that are
    read; wanted: rows whose logits come back; drafts: whether any row is a canvas's. seated: lanes are the first ones
    of the pool; otherwise they are named one by one and copied."""

    rows: int
    lanes: int
    columns: int
    context: int
    wanted: int
    drafts: bool
    seated: bool

    @property
    def packed(self) -> bool:
        """Whether the rows are a list of their own, and not the grid's places as they lie."""
        return self.rows != self.lanes * self.columns


def size_up(count: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24 … that holds `count`: powers of two and what lies halfway between."""
    power = 1 << max(0, count - 1).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


def bucket_for(config: DenoiserConfig, passes: Sequence[Pass], pool_rows: int, seated: bool) -> Bucket:
    """The shape that these passes are filled up to, in a pool with so many rows a lane."""
    counts = [len(p.encode) + p.slots for p in passes]
    lanes, columns = 1 << (len(passes) - 1).bit_length(), size_up(max(counts))
    rows = size_up(sum(counts))
    if rows > PACKING_PAYS * lanes * columns:
        rows = lanes * columns
    longest = max(p.context.length + count for p, count in zip(passes, counts, strict=True))
    context = min(size_up(-(-longest // ROW_BLOCK)) * ROW_BLOCK, pool_rows, config.max_position_embeddings)
    wanted = size_up(max(sum(_wanted(p) for p in passes), min(rows, LEAST_WANTED)))
    drafts = any(p.canvas is not None for p in passes)
    return Bucket(rows, lanes, columns, context, wanted, drafts, seated)


def _wanted(p: Pass) -> int:
    """How many rows of logits a pass asks for."""
    encode = {"none": 0, "last": min(1, len(p.encode)), "all": len(p.encode)}[p.encode_logits]
    return encode + len(p.wanted)


class Fields:
    """Where in one int64 vector each input of a bucket lies.

    Of each row: token, position, cell (of the pool, a lane after another), canvas and locked (0 or 1), and if packed
    its place on the grid. Of each place: start, low, high, what it may attend to, and if packed its row. Of each lane
    that is not seated: its number in the pool. wanted: rows of the list, or cells where hidden states are kept there.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        places = bucket.lanes * bucket.columns
        sizes = dict.fromkeys(("token", "position", "cell", "canvas", "locked"), bucket.rows)
        sizes |= dict.fromkeys(("start", "low", "high"), places)
        if bucket.packed:
            sizes |= {"place": bucket.rows, "grid": places}
        if not bucket.seated:
            sizes["lane"] = bucket.lanes
        sizes["wanted"] = bucket.wanted
        self._sizes = sizes

    @cached_property
    def size(self) -> int:
        return sum(self._sizes.values())

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """The fields of a device's vector."""
        return dict(zip(self._sizes, vector.split(list(self._sizes.values())), strict=True))

    def arrays(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The fields of int64 [size], as views."""
        ends = np.cumsum(list(self._sizes.values()))
        return dict(zip(self._sizes, np.split(vector, ends[:-1]), strict=True))

    def first_rows(self, passes: Sequence[Pass], lanes: Sequence[int]) -> list[int]:
        """The row at which each pass begins; lanes: where its context sits."""
        if not self.bucket.packed:
            return [b * self.bucket.columns for b in self._grid_lanes(lanes)]
        counts = [len(p.encode) + p.slots for p in passes]
        return [0, *np.cumsum(counts[:-1]).tolist()]

    def _grid_lanes(self, lanes: Sequence[int]) -> Sequence[int]:
        return lanes if self.bucket.seated else range(len(lanes))


def fill(
    fields: Fields,
    config: DenoiserConfig,
    passes: Sequence[Pass],
    lanes: Sequence[int],
    pool_rows: int,
    vector: np.ndarray,
) -> list[int]:
    """Writes into int64 `vector` what an evaluation reads; how many rows of logits each pass gets, in their order.

    Rows that only fill the shape up are token 0 in the scratch lane; places without a row see one key.
    """
    vector.fill(0)
    given, bucket = fields.arrays(vector), fields.bucket
    given["start"].fill(1)
    if not bucket.seated:
        given["lane"][: len(lanes)] = np.array(lanes) + SCRATCH
    wanted: list[np.ndarray] = []
    grid_lanes = fields._grid_lanes(lanes)
    for p, first, lane, b in zip(passes, fields.first_rows(passes, lanes), lanes, grid_lanes, strict=True):
        length, encoded = p.context.length, len(p.encode)
        count, middle = encoded + p.slots, first + encoded
        end, cell = first + count, (lane + SCRATCH) * pool_rows + length
        given["token"][first:middle] = p.encode
        given["position"][first:middle] = np.arange(length, length + encoded)
        given["cell"][first:end] = np.arange(cell, cell + count)
        if p.canvas is not None:
            given["token"][middle:end], given["position"][middle:end] = p.canvas, p.slot_positions
            given["canvas"][middle:end] = 1
            if p.locked is not None:
                given["locked"][middle:end] = p.locked
        at = b * bucket.columns
        if bucket.packed:
            given["place"][first:end] = np.arange(at, at + count)
            given["grid"][at : at + count] = np.arange(first, end)
        start, low, high = visibility(config, p)
        own = slice(at, at + count)
        given["start"][own], given["low"][own], given["high"][own] = start, low, high
        rows = wanted_rows(config, p)
        wanted.append(rows + (cell if config.shift else first))
    flat = np.concatenate(wanted)
    given["wanted"][: len(flat)] = flat
    return [len(rows) for rows in wanted]


def visibility(config: DenoiserConfig, p: Pass) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start, low, high), int64 [rows] each: a row of the pass sees the lane's rows before `start` and those from `low`
    on before `high`. The rule of `layouts.allowed`, for rows in this order: the context, clean ones, canvases."""
    length, encoded, slots = p.context.length, len(p.encode), p.slots
    anchor = length + encoded
    start = np.empty(encoded + slots, np.int64)
    low, high = np.zeros_like(start), np.zeros_like(start)
    own = np.arange(length, anchor)
    start[:encoded] = np.minimum(clean_start(config.layout, own, config.canvas_length), anchor)
    if slots:
        begins = np.array(p.starts)
        each = slots // len(begins)
        starts = canvas_start(config.layout, length + begins, config.canvas_length)
        start[encoded:] = np.repeat(starts, each)
        low[encoded:] = np.repeat(anchor + each * np.arange(len(begins)), each)
        high[encoded:] = low[encoded:] + each
    return start, low, high


def wanted_rows(config: DenoiserConfig, p: Pass) -> np.ndarray:
    """int64: rows of the pass, counted from its first, whose logits it asks for, clean ones first. With a shift a
    canvas's first slot is predicted by the row before it: -1 where the context holds that; where nothing comes before,
    the first row's guess stands in, as in Dream."""
    encoded = len(p.encode)
    first = {"none": encoded, "last": max(0, encoded - 1), "all": 0}[p.encode_logits]
    parts = [np.arange(first, encoded)]
    if p.canvas is not None:
        slots = p.wanted
        if config.shift:
            before = p.before(slots)
            parts.append(before if p.context.length else np.maximum(before, 0))
        else:
            parts.append(encoded + slots)
    return np.concatenate(parts)


def rounds(passes: Sequence[Pass]) -> list[list[int]]:
    """Numbers of the passes that can run at once together: a context is in each round once. Raises RedraftError where a
    context would be extended by one pass and read by another."""
    uses, turns = Counter(id(p.context) for p in passes), Counter[int]()
    out: list[list[int]] = []
    for i, p in enumerate(passes):
        if len(p.encode) and uses[id(p.context)] > 1:
            raise RedraftError("a context can't be extended by a pass and read by another in the same call")
        turn = turns[id(p.context)]
        turns[id(p.context)] += 1
        if turn == len(out):
            out.append([])
        out[turn].append(i)
    return out
