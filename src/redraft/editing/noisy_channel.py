"""Proofreading as a noisy channel: is what stands there more likely a slip of what a canvas proposes?

Each proposal is a row of features: what kind of slip it would undo, how likely the denoise role finds it from both
sides, how common the words are, and how likely the encode role finds the text with it and as it stands. What looks
hopeless from the canvas's side isn't read. A small network says how probable it is that a change is right; its weights
are chosen on texts with errors made in them (evaluation/channel.py) and kept with the model's defaults. (Kernighan,
Church and Gale 1990, with a canvas for the candidates and a learnt channel.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from redraft.editing.kinds import SLIPS, WORDS, Hunk, hunk_between, slip_of
from redraft.editing.lexicon import OFTEN, Lexicon
from redraft.editing.pieces import Pieces
from redraft.editing.proposals import Proposal, Spelling, proposals
from redraft.engine.given import GivenCanvas
from redraft.engine.review import Change
from redraft.errors import RequestError

MOST = 12  # proposals of a canvas that are looked at
HOPELESS = -0.4  # log odds of being right by what the canvas says alone, below which a proposal isn't read
READ = 1  # proposals of a canvas that are read, at most
AHEAD = 12  # tokens behind a change that it makes likelier or less likely
# What each feature is cut to. Of the denoise role: see Proposal.
BOTH = {"odds": (-12.0, 12.0), "doubt": (-10.0, 0.0), "fit": (-12.0, 0.0)}
# Of the words: whether all that go and all that come are known, whether a name goes, how long what goes is, and
# whether it is in capitals.
WORD = {
    **{"known": (0.0, 1.0), "made_known": (0.0, 1.0), "name": (0.0, 1.0)},
    **{"length": (0.0, 10.0), "capitals": (0.0, 1.0)},
}
# Of the lexicon, for slips of spelling: how common are the words that go and those that come.
SEEN = {"seen": (0.0, OFTEN), "made_seen": (0.0, OFTEN)}
# Of the encode role: odds of the first token that changes, log p of the text that goes, of the token before and behind
# it, and of the window's tokens on average: how well the model knows such text. Of the text with the change less that
# of the text as it stands: log p of all from there on, and of the tokens behind; and log p of the first of these then.
LEFT = {
    **{"left": (-10.0, 12.0), "text": (-25.0, 0.0)},
    **{"last": (-12.0, 0.0), "next": (-12.0, 0.0), "around": (-6.0, 0.0)},
    **{"gain": (-15.0, 20.0), "behind": (-15.0, 15.0), "then": (-12.0, 0.0)},
}
SHOWN = ("bias", *SLIPS, *BOTH, *WORD, *SEEN)  # before the encode role has read anything
FEATURES = (*SHOWN, *LEFT)
SPELLING = ("letter", "letters", "space", "space_less", "small", "capital")
_STARTS = re.compile(r"(?:^|[.!?]|\n)\s*\Z")


@dataclass(frozen=True)
class Channel:
    """A network of one hidden layer beside a direct path. weights: for each of FEATURES what it counts directly, then
    what it counts in each hidden unit (tanh); units: what these count; threshold: from which probability a change is
    made. screen: for each of SHOWN what it counts for whether a change is read at all. Raises RequestError for weights
    of other features or of another number of units."""

    weights: Mapping[str, Sequence[float]]
    units: Sequence[float]
    threshold: float
    screen: Mapping[str, float]

    def __post_init__(self) -> None:
        sizes = {len(row) for row in self.weights.values()}
        known = set(self.weights) == set(FEATURES) and set(self.screen) == set(SHOWN)
        if not known or sizes != {1 + len(self.units)}:
            raise RequestError(
                "the model's generation_config.json holds weights for proofreading that this version doesn't know: "
                "remove its entry proofread, or choose them anew (recipes/release.py --from measure)"
            )

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Channel | None:
        """From the entry `proofread` of the defaults; None where there is none."""
        return cls(**told) if told else None

    @cached_property
    def matrix(self) -> np.ndarray:
        """float64 [F, 1 + H]"""
        return np.array([self.weights[name] for name in FEATURES], np.float64)

    @cached_property
    def sieve(self) -> np.ndarray:
        """float64 [S]"""
        return np.array([self.screen[name] for name in SHOWN], np.float64)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """float64 [n]: log odds of being right. features: float64 [n, F]."""
        return scores(self.matrix, np.array(self.units, np.float64), features)


def scores(matrix: np.ndarray, units: np.ndarray, features: np.ndarray) -> np.ndarray:
    """[n], of the network with weights [F, 1 + H] and units [H]; features [n, F]."""
    sums = features @ matrix
    out: np.ndarray = sums[:, 0] + np.tanh(sums[:, 1:]) @ units
    return out


class Reader:
    """What the features of proposals come from: a model's pieces of text, the words among them, and those it was
    trained on."""

    def __init__(self, pieces: Pieces, vocab_size: int, null: int, lexicon: Lexicon | None = None) -> None:
        self.pieces, self.null = pieces, null
        self.lexicon = lexicon or Lexicon()
        self.spelling = Spelling(pieces, vocab_size, self.lexicon)

    def slips(self, canvas: GivenCanvas, log_p: np.ndarray) -> list[tuple[Proposal, list[float]]]:
        """Proposals that undo a slip, the likeliest, MOST at most (redraft.editing.proposals); with each its features
        SHOWN."""
        found: list[tuple[Proposal, list[float]]] = []
        parts = [b"" if t == self.null else self.pieces[t] for t in canvas.initial]
        ends = np.cumsum([0, *map(len, parts)]).tolist()
        data = b"".join(parts)
        old = data.decode("utf-8", "replace")
        for proposal in proposals(canvas, log_p, self.null, self.pieces, self.spelling):
            changed = self.pieces.join([t for t in proposal.slots if t != self.null])
            new = data[: ends[proposal.start]] + changed + data[ends[proposal.stop] :]
            hunk = hunk_between(old, new.decode("utf-8", "replace"))
            slip = slip_of(hunk)
            if slip is not None:
                found.append((proposal, self._features(proposal, hunk, slip)))
            if len(found) == MOST:
                break
        return found

    def _features(self, p: Proposal, hunk: Hunk, slip: str) -> list[float]:
        before = hunk.before.strip()
        both = {"odds": p.odds, "doubt": p.doubt, "fit": p.fit}
        seen = {
            "known": float(self._known(before)),
            "made_known": float(self._known(hunk.after)),
            "name": float(before[:1].isupper() and not _STARTS.search(hunk.left)),
            "length": float(len(before)),
            "capitals": float(before.isupper()),
        }
        common = [OFTEN, OFTEN]
        if slip in SPELLING:
            common = [self.lexicon.commonness(text) for text in (hunk.before, hunk.after)]
        kinds = (float(slip == kind) for kind in SLIPS)
        return [1.0, *kinds, *_cut(both, BOTH), *_cut(seen, WORD), *common]

    def left(
        self, canvas: GivenCanvas, proposal: Proposal, changed: np.ndarray, log_p: np.ndarray
    ) -> list[float]:
        """LEFT, from the rows of the encode role for the text with the proposal, and as it stands (see
        Review.decide)."""
        standing = [t for t in canvas.initial if t != self.null]
        own = log_p[np.arange(len(standing)), standing].astype(np.float64)
        at = sum(t != self.null for t in canvas.initial[: proposal.start])
        end = at + sum(t != self.null for t in canvas.initial[proposal.start : proposal.stop])
        at, end, new = _narrowed(standing, at, end, [t for t in proposal.slots if t != self.null])
        first = [*new, *standing[end : end + 1]]
        text = [*standing[:at], *new, *standing[end : end + AHEAD]]
        then = changed[np.arange(len(text)), text].astype(np.float64)[at:]
        behind, stood = then[len(new) :], own[end : end + AHEAD]
        seen = {
            "left": float(log_p[at, first[0]]) - float(own[at]) if first and at < len(standing) else 0.0,
            "text": float(own[at:end].sum()),
            "last": float(own[at - 1]) if at else 0.0,
            "next": float(own[end]) if end < len(standing) else 0.0,
            "around": float(own.mean()),
            "gain": float(then.sum() - own[at : end + AHEAD].sum()),
            "behind": float(behind.sum() - stood.sum()),
            "then": float(behind[0]) if len(behind) else 0.0,
        }
        return _cut(seen, LEFT)

    def text(self, slots: Sequence[int]) -> str:
        return self.pieces.join([t for t in slots if t != self.null]).decode("utf-8", "replace")

    def _known(self, text: str) -> bool:
        """Whether each word of letters is one of the vocabulary's."""
        return all(self.spelling.knows(word) for word in WORDS.findall(text) if word.isalpha())


