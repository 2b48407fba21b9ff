"""Changes that a canvas proposes of the text it was given: what the denoise role thinks likelier from both sides, and
words that are spelt nearly as one that it doubts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from redraft.editing.kinds import differing, one_slip
from redraft.editing.pieces import Pieces
from redraft.engine.given import GivenCanvas
from redraft.engine.review import Change

DEEPEST = -2.5  # log odds of a proposal, at least, for each slot
FAINTEST = -9.0  # log probability of a token proposed for a slot, at least
TOP = 3  # tokens proposed for a slot, at most
LONGEST = 3  # slots of a proposal in doubt as a whole
DOUBT = -1.0  # log probability of a word's least likely token, below which its spelling is doubted
_FIRST, _MORE = re.compile(rb" ?[A-Za-z]+"), re.compile(rb"[A-Za-z]+")


@dataclass(frozen=True)
class Proposal(Change):
    """odds: log p of what is proposed less that of what stands, summed over the slots that change; fit: the former;
    doubt: the latter of the slot where it is lowest."""

    odds: float
    fit: float
    doubt: float


class Spelling:
    """The words among a vocabulary's tokens, found by a slip: a letter more, less, other, or swapped."""

    def __init__(self, pieces: Pieces, vocab_size: int) -> None:
        self._words: dict[int, tuple[bool, str]] = {}
        self._found: dict[tuple[bool, str], list[int]] = {}
        for token in range(vocab_size):
            data = pieces[token]
            if len(data.strip()) >= 2 and _FIRST.fullmatch(data) and data.strip()[1:].islower():
                word = data.strip().decode()
                self._words[token] = data.startswith(b" "), word
                for part in _shortened(word.lower()):
                    self._found.setdefault((data.startswith(b" "), part), []).append(token)
        self._known = {word.lower() for _, word in self._words.values()}

    def knows(self, word: str) -> bool:
        return len(word) == 1 or word.lower() in self._known

    def near(self, text: str) -> list[int]:
        """Tokens one slip away from a word, with its space and capital."""
        word, spaced = text.strip(), text.startswith(" ")
        tokens = {t for part in _shortened(word.lower()) for t in self._found.get((spaced, part), ())}
        return sorted(t for t in tokens if self._is_near(self._words[t][1], word))

    @staticmethod
    def _is_near(other: str, word: str) -> bool:
        same_case = other[0].isupper() == word[0].isupper()
        return same_case and one_slip(*differing(other.lower(), word.lower()))


def _shortened(word: str) -> set[str]:
    """The word, and it without each of its letters: what words one slip apart have in common."""
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}


def proposals(
    canvas: GivenCanvas, log_p: np.ndarray, null: int, pieces: Pieces, spelling: Spelling
) -> list[Proposal]:
    """The likeliest first. log_p: float32 [C, V] of the denoise role. None reaches a locked slot or one that isn't
    committed; no two make the same text of the same slots."""
    slots = np.array(canvas.initial[: canvas.commit])
    reading = _Reading(slots, np.array(canvas.locked[: canvas.commit]), log_p[: canvas.commit], null)
    found: dict[tuple[int, int, tuple[int, ...]], Proposal] = {}
    for start, new in [
        *reading.runs(),
        *reading.singles(),
        *reading.doubtful(),
        *reading.near(pieces, spelling),
    ]:
        proposal = reading.proposal(start, new)
        if proposal is None:
            continue
        at = int((slots[:start] != null).sum())
        end = at + int((slots[start : proposal.stop] != null).sum())
        key = at, end, tuple(t for t in new if t != null)
        if key not in found or found[key].odds < proposal.odds:
            found[key] = proposal
    return sorted(found.values(), key=lambda p: (-p.odds, p.start, p.slots))


