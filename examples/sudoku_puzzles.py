"""Sudoku puzzles by the million: random grids, puzzles with exactly one solution, and a split that leaks nothing.

Digits are 0 to N - 1, a grid is a flat row of N * N cells. Digging a puzzle out of a grid asks a solver at every
cell and is slow, so a few thousand are dug and then varied: renaming digits and shuffling rows within bands, bands,
columns within stacks and stacks turns a puzzle with one solution into another with one solution.

A grid is held out for testing by a hash of itself with its digits renamed in the order of its first row, so no
test grid is trained on, not even under other names. (Up to all symmetries 6×6 has 49 grids, and 4×4 has 2: there
would be nothing to split.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from redraft.errors import RequestError


@dataclass(frozen=True)
class Board:
    """N × N cells in boxes of `height` × `width`, N = height * width."""

    height: int
    width: int

    @property
    def size(self) -> int:
        return self.height * self.width

    @property
    def cells(self) -> int:
        return self.size**2

    @cached_property
    def groups(self) -> np.ndarray:
        """int64 [3, cells]: each cell's row, column and box, from 0 each."""
        row, column = np.divmod(np.arange(self.cells), self.size)
        return np.stack((row, column, row // self.height * self.height + column // self.width))

    @cached_property
    def _units(self) -> list[tuple[int, int, int]]:
        """Row, column and box of each cell as places in one list of 3 N units."""
        return [(r, self.size + c, 2 * self.size + b) for r, c, b in self.groups.T.tolist()]

    def solutions(self, grid: list[int], rng: np.random.Generator | None = None) -> Iterator[list[int]]:
        """All solutions of a grid with -1 in its open cells, in random order with `rng`: depth first, always at
        the cell with the fewest digits left."""
        taken = [0] * (3 * self.size)  # a bit for each digit that a unit has
        for (r, c, b), digit in zip(self._units, grid, strict=True):
            if digit >= 0:
                bit = 1 << digit
                if (taken[r] | taken[c] | taken[b]) & bit:
                    return
                taken[r], taken[c], taken[b] = taken[r] | bit, taken[c] | bit, taken[b] | bit
        grid = list(grid)
        yield from self._search(grid, [cell for cell in range(self.cells) if grid[cell] < 0], taken, rng)

    def _search(
        self, grid: list[int], open_cells: list[int], taken: list[int], rng: np.random.Generator | None
    ) -> Iterator[list[int]]:
        if not open_cells:
            yield list(grid)
            return
        best, fewest, left = -1, self.size + 1, 0
        for place, cell in enumerate(open_cells):
            r, c, b = self._units[cell]
            free = ~(taken[r] | taken[c] | taken[b]) & ((1 << self.size) - 1)
            count = free.bit_count()
            if count < fewest:
                best, fewest, left = place, count, free
                if count <= 1:
                    break
        cell = open_cells[best]
        rest = open_cells[:best] + open_cells[best + 1 :]
        r, c, b = self._units[cell]
        digits = [d for d in range(self.size) if left >> d & 1]
        if rng is not None:
            rng.shuffle(digits)
        for digit in digits:
            bit = 1 << digit
            grid[cell] = digit
            taken[r], taken[c], taken[b] = taken[r] ^ bit, taken[c] ^ bit, taken[b] ^ bit
            yield from self._search(grid, rest, taken, rng)
            taken[r], taken[c], taken[b] = taken[r] ^ bit, taken[c] ^ bit, taken[b] ^ bit
        grid[cell] = -1

    def unique(self, grid: list[int]) -> bool:
        """Whether the grid has exactly one solution."""
        found = self.solutions(grid)
        return next(found, None) is not None and next(found, None) is None

    def dig(self, rng: np.random.Generator, fewest: int) -> tuple[list[int], list[int]]:
        """A random solution, and its puzzle with -1 in open cells: cells are emptied in random order as long as
        the solution stays the only one, down to `fewest` clues at most."""
        solution = next(self.solutions([-1] * self.cells, rng))
        puzzle = list(solution)
        for cell in rng.permutation(self.cells).tolist():
            if sum(d >= 0 for d in puzzle) <= fewest:
                break
            puzzle[cell] = -1
            if not self.unique(puzzle):
                puzzle[cell] = solution[cell]
        return solution, puzzle


@dataclass(frozen=True)
class Puzzles:
    """solution int64 [n, cells]; clue bool [n, cells]: the cells that are given."""

    solution: np.ndarray
    clue: np.ndarray

    def __len__(self) -> int:
        return len(self.solution)

    def __getitem__(self, index: slice | np.ndarray) -> Puzzles:
        return Puzzles(self.solution[index], self.clue[index])


def held_out(board: Board, solution: np.ndarray, share: float) -> np.ndarray:
    """bool [n]: the grids that belong to the test, about `share` of all; renaming digits makes no difference."""
    names = np.argsort(solution[:, : board.size], axis=1)  # the first row holds each digit once
    renamed = np.take_along_axis(names, solution, axis=1)
    mixed = np.full(len(solution), 14695981039346656037, np.uint64)
    for column in renamed.T.astype(np.uint64):  # FNV-1a
        mixed = (mixed ^ column) * np.uint64(1099511628211)
    return (mixed >> np.uint64(32)) % np.uint64(1000) < np.uint64(round(share * 1000))


@dataclass(frozen=True)
class Source:
    """Endless puzzles: `base` varied. clues: the least and the greatest number of clues; a puzzle that can't do with
    as few as drawn has as few as it can. share: of the grids, for testing."""

    board: Board
    base: Puzzles
    clues: tuple[int, int]
    share: float

    @classmethod
    def make(cls, board: Board, count: int, clues: tuple[int, int], share: float, seed: int) -> Source:
        rng = np.random.default_rng(seed)
        dug = [board.dig(rng, clues[0]) for _ in range(count)]
        solution, puzzle = (np.array(part, np.int64) for part in zip(*dug, strict=True))
        return cls(board, Puzzles(solution, puzzle >= 0), clues, share)

    def draw(self, count: int, rng: np.random.Generator, test: bool = False) -> Puzzles:
        """`count` puzzles whose grids are held out (`test`), or are not. Raises RequestError when the share
        leaves (about) no such grid."""
        parts: list[Puzzles] = []
        while sum(map(len, parts)) < count:
            if len(parts) == 1000:
                raise RequestError(f"held_out {self.share} leaves no grid of this size: choose another share")
            varied = self._vary(self.base[rng.integers(len(self.base), size=2 * count)], rng)
            parts.append(varied[held_out(self.board, varied.solution, self.share) == test])
        solution = np.concatenate([p.solution for p in parts])[:count]
        clue = np.concatenate([p.clue for p in parts])[:count]
        return Puzzles(solution, self._reveal(clue, rng))

    def _vary(self, puzzles: Puzzles, rng: np.random.Generator) -> Puzzles:
        """Each puzzle in another guise: digits renamed, rows, bands, columns and stacks shuffled."""
        count, board = len(puzzles), self.board
        rows = _shuffled(count, board.width, board.height, rng)
        columns = _shuffled(count, board.height, board.width, rng)
        source = rows[:, :, None] * board.size + columns[:, None, :]
        if board.height == board.width:
            source = np.where(rng.random((count, 1, 1)) < 0.5, source, source.transpose(0, 2, 1))
        source = source.reshape(count, -1)
        names = rng.random((count, board.size)).argsort(axis=1)
        solution = np.take_along_axis(names, np.take_along_axis(puzzles.solution, source, 1), 1)
        return Puzzles(solution, np.take_along_axis(puzzles.clue, source, 1))

    def _reveal(self, clue: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Further random clues, up to a number drawn evenly from `clues`."""
        wanted = rng.integers(self.clues[0], self.clues[1] + 1, size=len(clue))
        order = np.where(clue, -1.0, rng.random(clue.shape)).argsort(axis=1).argsort(axis=1)
        return order < np.maximum(wanted, clue.sum(axis=1))[:, None]


def _shuffled(count: int, bands: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [count, bands * rows]: row numbers, shuffled within bands, and the bands among themselves."""
    band = rng.random((count, bands)).argsort(axis=1).repeat(rows, axis=1)
    return (band + rng.random((count, bands * rows))).argsort(axis=1)
