"""Changes that a canvas proposes of the text it was given: what the denoise role thinks likelier from both sides,
words that are spelt nearly as one that it doubts or that was never seen, and neighbours that may have changed places.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from redraft.editing.kinds import differing, one_slip
from redraft.editing.lexicon import Lexicon
from redraft.editing.pieces import Pieces
from redraft.engine.given import GivenCanvas
from redraft.engine.review import Change

DEEPEST = -2.5  # log odds of a proposal, at least, for each slot
FAINTEST = -9.0  # log probability of a token proposed for a slot, at least
TOP = 3  # tokens proposed for a slot, at most
SWAPPED = -10.0  # log odds of two words that change places, at least
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
    """The words among a vocabulary's tokens, found by a slip: a letter more, less, other, or swapped. lexicon: words
    of more tokens."""

    def __init__(self, pieces: Pieces, vocab_size: int, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
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
    words = reading.words(pieces)
    changes = [
        *reading.runs(),
        *reading.singles(),
        *reading.doubtful(),
        *reading.near(words, pieces, spelling),
        *reading.swaps(words, pieces),
    ]
    made = [reading.proposal(start, new) for start, new in changes]
    # Of those that make the same text the likeliest; what the lexicon says comes last, its odds tell of less.
    for proposal in sorted((p for p in made if p), key=lambda p: -p.odds):
        found.setdefault(reading.key(proposal), proposal)
    for proposal in reading.respelt(words, pieces, spelling.lexicon):
        found.setdefault(reading.key(proposal), proposal)
    return sorted(found.values(), key=lambda p: (-p.odds, p.start, p.slots))


class _Reading:
    """slots, locked: what is committed of the canvas. best, other: the likeliest token, and the likeliest that isn't
    the one that stands there."""

    def __init__(self, slots: np.ndarray, locked: np.ndarray, log_p: np.ndarray, null: int) -> None:
        self.slots, self.log_p, self.null = slots, log_p, null
        self.free = ~locked
        self.own = log_p[np.arange(len(slots)), slots]
        # Proposals are many and a few slots long: plain lists are faster than arrays for them.
        self.tokens: list[int] = slots.tolist()
        self.stand: list[float] = self.own.tolist()
        self.before = [0, *accumulate(int(token != null) for token in self.tokens)]  # tokens before a slot
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

    def key(self, proposal: Proposal) -> tuple[int, int, tuple[int, ...]]:
        """The same for proposals that make the same text."""
        new = tuple(t for t in proposal.slots if t != self.null)
        return self.before[proposal.start], self.before[proposal.stop], new

    def proposal(self, start: int, new: list[int]) -> Proposal | None:
        """None where it leaves the text as it is."""
        span, null = self.tokens[start : start + len(new)], self.null
        if [t for t in span if t != null] == [t for t in new if t != null]:
            return None
        odds, fit, doubt = 0.0, 0.0, 0.0
        for slot, (old, token) in enumerate(zip(span, new, strict=True), start):
            if old != token:
                likely, stood = float(self.log_p[slot, token]), self.stand[slot]
                odds, fit, doubt = odds + likely - stood, fit + likely, min(doubt, stood)
        return Proposal(start, tuple(new), odds, fit, doubt)

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

    def near(
        self, words: Sequence[tuple[int, int]], pieces: Pieces, spelling: Spelling
    ) -> Iterator[tuple[int, list[int]]]:
        """Words that are spelt nearly as one in doubt, the likeliest of them."""
        for start, stop in words:
            if min(self.stand[start:stop]) >= DOUBT:
                continue
            text = self._text(start, stop, pieces)
            if len(text.strip()) < 2:
                continue
            tokens = spelling.near(text)
            for token in sorted(tokens, key=lambda t: (-self.log_p[start, t], t))[:TOP]:
                if np.isfinite(self.log_p[start, token]):
                    yield start, [token, *[self.null] * (stop - start - 1)]

    def respelt(
        self, words: Sequence[tuple[int, int]], pieces: Pieces, lexicon: Lexicon
    ) -> Iterator[Proposal]:
        """What the lexicon knows nearly as a word that it doesn't know, the likeliest by their first tokens, of which
        odds and fit tell."""
        for start, stop in words:
            text = self._text(start, stop, pieces)
            behind = b"" if stop == len(self.tokens) else pieces[self.tokens[stop]]
            if behind.startswith(b"'"):  # a part of a word
                continue
            space = " " * text.startswith(" ")
            found: list[tuple[float, list[int]]] = []
            for other in lexicon.respelt(text.strip()):
                new = pieces.encode(space + other)
                fit = float(self.log_p[start, new[0]])
                if len(new) <= stop - start and np.isfinite(fit):
                    found.append((fit + float(np.log(lexicon.count(other) or 1)), new))
            for _, new in sorted(found, key=lambda one: (-one[0], one[1]))[:TOP]:
                padded = (*new, *[self.null] * (stop - start - len(new)))
                fit = float(self.log_p[start, new[0]])
                stood = self.stand[start:stop]
                yield Proposal(start, padded, fit - stood[0], fit, min(stood))

    def swaps(self, words: Sequence[tuple[int, int]], pieces: Pieces) -> Iterator[tuple[int, list[int]]]:
        """Two words of one token each, exchanged."""
        for (a, stop), (b, end) in pairwise(words):
            between = self.tokens[a + 1 : b]
            if stop > a + 1 or end > b + 1 or self.before[b] > self.before[a + 1]:
                continue
            first, second = self.tokens[a], self.tokens[b]
            if not all(pieces[token].startswith(b" ") for token in (first, second)):
                continue
            if self.log_p[a, second] + self.log_p[b, first] - self.stand[a] - self.stand[b] > SWAPPED:
                yield a, [second, *between, first]

    def words(self, pieces: Pieces) -> list[tuple[int, int]]:
        """Slots of each word of letters, from its first token to its last."""
        found: list[tuple[int, int]] = []
        slot, count, free = 0, len(self.tokens), self.free.tolist()
        while slot < count:
            if not free[slot] or not _FIRST.fullmatch(pieces[self.tokens[slot]]):
                slot += 1
                continue
            stop = at = slot + 1
            while at < count and free[at]:
                if self.tokens[at] != self.null:
                    if not _MORE.fullmatch(pieces[self.tokens[at]]):
                        break
                    stop = at + 1
                at += 1
            found.append((slot, stop))
            slot = stop
        return found

    def _text(self, start: int, stop: int, pieces: Pieces) -> str:
        return pieces.join([t for t in self.tokens[start:stop] if t != self.null]).decode()


def _runs(wanted: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
