"""A training batch: packed clean rows, and the noisy canvases laid over them, as one pass over [x_0 ‖ x_t].

Everything random is drawn from (seed, step, row), so a batch is the same whatever the number of processes and
whenever the run was resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.corruption import Process
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.layouts import Rows as LayoutRows
from redraft.denoiser.layouts import allowed, canvas_start, clean_start
from redraft.training.canvases import Canvases, lay
from redraft.training.data import Corpus
from redraft.training.packing import Row, Rows
from redraft.training.pairs import EditCorpus, corrupt_pairs, lay_pairs
from redraft.training.recipe import Canvas, Mixture


@dataclass(frozen=True)
class Batch:
    """B rows of L clean tokens, each with M = copies * N canvases of C slots.

    clean int64 [B, L]; next_token int64 [B, L], -1 where the AR loss is not taken. noisy, target int64 [B, M, C];
    locked bool [B, M, C]; time float64 [B, M]; canvas_document int64 [B, M], -1 for an unused canvas.
    positions int64 [B, L + M*C]. clean_visible bool [B, L, L]; canvas_visible bool [B, M, C, L + C].
    """

    clean: np.ndarray
    next_token: np.ndarray
    noisy: np.ndarray
    target: np.ndarray
    locked: np.ndarray
    time: np.ndarray
    canvas_document: np.ndarray
    positions: np.ndarray
    clean_visible: np.ndarray
    canvas_visible: np.ndarray

    @property
    def tokens(self) -> int:
        """Clean tokens that are not padding."""
        return int(self.clean_visible.any(-1).sum())


def times(rows: int, first_row: int, total_rows: int, canvases: int, rng: np.random.Generator) -> np.ndarray:
    """t in (0, 1), float64 [rows, canvases]: the part of these rows in one low-discrepancy set over the global batch.

    The copies take t and 1 - t (antithetic). rng must be the step's own, the same for every process.
    """
    count = total_rows * canvases
    grid = (rng.random() + rng.permutation(count)) / count % 1.0
    grid = grid.reshape(total_rows, canvases)[first_row : first_row + rows]
    return np.clip(grid, 1e-3, 1 - 1e-3)


def corrupt_canvases(
    canvases: Canvases, t: np.ndarray, copies: int, process: Process, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy copies [copies * N, C] and their times [copies * N].

    The second copy is the first one's complement, at 1 - t: under a linear absorbing process it shows exactly what
    the first one hides. Of a draft canvas the first copy is at t = 1. Locked slots stay. Every canvas in use has a
    corrupted slot at least.
    """
    first, second = process.coupled_corrupt(canvases.target, t[:, None], rng)
    first = np.where(canvases.draft[:, None], process.prior(first.shape, rng), first)
    drafted = np.where(canvases.draft, 1.0, t)
    noisy = [
        _corrupt_one(np.where(canvases.locked, canvases.target, z), canvases, process, rng)
        for z in (first, second)
    ]
    return np.concatenate(noisy[:copies]), np.concatenate((drafted, 1 - t)[:copies])


def _corrupt_one(z: np.ndarray, canvases: Canvases, process: Process, rng: np.random.Generator) -> np.ndarray:
    """Corrupts one free slot of each canvas that came out untouched, so that no canvas is wasted."""
    rows = np.flatnonzero((z == canvases.target).all(1) & ~canvases.locked.all(1))
    if not len(rows):
        return z
    slots = np.argmax(np.where(canvases.locked[rows], -1.0, rng.random((len(rows), z.shape[1]))), 1)
    fresh = process.prior((len(rows),), rng)
    # A random token may be the right one: then the next one in the vocabulary.
    others = process.noise_tokens
    beside = others[(np.searchsorted(others, fresh) + 1) % len(others)]
    z = z.copy()
    z[rows, slots] = np.where(fresh == canvases.target[rows, slots], beside, fresh)
    return z


