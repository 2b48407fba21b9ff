"""The weights and the operating point of proofreading (editing.noisy_channel), chosen on texts with errors made in
them.

Every proposal that canvases make of these texts is an example: right if it mends the text, half right if it stands
where an error is. First the screen is fitted, which knows what the canvas says alone; then, to what it lets pass, the
weights of small networks whose scores are averaged. The threshold is the lowest at which few enough right texts would
be edited by networks that were fitted to other texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar, cast

import numpy as np

from redraft.api import Model
from redraft.editing.editor import Editor
from redraft.editing.noisy_channel import FEATURES, SHOWN, hopeful, scores
from redraft.editing.proposals import Proposal
from redraft.editing.windows import Window, Windows
from redraft.engine.backend import Pass, PassResult
from redraft.engine.review import log_softmax
from redraft.errors import RedraftError
from redraft.evaluation.editors import MOST_FALSE, Pair
from redraft.evaluation.proofread import Triple, count
from redraft.evaluation.writing import Progress

AT_ONCE = 16  # windows in an evaluation
# Of the share of right texts that may be edited, so much is used on validation texts: what threshold comes of it is an
# estimate, from few texts, and test texts talk of services that training never met.
MARGIN = 0.7
UNITS, MEMBERS = 12, 4  # hidden units of a network, and networks
ROUNDS = 300  # of Adam, over all examples at once
RATE = 0.02
RIDGE = 1e-3
PARTS = 4  # of the texts, each scored by a network fitted to the others


class NothingToLearn(RedraftError):
    """A model's proposals hold nothing that is right."""


@dataclass(frozen=True)
class Examples:
    """Of one text: whether it has an error; of its proposals features float64 [n, F], and whether each mends the text
    and whether it stands at the error, bool [n]."""

    error: bool
    features: np.ndarray
    mends: np.ndarray
    found: np.ndarray


@dataclass(frozen=True)
class Work:
    """One window of the text `number`; prompt: what is read before it; tokens: the whole text's."""

    number: int
    window: Window
    prompt: list[int]
    tokens: list[int]

    def edited(self, model: Model, proposal: Proposal) -> str:
        """The text with the proposal."""
        initial, null = self.window.canvas.initial, model.reader.null
        at = self.window.start + sum(t != null for t in initial[: proposal.start])
        end = at + sum(t != null for t in initial[proposal.start : proposal.stop])
        new = [t for t in proposal.slots if t != null]
        return model.reader.text([*self.tokens[:at], *new, *self.tokens[end:]])


@dataclass(frozen=True)
class Proposed:
    """A proposal for a window: its features before the encode role has read anything, whether it mends the text, and
    whether it stands at the error."""

    work: Work
    proposal: Proposal
    shown: list[float]
    mends: bool
    found: bool


def proposed(model: Model, pairs: Sequence[Pair], progress: Progress = lambda text: None) -> list[Proposed]:
    """What a model's canvases propose of the texts' damaged side, window by window, each behind the text as it
    stands."""
    editor, made = model._editor(0, None, {}), []
    for works in _some(list(_windows(editor, pairs))):
        progress(f"proposals of text {works[0].number} of {len(pairs)}")
        for work, proposal, features in _slips(model, editor, works):
            pair = pairs[work.number]
            counts = count(Triple(pair.original, pair.damaged, work.edited(model, proposal), pair.kind))
            mends = bool(pair.kind) and counts.mended > 0 and counts.right == counts.edits
            made.append(Proposed(work, proposal, features, mends, counts.found > 0))
    return made


def examples(
    model: Model, pairs: Sequence[Pair], made: Sequence[Proposed], progress: Progress = lambda text: None
) -> list[Examples]:
    """Of each text the proposals `made`, as the encode role reads them."""
    rows: list[list[tuple[list[float], bool, bool]]] = [[] for _ in pairs]
    by_window: dict[tuple[int, int], list[Proposed]] = {}
    for one in made:
        by_window.setdefault((one.work.number, one.work.window.start), []).append(one)
    for group in _some(list(by_window.values())):
        progress(f"readings of text {group[0][0].work.number} of {len(pairs)}")
        for one, left in _read(model, group):
            rows[one.work.number].append(([*one.shown, *left], one.mends, one.found))
    return [_gathered(pair, found) for pair, found in zip(pairs, rows, strict=True)]


T = TypeVar("T")


def _some(everything: Sequence[T]) -> Iterator[Sequence[T]]:
    for first in range(0, len(everything), AT_ONCE):
        yield everything[first : first + AT_ONCE]


