"""redraft's own network over the cells of a grid."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from sudoku_puzzles import Board, Puzzles
from torch import Tensor, nn

from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.transformer import Denoiser, Visibility
from redraft.training.recipe import Section


class Sizes(Section):
    hidden_size: int = Field(ge=8)
    intermediate_size: int = Field(ge=8)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)


class GridEmbedding(nn.Embedding):
    """A digit in its cell: the digit's vector plus those of the cell, its row, its column and its box.

    Reads tokens that name both, cell * vocabulary + digit.
    """

    def __init__(self, board: Board, vocab_size: int, hidden_size: int) -> None:
        super().__init__(vocab_size, hidden_size)
        offsets = board.cells + board.size * np.arange(3)[:, None]
        names = np.vstack((np.arange(board.cells), board.groups + offsets))
        self.place = nn.Embedding(board.cells + 3 * board.size, hidden_size)
        self.register_buffer("names", torch.from_numpy(names.T.copy()), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.place(self.names).sum(1)  # [cells, hidden]
        digits, cells = tokens % self.num_embeddings, tokens // self.num_embeddings
        return super().forward(digits) + F.embedding(cells, places)


class GridDenoiser(Denoiser):
    """redraft's network over the cells of a grid. Digits are tokens 0 to N - 1, the mask is N."""

    def __init__(self, board: Board, sizes: Sizes, seed: int) -> None:
        vocab_size = board.size + 1
        config = DenoiserConfig(
            vocab_size=vocab_size,
            num_key_value_heads=sizes.num_attention_heads,
            qk_norm=True,
            layout="full",
            canvas_length=board.cells,
            mask_token_id=board.size,
            **sizes.model_dump(),
        )
        super().__init__(config)
        self.board = board
        self.model.embed_tokens = GridEmbedding(board, vocab_size, config.hidden_size)
        self.lm_head.weight = self.model.embed_tokens.weight
        self.reset_parameters(torch.Generator().manual_seed(seed))

    def read(
        self,
        digits: np.ndarray,
        cells: np.ndarray,
        visible: Tensor,
        canvas: np.ndarray,
        locked: np.ndarray | None = None,
        past: list[tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Hidden states [B, T, hidden], and keys and values. digits int64 [B, T] in the cells int64 [T]; visible
        bool [T, S + T]; canvas bool [T]: cells to be written; locked bool [B, T]."""
        device = self.lm_head.weight.device
        tokens = torch.from_numpy(digits + cells * self.config.vocab_size).to(device)
        shape = tokens.shape
        return self(
            tokens,
            torch.from_numpy(cells).to(device).expand(shape),
            Visibility(dense=Visibility.additive(visible.to(device))[None, None]),
            torch.from_numpy(canvas).to(device).expand(shape),
            None if locked is None else torch.from_numpy(locked).to(device),
            past=past,
        )


def as_puzzle(board: Board, puzzles: Puzzles) -> np.ndarray:
    """int64 [n, cells]: the clues, and masks elsewhere."""
    return np.where(puzzles.clue, puzzles.solution, board.size)


def denoise(model: GridDenoiser, digits: np.ndarray, locked: np.ndarray) -> Tensor:
    """Hidden states [B, cells, hidden] of whole canvases."""
    cells = np.arange(model.board.cells)
    everything = torch.ones(len(cells), len(cells), dtype=torch.bool)
    return model.read(digits, cells, everything, np.ones(len(cells), bool), locked)[0]