def build(
    data: Rows,
    mixture: Sequence[Mixture],
    config: DenoiserConfig,
    process: Process,
    settings: Canvas,
    *,
    step: int,
    rows: range,
    batch_rows: int,
    seed: int,
    length: int | None = None,
) -> Batch:
    """Rows `rows` (of the step's batch_rows) of step `step`. mixture: the corpora of `data`. The AR loss is never taken
    where clean rows see what follows them (block_causal and full layouts).
    length: canvas length; drawn from the settings by default, the same for the whole step."""
    shared = np.random.default_rng((seed, step, 0))
    weights = np.asarray(settings.length_weights, float)
    drawn = int(shared.choice(settings.lengths, p=weights / weights.sum()))
    length = length or drawn
    count = -(-data.row_length // length)
    t = times(len(rows), rows.start, batch_rows, count, shared)
    built = []
    for i, r in enumerate(rows):
        row = data[step * batch_rows + r]
        rng = np.random.default_rng((seed, step, 1 + r))
        source = mixture[row.corpus]
        noise = _lay_noise(
            row, data.corpora[row.corpus], t[i], length, config, process, source.canvas_of(settings), rng
        )
        built.append(_build_row(row, source, *noise, config))
    return Batch(*(np.stack(parts) for parts in zip(*built, strict=True)))


def _lay_noise(
    row: Row,
    corpus: Corpus,
    t: np.ndarray,
    length: int,
    config: DenoiserConfig,
    process: Process,
    settings: Canvas,
    rng: np.random.Generator,
) -> tuple[Canvases, np.ndarray, np.ndarray]:
    """Canvases over the row, `copies` of each, their noisy slots and their times."""
    assert config.null_token_id is not None
    if isinstance(corpus, EditCorpus):
        canvases, start = lay_pairs(row, corpus, len(t), length, config.null_token_id, rng)
        noisy, used_t = corrupt_pairs(canvases, start, t, settings.copies, process, rng)
    else:
        grid = config.layout != "causal_context"
        canvases = lay(row, len(t), length, settings, config.null_token_id, config.eos_token_ids, rng, grid)
        noisy, used_t = corrupt_canvases(canvases, t, settings.copies, process, rng)
    return canvases.repeated(settings.copies), noisy, used_t


def _build_row(
    row: Row,
    source: Mixture,
    tiled: Canvases,
    noisy: np.ndarray,
    used_t: np.ndarray,
    config: DenoiserConfig,
) -> tuple[np.ndarray, ...]:
    length = noisy.shape[1]
    causal = config.layout == "causal_context"
    if source.draft:
        assert config.mask_token_id is not None
        assert config.draft_token_id is not None
        noisy = np.where(noisy == config.mask_token_id, config.draft_token_id, noisy)
    next_token = np.full(len(row.tokens), -1, np.int64)
    if source.ar and causal:
        same = (row.document[1:] == row.document[:-1]) & (row.document[1:] >= 0)
        if source.edits:  # of an instruction only what it leads to
            same &= row.supervise[1:]
        next_token[:-1] = np.where(same, row.tokens[1:], -1)
    slots = tiled.anchor[:, None] + np.arange(length)
    positions = np.concatenate((row.position, slots.reshape(-1)))
    clean_visible, canvas_visible = visibility(row, tiled, length, config.layout)
    return (
        row.tokens,
        next_token,
        noisy,
        tiled.target,
        tiled.locked,
        used_t,
        tiled.document,
        positions,
        clean_visible,
        canvas_visible,
    )


def visibility(row: Row, canvases: Canvases, length: int, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """The layout's predicate for one row: clean [L, L] and, per canvas, [M, C, L + C]."""
    clean = LayoutRows(
        canvas=np.zeros(len(row.tokens), bool),
        document=row.document,
        position=row.position,
        start=clean_start(layout, row.position, length),
        block=np.full(len(row.tokens), -1),
    )
    count = len(canvases.document)

    def per_slot(values: np.ndarray) -> np.ndarray:
        return np.repeat(values[:, None], length, 1)

    noisy = LayoutRows(
        canvas=np.ones((count, length), bool),
        document=per_slot(canvases.document),
        position=canvases.anchor[:, None] + np.arange(length),
        start=per_slot(canvas_start(layout, canvases.anchor, length)),
        block=per_slot(np.arange(count)),
    )
    to_clean = allowed(noisy.queries(), clean.keys())  # [M, C, L]
    to_self = allowed(noisy.queries(), noisy.keys())  # [M, C, C]
    return allowed(clean.queries(), clean.keys()), np.concatenate((to_clean, to_self), -1)
