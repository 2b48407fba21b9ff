"""Which pieces of which documents share a row: a pure function of the seed and the epoch.

Nothing about the position in the data has to be stored for a run to resume: the step number says it all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from redraft.errors import RequestError
from redraft.training.data import Corpus

OPEN_ROWS = 64
TURNS = 4096


@dataclass(frozen=True)
class Piece:
    """Tokens first..last of a document, at the start of which its positions count from 0."""

    document: int
    first: int
    last: int


def pack(lengths: np.ndarray, row_length: int, seed: int, epoch: int) -> list[list[Piece]]:
    """Every token of every document once, best fit into rows of at most row_length tokens, in random order.

    A document longer than a row is cut into pieces of its own. lengths int64 [documents].
    """
    rng = np.random.default_rng((seed, epoch))
    rows: list[list[Piece]] = []
    room: list[int] = []
    open_rows: list[int] = []
    for document in rng.permutation(len(lengths)):
        for first in range(0, int(lengths[document]), row_length):
            last = min(first + row_length, int(lengths[document]))
            fitting = [r for r in open_rows if room[r] >= last - first]
            if fitting:
                row = min(fitting, key=room.__getitem__)
            else:
                row = len(rows)
                rows.append([])
                room.append(row_length)
                open_rows.append(row)
            rows[row].append(Piece(int(document), first, last))
            room[row] -= last - first
            if room[row] == 0:
                open_rows.remove(row)
        if len(open_rows) > OPEN_ROWS:
            open_rows.remove(min(open_rows, key=room.__getitem__))
    order = rng.permutation(len(rows))
    return [rows[i] for i in order]


@dataclass(frozen=True)
class Row:
    """One packed row: tokens, document (number within the row, -1 for padding), position within the document,
    supervise (a canvas may cover the token): arrays [row_length]; corpus: which of the mixture it comes from; pieces:
    what the row's documents are, by their numbers within it."""

    tokens: np.ndarray
    document: np.ndarray
    position: np.ndarray
    supervise: np.ndarray
    corpus: int
    pieces: tuple[Piece, ...] = ()


class Rows:
    """The rows of a mixture of corpora in the order of training; rows[i] for any i >= 0, epoch after epoch."""

    def __init__(self, corpora: list[Corpus], weights: list[float], row_length: int, seed: int) -> None:
        for corpus in corpora:
            if not len(corpus):
                raise RequestError("a corpus of the mixture holds no documents")
        self.corpora, self.row_length, self.seed = corpora, row_length, seed
        self.shares = np.cumsum(weights) / np.sum(weights)
        self.shares[-1] = 1.0
        self._drawn = [np.zeros(len(corpora), np.int64)]  # rows of each corpus before every TURNS-th row
        self._packed = lru_cache(maxsize=2 * len(corpora))(self._pack_epoch)
        self._sizes: dict[tuple[int, int], int] = {}

    def _pack_epoch(self, corpus: int, epoch: int) -> list[list[Piece]]:
        return pack(self.corpora[corpus].lengths, self.row_length, self.seed + corpus, epoch)

    def locate(self, index: int) -> tuple[int, int]:
        """Row number `index` of the run is row (corpus, n) of the corpus: corpora take turns by their shares."""
        if len(self.corpora) == 1:
            return 0, index
        while len(self._drawn) <= index // TURNS:
            owners = self._owners((len(self._drawn) - 1) * TURNS, TURNS)
            self._drawn.append(self._drawn[-1] + np.bincount(owners, minlength=len(self.corpora)))
        chunk, within = divmod(index, TURNS)
        owners = self._owners(chunk * TURNS, within + 1)
        corpus = int(owners[-1])
        return corpus, int(self._drawn[chunk][corpus] + np.count_nonzero(owners[:-1] == corpus))

    def _owners(self, first: int, count: int) -> np.ndarray:
        """The corpora of rows first, first + 1, …: a golden-ratio sequence spreads them evenly by their shares."""
        points = np.arange(first, first + count) * 0.6180339887498949 % 1.0
        return np.searchsorted(self.shares, points, side="right")

    def epoch_of(self, corpus: int, n: int) -> tuple[int, int]:
        """(epoch, row within it) of the n-th row drawn from a corpus."""
        epoch = 0
        while True:
            if (corpus, epoch) not in self._sizes:  # rows an epoch differ by a few: packing is random
                self._sizes[corpus, epoch] = len(self._packed(corpus, epoch))
            if n < (size := self._sizes[corpus, epoch]):
                return epoch, n
            n -= size
            epoch += 1

    def __getitem__(self, index: int) -> Row:
        which, n = self.locate(index)
        epoch, n = self.epoch_of(which, n)
        corpus = self.corpora[which]
        return assemble(corpus, self._packed(which, epoch)[n], self.row_length, which)


def assemble(corpus: Corpus, pieces: list[Piece], row_length: int, which: int = 0) -> Row:
    """The pieces side by side, token 0 in the padding behind them."""
    tokens = np.zeros(row_length, np.int64)
    document = np.full(row_length, -1, np.int64)
    position = np.zeros(row_length, np.int64)
    supervise = np.zeros(row_length, bool)
    at = 0
    for number, piece in enumerate(pieces):
        end = at + piece.last - piece.first
        tokens[at:end] = corpus[piece.document][piece.first : piece.last]
        document[at:end] = number
        position[at:end] = np.arange(end - at)
        supervise[at:end] = np.arange(piece.first, piece.last) >= corpus.starts[piece.document]
        at = end
    return Row(tokens, document, position, supervise, which, tuple(pieces))
