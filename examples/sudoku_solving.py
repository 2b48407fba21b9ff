"""Solving puzzles with a trained network, counting how many come out right, and showing one."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sudoku_network import GridDenoiser, as_puzzle, denoise
from sudoku_puzzles import Board, Puzzles
from torch import Tensor

from redraft.cli.drafts import NOISE_SIGN, STYLES
from redraft.cli.terminal import console, is_terminal
from redraft.evaluation.intervals import wilson
from redraft.sampling import Canvas, NoiseKey, SamplerSettings, SlotState, SlotVocabulary, advance, begin

# A slot settles when its probability is above this, and the surest one always does.
THRESHOLDS = {"threshold 0.9": 0.9, "threshold 0.99": 0.99, "surest first": 1.0}


@torch.no_grad()
def frames(model: GridDenoiser, puzzles: Puzzles, threshold: float, seed: int = 0) -> Iterator[list[Canvas]]:
    """All puzzles' canvases before the first step and after each, until every one is finished."""
    board = model.board
    settings = SamplerSettings(canvas_length=board.cells, max_steps=board.cells, threshold=threshold)
    vocabulary = SlotVocabulary(board.size + 1, mask_id=board.size)
    canvases = [
        begin(
            settings,
            vocabulary,
            NoiseKey(seed, i),
            0,
            locked={int(c): int(digits[c]) for c in np.flatnonzero(clue)},
        )
        for i, (digits, clue) in enumerate(zip(puzzles.solution, puzzles.clue, strict=True))
    ]
    yield canvases
    while going := [i for i, canvas in enumerate(canvases) if not canvas.finished]:
        for at in range(0, len(going), 256):
            part = going[at : at + 256]
            tokens = np.stack([canvases[i].tokens for i in part])
            logits = model.logits(denoise(model, tokens, puzzles.clue[part])).float().cpu().numpy()
            for i, own in zip(part, logits, strict=True):
                canvases[i] = advance(canvases[i], own)
        yield canvases


def solve_by_diffusion(
    model: GridDenoiser, puzzles: Puzzles, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Grids int64 [n, cells] and network evaluations int64 [n]."""
    *_, canvases = frames(model, puzzles, threshold)
    return np.stack([c.shown for c in canvases]), np.array([c.step for c in canvases])


@torch.no_grad()
def solve_by_ar(model: GridDenoiser, puzzles: Puzzles) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest digit cell by cell, clues given; the puzzle's keys and values are kept. One evaluation an open
    cell: clues in a row can be read along with the next."""
    board, count = model.board, len(puzzles)
    written = np.zeros((count, board.cells), np.int64)
    digits, cells = as_puzzle(board, puzzles), np.arange(board.cells)
    visible = torch.ones(board.cells, board.cells, dtype=torch.bool).tril()
    past: list[tuple[Tensor, Tensor]] | None = None
    for cell in range(board.cells):
        hidden, present = model.read(digits, cells, visible, np.full(len(cells), cell > 0), past=past)
        joined = zip(past or present, present, strict=True)
        past = (
            present
            if past is None
            else [(torch.cat((k, a), 1), torch.cat((v, b), 1)) for (k, v), (a, b) in joined]
        )
        logits = model.logits(hidden[:, -1]).float()[:, : board.size]
        best = logits.argmax(-1).cpu().numpy()
        written[:, cell] = np.where(puzzles.clue[:, cell], puzzles.solution[:, cell], best)
        digits, cells = written[:, cell : cell + 1], np.array([cell])
        visible = torch.ones(1, board.cells + cell + 1, dtype=torch.bool)
    return written, (~puzzles.clue).sum(1)


@torch.no_grad()
def solve_in_order(model: GridDenoiser, puzzles: Puzzles) -> tuple[np.ndarray, np.ndarray]:
    """The diffusion model made to write in AR's order, one open cell after the other: what its order is worth."""
    grids = as_puzzle(model.board, puzzles)
    for cell in range(model.board.cells):
        rows = np.flatnonzero(~puzzles.clue[:, cell])
        for part in np.split(rows, range(256, len(rows), 256)):
            hidden = denoise(model, grids[part], puzzles.clue[part])[:, cell]
            grids[part, cell] = model.logits(hidden)[:, : model.board.size].argmax(-1).cpu().numpy()
    return grids, (~puzzles.clue).sum(1)


def score(puzzles: Puzzles, grids: np.ndarray, evaluations: np.ndarray) -> dict[str, Any]:
    """Solved puzzles (every cell right), right digits among open cells, evaluations, and solved by clue count."""
    right = (grids == puzzles.solution).all(1)
    clues, total = puzzles.clue.sum(1), int(right.sum())
    return {
        "solved": total / len(puzzles),
        "interval": wilson(total, len(puzzles)),
        "puzzles": len(puzzles),
        "right_cells": float((grids == puzzles.solution)[~puzzles.clue].mean()),
        "nfe": float(evaluations.mean()),
        "by_clues": {
            int(n): [int(right[clues == n].sum()), int((clues == n).sum())] for n in np.unique(clues)
        },
    }


def evaluate(name: str, model: GridDenoiser, puzzles: Puzzles) -> dict[str, Any]:
    """The score of each way to decode."""
    if name == "ar":
        return {"row by row": score(puzzles, *solve_by_ar(model, puzzles))}
    solved = {label: solve_by_diffusion(model, puzzles, t) for label, t in THRESHOLDS.items()}
    solved["row by row"] = solve_in_order(model, puzzles)
    return {label: score(puzzles, *grids) for label, grids in solved.items()}


def drawn(board: Board, canvas: Canvas) -> Any:
    """A canvas as rich text in the colours of its slots' states."""
    from rich.text import Text

    text = Text()
    for cell in range(board.cells):
        row, column = divmod(cell, board.size)
        if column == 0 and row:
            text.append("\n" if row % board.height else "\n\n")
        state = SlotState(int(canvas.state[cell]))
        sign = NOISE_SIGN if state is SlotState.NOISE else str(int(canvas.shown[cell]) + 1)
        gap = "   " if (column + 1) % board.width == 0 else " "
        text.append(sign, STYLES[state])
        text.append(gap)
    return text.append(f"\n\nstep {canvas.step} · {int(canvas.open.sum())} cells open", "dim")


def show(model: GridDenoiser, puzzle: Puzzles, seconds: float = 0.2) -> None:
    """A grid resolving: on a terminal in place and cell by cell, else frame by frame, in fewer and larger steps."""
    from rich.live import Live

    screen = console(sys.stdout)
    if not is_terminal(sys.stdout):
        for canvases in frames(model, puzzle, THRESHOLDS["threshold 0.99"]):
            screen.print(drawn(model.board, canvases[0]), "\n")
        return
    with Live(console=screen, auto_refresh=False) as live:
        for canvases in frames(model, puzzle, THRESHOLDS["surest first"]):
            live.update(drawn(model.board, canvases[0]), refresh=True)
            time.sleep(seconds)
