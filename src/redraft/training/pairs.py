"""Canvases that start from text to be changed: a corpus of them, and the noise that comes on top.

Beside its documents such a corpus holds, for each canvas length C, `train.canvases-C.npy`: int32 [n, 2 + 2C], a row a
canvas, by rising document: the document, the anchor (the token of it where the canvas starts), C noisy slots and C
target slots. A target of -1 is a slot behind the end of the text, locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from redraft.corruption import Process
from redraft.errors import RequestError
from redraft.training.canvases import Canvases
from redraft.training.data import Corpus
from redraft.training.packing import Row

OUTSIDE = -1


class EditCorpus(Corpus):
    """A prepared split whose canvases are given. Raises RequestError where those of a length are missing."""

    def __init__(self, folder: str | Path, split: str, lengths: Sequence[int]) -> None:
        super().__init__(folder, split)
        self._canvases: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for length in lengths:
            path = canvases_file(Path(folder), split, length)
            try:
                rows = np.load(path, mmap_mode="r")
            except FileNotFoundError:
                raise RequestError(
                    f"{folder} holds no edits in canvases of {length} slots; remove it, and training makes it anew"
                ) from None
            except (OSError, EOFError, ValueError) as error:
                raise RequestError(
                    f"{path} can't be read ({error}); remove {folder} to have it made anew"
                ) from None
            if rows.ndim != 2 or rows.shape[1] != 2 + 2 * length:
                raise RequestError(f"{path} holds no canvases; remove {folder} to have it made anew")
            first = np.searchsorted(rows[:, 0], np.arange(len(self) + 1))
            self._canvases[length] = rows, first

    def canvases(self, document: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a document: anchors int64 [n], noisy and target int64 [n, length]."""
        rows, first = self._canvases[length]
        own = rows[first[document] : first[document + 1]].astype(np.int64)
        return own[:, 1], own[:, 2 : 2 + length], own[:, 2 + length :]


def canvases_file(folder: Path, split: str, length: int) -> Path:
    return folder / f"{split}.canvases-{length}.npy"


def lay_pairs(
    row: Row, corpus: EditCorpus, count: int, length: int, null_id: int, rng: np.random.Generator
) -> tuple[Canvases, np.ndarray]:
    """The row's canvases, `count` of them drawn evenly when there are more, and what they start from, int64
    [count, length]. A canvas is used where all of its text is in the row; when there are fewer they come again, for
    other noise: the room would be computed all the same."""
    found: list[tuple[int, int, np.ndarray, np.ndarray]] = []
    for number, piece in enumerate(row.pieces):
        anchors, noisy, target = corpus.canvases(piece.document, length)
        ends = anchors + ((target != null_id) & (target != OUTSIDE)).sum(1)
        for i in np.flatnonzero((anchors >= piece.first) & (ends <= piece.last)).tolist():
            found.append((number, int(anchors[i]) - piece.first, noisy[i], target[i]))
    if len(found) > count:
        found = [found[i] for i in np.sort(rng.choice(len(found), count, replace=False))]
    found = list(islice(cycle(found), count))
    start = np.full((count, length), null_id, np.int64)
    goal = start.copy()
    owner, anchor = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    for slot, (number, at, noisy_slots, target_slots) in enumerate(found):
        owner[slot], anchor[slot], start[slot], goal[slot] = number, at, noisy_slots, target_slots
    locked = goal == OUTSIDE
    goal = np.where(locked, null_id, goal)
    return Canvases(goal, locked, owner, anchor, np.zeros(count, bool)), start


def corrupt_pairs(
    canvases: Canvases,
    start: np.ndarray,
    t: np.ndarray,
    copies: int,
    process: Process,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy copies [copies * N, C] and their times [copies * N].

    One of two copies is the text as it stands (time 0): what is wrong must be found. The other is what a second step
    meets: each slot hidden with chance t, a wrong one with (1 + t) / 2. A single copy is either, by a coin.
    """
    wrong = start != canvases.target
    chance = np.where(wrong, (1 + t[:, None]) / 2, t[:, None])
    hide = (rng.random(start.shape) < chance) & ~canvases.locked
    hidden = np.where(hide, process.prior(start.shape, rng), start)
    zero = np.zeros_like(t)
    if copies == 2:
        return np.concatenate((start, hidden)), np.concatenate((zero, t))
    asis = rng.random(len(t)) < 0.5
    return np.where(asis[:, None], start, hidden), np.where(asis, zero, t)
