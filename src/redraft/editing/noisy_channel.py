"""Proofreading as a noisy channel: is what stands there more likely a slip of what a canvas proposes?

Each proposal is a row of features: what kind of slip it would undo, how likely the denoise role finds it from both
sides, how likely the encode role finds it and what stands there from the left, whether the words are known. A
logistic model says how probable it is that the change is right; its weights are chosen on texts with errors made in
them (evaluation/channel.py) and kept with the model's defaults. (Kernighan, Church and Gale 1990, with a canvas for
the candidates and a learnt channel.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redraft.editing.kinds import SLIPS, WORDS, Hunk, hunk_between, slip_of
from redraft.editing.pieces import Pieces
from redraft.editing.proposals import Proposal, Spelling, proposals
from redraft.engine.given import GivenCanvas
from redraft.engine.review import Change
from redraft.errors import RequestError

MOST = 10  # proposals of a canvas that are checked
# What each feature is cut to. Of the denoise role: see Proposal; odds_low counts where they are in doubt.
BOTH = {"odds": (-4.0, 12.0), "odds_low": (-4.0, 3.0), "doubt": (-10.0, 0.0), "fit": (-12.0, 0.0)}
# Of the words: whether all that go and all that come are known, whether a name goes, and how long what goes is.
WORD = {"known": (0.0, 1.0), "made_known": (0.0, 1.0), "name": (0.0, 1.0), "length": (0.0, 8.0)}
# Of the encode role: odds of the first token that changes, the same where they are in doubt, log p of the text that
# goes, of the token before and behind it, and of the rest of the window on average: how well the model knows such
# text.
LEFT = {
    **{"left": (-10.0, 12.0), "left_low": (-10.0, 2.0), "text": (-25.0, 0.0)},
    **{"last": (-12.0, 0.0), "next": (-12.0, 0.0), "around": (-6.0, 0.0), "spelt_text": (-25.0, 0.0)},
}
# Some of them again, for slips in the spelling of a word alone: there they weigh otherwise.
SPELT = {f"spelt_{name}": span for name, span in (WORD | {"doubt": BOTH["doubt"]}).items()}
FEATURES = ("bias", *SLIPS, *BOTH, *WORD, *SPELT, *LEFT)
SPELLING = ("letter", "letters")
_STARTS = re.compile(r"(?:^|[.!?]|\n)\s*\Z")


@dataclass(frozen=True)
class Channel:
    """weights: of FEATURES; threshold: from which probability a change is made; reach: how much the encode role may add
    to a score, as was seen where the weights were chosen: what it can't lift to the threshold isn't checked. Raises
    RequestError for weights of other features."""

    weights: Mapping[str, float]
    threshold: float
    reach: float

    def __post_init__(self) -> None:
        if set(self.weights) != set(FEATURES):
            raise RequestError(
                "the model's generation_config.json holds weights for proofreading that this version doesn't know: "
                "remove its entry proofread, or choose them anew (recipes/release.py --from measure)"
            )

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Channel | None:
        """From the entry `proofread` of the defaults; None where there is none."""
        return cls(**told) if told else None

    @property
    def vector(self) -> np.ndarray:
        """float64 [F]"""
        return np.array([self.weights[name] for name in FEATURES])


class Reader:
    """What the features of proposals come from: a model's pieces of text, and the words among them."""

    def __init__(self, pieces: Pieces, vocab_size: int, null: int) -> None:
        self.pieces, self.null = pieces, null
        self.spelling = Spelling(pieces, vocab_size)

    def slips(self, canvas: GivenCanvas, log_p: np.ndarray) -> list[tuple[Proposal, list[float]]]:
        """Proposals that undo a slip, the likeliest, MOST at most (redraft.editing.proposals); with each its features
        but for LEFT, which need an encode pass."""
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
        both = _cut({"odds": p.odds, "odds_low": p.odds, "doubt": p.doubt, "fit": p.fit}, BOTH)
        seen = {
            "known": float(self._known(before)),
            "made_known": float(self._known(hunk.after)),
            "name": float(before[:1].isupper() and not _STARTS.search(hunk.left)),
            "length": float(len(before)),
        }
        spelt = {f"spelt_{k}": v if slip in SPELLING else 0.0 for k, v in (seen | {"doubt": p.doubt}).items()}
        return [
            *(1.0, *(float(slip == kind) for kind in SLIPS)),
            *(*both, *_cut(seen, WORD), *_cut(spelt, SPELT)),
        ]

    def left(
        self, canvas: GivenCanvas, proposal: Proposal, features: Sequence[float], log_p: np.ndarray
    ) -> list[float]:
        """LEFT, from the rows of the encode role (see Review.decide). features: the proposal's others."""
        standing = [t for t in canvas.initial if t != self.null]
        own = log_p[np.arange(len(standing)), standing].astype(np.float64)
        at = sum(t != self.null for t in canvas.initial[: proposal.start])
        end = at + sum(t != self.null for t in canvas.initial[proposal.start : proposal.stop])
        new = [*(t for t in proposal.slots if t != self.null), *standing[end : end + 1]]
        odds = float(log_p[at, new[0]]) - float(own[at]) if new and at < len(standing) else 0.0
        spelt = any(features[FEATURES.index(kind)] for kind in SPELLING)
        text = float(own[at:end].sum())
        others = np.concatenate((own[:at], own[end:])).clip(*LEFT["next"])
        seen = {
            **{"left": odds, "left_low": odds, "text": text, "spelt_text": text if spelt else 0.0},
            "last": float(own[at - 1]) if at else 0.0,
            "next": float(own[end]) if end < len(standing) else 0.0,
            "around": float(others.mean()) if len(others) else 0.0,
        }
        return _cut(seen, LEFT)

    def text(self, slots: Sequence[int]) -> str:
        return self.pieces.join([t for t in slots if t != self.null]).decode("utf-8", "replace")

    def _known(self, text: str) -> bool:
        """Whether each word of letters is one of the vocabulary's."""
        return all(self.spelling.knows(word) for word in WORDS.findall(text) if word.isalpha())


def _cut(values: Mapping[str, float], spans: Mapping[str, tuple[float, float]]) -> list[float]:
    return [min(max(values[name], low), high) for name, (low, high) in spans.items()]


class NoisyChannel:
    """Implements engine.review.Review."""

    def __init__(self, reader: Reader, channel: Channel) -> None:
        self._reader, self._threshold = reader, channel.threshold
        self._reach = channel.reach
        self._both, self._left = np.split(channel.vector, [len(FEATURES) - len(LEFT)])
        self._found: dict[Proposal, list[float]] = {}

    def propose(self, canvas: GivenCanvas, log_p: np.ndarray) -> list[Proposal]:
        self._found = {
            proposal: features
            for proposal, features in self._reader.slips(canvas, log_p)
            if probability(float(self._both @ features) + self._reach) >= self._threshold
        }
        return list(self._found)

    def decide(
        self, canvas: GivenCanvas, changes: Sequence[Change], log_p: np.ndarray
    ) -> list[tuple[Change, float]]:
        """`changes` are those that `propose` has just named."""
        sure: dict[Change, float] = {}
        for proposal, features in self._found.items():
            left = self._reader.left(canvas, proposal, features, log_p)
            sure[proposal] = probability(float(self._both @ features) + float(self._left @ left))
        return chosen(sure, self._threshold)


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