class _Reading:
    """slots, locked: what is committed of the canvas. best, other: the likeliest token, and the likeliest that isn't
    the one that stands there."""

    def __init__(self, slots: np.ndarray, locked: np.ndarray, log_p: np.ndarray, null: int) -> None:
        self.slots, self.log_p, self.null = slots, log_p, null
        self.free = ~locked
        self.own = log_p[np.arange(len(slots)), slots]
        self.best, self.other = slots.copy(), slots.copy()
        self.others: dict[int, list[int]] = {}
        self.loose = np.zeros(len(slots), dtype=bool)
        # Where what stands is this likely, nothing else comes within DEEPEST of it.
        doubted = np.flatnonzero(self.free & (self.own < -np.log1p(np.exp(DEEPEST))))
        if len(doubted):
            self._rank(doubted)

    def _rank(self, rows: np.ndarray) -> None:
        """The tokens that come near what stands in some slots."""
        # Few tokens of a vocabulary come near what stands: finding them is cheaper than ranking all.
        least = np.maximum(self.own[rows] + DEEPEST, FAINTEST)[:, None]
        near, tokens = np.nonzero(self.log_p[rows] > least)
        likely = self.log_p[rows[near], tokens]
        order = np.lexsort((tokens, -likely, near))
        first = np.searchsorted(near, np.arange(len(rows)))
        for row, start, stop in zip(rows.tolist(), first, [*first[1:], len(near)], strict=True):
            ranked = tokens[order[start:stop]].tolist()
            others = [token for token in ranked if token != self.slots[row]]
            if others:
                self.best[row] = ranked[0]
                self.other[row], self.others[row] = others[0], others[:TOP]
                self.loose[row] = True

    def proposal(self, start: int, new: list[int]) -> Proposal | None:
        """None where it leaves the text as it is."""
        span = self.slots[start : start + len(new)]
        changed = np.flatnonzero(span != new)
        if [t for t in span.tolist() if t != self.null] == [t for t in new if t != self.null]:
            return None
        fit = self.log_p[start + changed, np.array(new)[changed]].astype(np.float64)
        own = self.own[start + changed].astype(np.float64)
        return Proposal(start, tuple(new), float((fit - own).sum()), float(fit.sum()), float(own.min()))

    def runs(self) -> Iterator[tuple[int, list[int]]]:
        """Slots in a row of which each should hold another token."""
        for start, stop in _runs(self.free & (self.best != self.slots)):
            yield start, self.best[start:stop].tolist()

    def singles(self) -> Iterator[tuple[int, list[int]]]:
        for slot, tokens in self.others.items():
            yield from ((slot, [token]) for token in tokens)

    def doubtful(self) -> Iterator[tuple[int, list[int]]]:
        """Slots in a row that may each hold another token, and parts of such rows."""
        for start, stop in _runs(self.loose):
            if 1 < stop - start <= LONGEST:
                for i in range(start, stop - 1):
                    for j in range(i + 2, stop + 1):
                        yield i, self.other[i:j].tolist()

    def near(self, pieces: Pieces, spelling: Spelling) -> Iterator[tuple[int, list[int]]]:
        """Words that are spelt nearly as one in doubt, the likeliest of them."""
        for start, stop in self._words(pieces):
            if self.own[start:stop].min() >= DOUBT:
                continue
            text = pieces.join([t for t in self.slots[start:stop].tolist() if t != self.null]).decode()
            if len(text.strip()) < 2:
                continue
            tokens = spelling.near(text)
            for token in sorted(tokens, key=lambda t: (-self.log_p[start, t], t))[:TOP]:
                if np.isfinite(self.log_p[start, token]):
                    yield start, [token, *[self.null] * (stop - start - 1)]

    def _words(self, pieces: Pieces) -> Iterator[tuple[int, int]]:
        """Slots of each word of letters, from its first token to its last."""
        slot, count = 0, len(self.slots)
        while slot < count:
            if not self.free[slot] or not _FIRST.fullmatch(pieces[int(self.slots[slot])]):
                slot += 1
                continue
            stop = at = slot + 1
            while at < count and self.free[at]:
                if self.slots[at] != self.null:
                    if not _MORE.fullmatch(pieces[int(self.slots[at])]):
                        break
                    stop = at + 1
                at += 1
            yield slot, stop
            slot = stop


def _runs(wanted: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