def _cut(values: Mapping[str, float], spans: Mapping[str, tuple[float, float]]) -> list[float]:
    return [min(max(values[name], low), high) for name, (low, high) in spans.items()]


def _narrowed(standing: Sequence[int], at: int, end: int, new: list[int]) -> tuple[int, int, list[int]]:
    """Tokens at … end - 1 become `new`: the same without what begins and ends alike."""
    while at < end and new and standing[at] == new[0]:
        at, new = at + 1, new[1:]
    while at < end and new and standing[end - 1] == new[-1]:
        end, new = end - 1, new[:-1]
    return at, end, new


class NoisyChannel:
    """Implements engine.review.Review."""

    def __init__(self, reader: Reader, channel: Channel) -> None:
        self._reader, self._channel = reader, channel
        self._found: dict[Change, tuple[Proposal, list[float]]] = {}

    def propose(self, canvas: GivenCanvas, log_p: np.ndarray) -> list[Proposal]:
        found = hopeful(self._channel.sieve, self._reader.slips(canvas, log_p))
        self._found = {proposal: (proposal, features) for proposal, features in found}
        return [proposal for proposal, _ in found]

    def decide(
        self, canvas: GivenCanvas, changes: Sequence[Change], log_p: Sequence[np.ndarray]
    ) -> list[tuple[Change, float]]:
        """`changes` are those that `propose` has just named."""
        rows = []
        for change, changed in zip(changes, log_p[1:], strict=True):
            proposal, features = self._found[change]
            rows.append([*features, *self._reader.left(canvas, proposal, changed, log_p[0])])
        found = self._channel.scores(np.array(rows))
        sure = {change: probability(float(score)) for change, score in zip(changes, found, strict=True)}
        return chosen(sure, self._channel.threshold)


def hopeful(
    sieve: np.ndarray, found: Sequence[tuple[Proposal, list[float]]]
) -> list[tuple[Proposal, list[float]]]:
    """Of a canvas's proposals, with their features SHOWN, those that are worth a reading, the likeliest first."""
    scored = [(float(sieve @ features), number) for number, (_, features) in enumerate(found)]
    best = sorted(
        ((score, number) for score, number in scored if score >= HOPELESS), key=lambda s: (-s[0], s[1])
    )
    return [found[number] for _, number in best[:READ]]


def chosen(sure: Mapping[Change, float], threshold: float) -> list[tuple[Change, float]]:
    """The surest, and of the others those that neither overlap nor touch one that is surer."""
    made: list[tuple[Change, float]] = []
    for change, p in sorted(sure.items(), key=lambda item: (-item[1], item[0].start, item[0].slots)):
        if p >= threshold and all(change.start > c.stop or c.start > change.stop for c, _ in made):
            made.append((change, p))
    return made


def probability(score: float) -> float:
    """The logistic function."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))