def _windows(editor: Editor, pairs: Sequence[Pair]) -> Iterator[Work]:
    for number, pair in enumerate(pairs):
        tokens = editor.pieces.encode(pair.damaged)
        for window in Windows(editor, pair.damaged, [(0, len(pair.damaged))]).windows:
            prompt = editor.prompt(tokens[: window.start], True, editor.limit // 2)
            yield Work(number, window, prompt, tokens)


def _slips(
    model: Model, editor: Editor, works: Sequence[Work]
) -> Iterator[tuple[Work, Proposal, list[float]]]:
    """One evaluation for some windows: their canvases."""
    silent = [t for t in editor.pieces.silent if t != model.reader.null]
    passes = [
        Pass(
            model.backend.new_context(len(w.prompt) + len(w.window.canvas.initial)),
            np.array(w.prompt, np.int64),
            canvas=np.array(w.window.canvas.initial, np.int64),
            locked=np.array(w.window.canvas.locked),
        )
        for w in works
    ]
    for work, result in zip(works, model.backend.forward(passes), strict=True):
        log_p = log_softmax(cast(np.ndarray, result.canvas), silent)
        for proposal, features in model.reader.slips(work.window.canvas, log_p):
            yield work, proposal, features


def _read(model: Model, group: Sequence[Sequence[Proposed]]) -> Iterator[tuple[Proposed, list[float]]]:
    """The features of LEFT for the proposals of some windows: their texts as they stand and with each proposal are
    read in one evaluation."""
    reader, passes = model.reader, []
    for made in group:
        work = made[0].work
        initial = work.window.canvas.initial
        for slots in [initial, *(one.proposal.made(initial) for one in made)]:
            text = [*work.prompt, *(t for t in slots if t != reader.null)]
            context = model.backend.new_context(len(text))
            passes.append(Pass(context, np.array(text, np.int64), "all"))
    results = iter(model.backend.forward(passes))
    for made in group:
        before = len(made[0].work.prompt) - 1

        def log_p(result: PassResult, before: int = before) -> np.ndarray:
            return log_softmax(result.encode[before:], reader.pieces.silent)

        standing = log_p(next(results))
        for one in made:
            yield one, reader.left(one.work.window.canvas, one.proposal, log_p(next(results)), standing)


def _gathered(pair: Pair, found: Sequence[tuple[list[float], bool, bool]]) -> Examples:
    features = np.array([f for f, _, _ in found], np.float64).reshape(-1, len(FEATURES))
    return Examples(
        bool(pair.kind),
        features,
        np.array([m for _, m, _ in found], bool),
        np.array([f for *_, f in found], bool),
    )


@dataclass(frozen=True)
class Weights:
    """matrix: float64 [F, 1 + H], units: float64 [H], as in editing.noisy_channel.scores."""

    matrix: np.ndarray
    units: np.ndarray

    def scores(self, text: Examples) -> np.ndarray:
        """float64 [n]"""
        return scores(self.matrix, self.units, text.features)


def fitted(texts: Sequence[Examples], units: int = UNITS, members: int = MEMBERS) -> Weights:
    """Under which the examples are likeliest, less a ridge: of `members` networks with `units` hidden units each, side
    by side as one. The first feature is a constant. Raises NothingToLearn without an example that is right."""
    x = np.concatenate([t.features for t in texts]).astype(np.float32)
    y = np.concatenate([(t.mends + 1.0 * t.found) / 2 for t in texts]).astype(np.float32)
    if not y.any():
        raise NothingToLearn("no proposal comes near any of the errors")
    middle, spread = x.mean(0), x.std(0)
    middle[0], spread = 0.0, np.where(spread > 0, spread, 1.0)
    found = [_descended((x - middle) / spread, y, units, seed) for seed in range(members)]
    direct = sum(matrix[:, :1] for matrix, _ in found) / members
    matrix = np.concatenate([direct, *(matrix[:, 1:] for matrix, _ in found)], axis=1)
    matrix = (matrix / spread[:, None]).astype(np.float64)
    matrix[0] -= middle @ matrix
    return Weights(matrix, np.concatenate([out for _, out in found]).astype(np.float64) / members)


def screened(made: Sequence[Proposed]) -> np.ndarray:
    """float64 [S]: what each feature of a proposal that is known without the encode role counts for its being
    right."""
    x = np.array([one.shown for one in made], np.float64).reshape(-1, len(SHOWN))
    mends, found = np.array([one.mends for one in made], bool), np.array([one.found for one in made], bool)
    return fitted([Examples(True, x, mends, found)], units=0, members=1).matrix[:, 0]


def passed(screen: np.ndarray, made: Sequence[Proposed]) -> list[Proposed]:
    """Those that the encode role gets to read."""
    by_proposal = {(id(one.work), one.proposal): one for one in made}
    out = []
    for work, group in groupby(made, key=lambda one: id(one.work)):
        found = hopeful(screen, [(one.proposal, one.shown) for one in group])
        out += [by_proposal[work, proposal] for proposal, _ in found]
    return out


def _descended(x: np.ndarray, y: np.ndarray, units: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [F, 1 + H] and [H] by Adam, whose rate falls to 0 over the second half. x: float32 [n, F]."""
    rng = np.random.default_rng(seed)
    shape = x.shape[1], units
    matrix = np.concatenate((np.zeros((shape[0], 1)), rng.normal(size=shape) / np.sqrt(shape[0])), axis=1)
    weights = [matrix.astype(np.float32), (rng.normal(size=units) / np.sqrt(units or 1)).astype(np.float32)]
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for number in range(ROUNDS):
        sums = x @ weights[0]
        hidden = np.tanh(sums[:, 1:])
        wrong = (_logistic(sums[:, 0] + hidden @ weights[1]) - y) / len(y)
        back = np.concatenate((wrong[:, None], wrong[:, None] * weights[1] * (1 - hidden**2)), axis=1)
        slopes = [x.T @ back + RIDGE * weights[0], hidden.T @ wrong + RIDGE * weights[1]]
        slopes[0][:, 0] -= RIDGE * weights[0][:, 0]  # what counts directly is free
        rate = RATE * min(1.0, 2 * (1 - number / ROUNDS))
        for w, m, v, slope in zip(weights, first, second, slopes, strict=True):
            m += 0.1 * (slope - m)
            v += 0.01 * (slope**2 - v)
            w -= rate * (m / (1 - 0.9 ** (number + 1))) / (np.sqrt(v / (1 - 0.99 ** (number + 1))) + 1e-8)
    return weights[0], weights[1]


def _logistic(score: np.ndarray) -> np.ndarray:
    out: np.ndarray = 1 / (1 + np.exp(-np.clip(score, -80, 80)))
    return out


def held_out(texts: Sequence[Examples]) -> list[np.ndarray]:
    """Of each text the scores of its proposals, by weights that were fitted to other texts."""
    found: dict[int, np.ndarray] = {}
    for part in range(PARTS):
        try:
            weights = fitted([t for number, t in enumerate(texts) if number % PARTS != part])
        except NothingToLearn:
            continue
        found |= {n: weights.scores(t) for n, t in enumerate(texts) if n % PARTS == part}
    return [found.get(number, np.zeros(0)) for number in range(len(texts))]


def operating_point(
    texts: Sequence[Examples], found: Sequence[np.ndarray], most_false: float = MARGIN * MOST_FALSE
) -> float:
    """The lowest threshold at which at most `most_false` of the texts without error are edited; 1, at which nothing is,
    where there are none. found: scores of each text's proposals."""
    right = [own for text, own in zip(texts, found, strict=True) if not text.error]
    tops = sorted((float(own.max()) if len(own) else -np.inf for own in right), reverse=True)
    allowed = int(most_false * len(tops))
    if allowed >= len(tops):
        return 0.0 if tops else 1.0
    # Just above the surest of those that must stay as they are.
    return float(min(1.0, np.nextafter(_logistic(np.array(tops[allowed])), 2)))


def tuned_channel(
    generation: dict[str, Any], model: Model, pairs: Sequence[Pair], progress: Progress = lambda text: None
) -> dict[str, Any]:
    """generation_config.json with the entry `proofread`, chosen on validation texts."""
    made = proposed(model, pairs, progress)
    screen = screened(made).round(4)
    found = examples(model, pairs, passed(screen, made), progress)
    weights = fitted(found)
    threshold = operating_point(found, held_out(found))
    proofread = {
        "threshold": min(round(threshold + 5e-5, 4), 1.0),
        "screen": dict(zip(SHOWN, screen.tolist(), strict=True)),
        "units": weights.units.round(4).tolist(),
        "weights": dict(zip(FEATURES, weights.matrix.round(4).tolist(), strict=True)),
    }
    return generation | {"proofread": proofread}
