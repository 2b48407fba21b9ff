"""The weights and the operating point of proofreading (editing.noisy_channel), chosen on texts with errors made in
them.

Every proposal that canvases make of these texts is an example: right if it mends the text, half right if it stands
where an error is. Logistic regression, with a small ridge. The threshold is the lowest at which few enough right texts
would be edited.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from redraft.api import Model
from redraft.editing.editor import Editor
from redraft.editing.noisy_channel import FEATURES, LEFT
from redraft.editing.proposals import Proposal
from redraft.editing.windows import Window, Windows
from redraft.engine.backend import Pass
from redraft.engine.review import log_softmax
from redraft.errors import RedraftError
from redraft.evaluation.editors import MOST_FALSE, Pair
from redraft.evaluation.proofread import Triple, count
from redraft.evaluation.writing import Progress

AT_ONCE = 16  # windows in an evaluation
RIDGE = 1.0
# Of the share of right texts that may be edited, so much is used on validation texts: training knew most of what they
# talk of, and where it knew less, as in the test texts, right texts were edited about 1.5 times as often.
MARGIN = 0.65
ROUNDS = 25  # of Newton's method


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


def examples(model: Model, pairs: Sequence[Pair], progress: Progress = lambda text: None) -> list[Examples]:
    """What a model proposes of the texts' damaged side, window by window, each behind the text as it stands."""
    editor = model._editor(0, None, {})
    rows: list[list[tuple[list[float], bool, bool]]] = [[] for _ in pairs]
    everything = list(_windows(editor, pairs))
    for first in range(0, len(everything), AT_ONCE):
        works = everything[first : first + AT_ONCE]
        progress(f"proposals of text {works[0].number} of {len(pairs)}")
        for work, proposal, features in _proposed(model, editor, works):
            pair = pairs[work.number]
            counts = count(Triple(pair.original, pair.damaged, work.edited(model, proposal), pair.kind))
            mends = bool(pair.kind) and counts.mended > 0 and counts.right == counts.edits
            rows[work.number].append((features, mends, counts.found > 0))
    return [_gathered(pair, found) for pair, found in zip(pairs, rows, strict=True)]


@dataclass(frozen=True)
class _Work:
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


def _windows(editor: Editor, pairs: Sequence[Pair]) -> Iterator[_Work]:
    for number, pair in enumerate(pairs):
        tokens = editor.pieces.encode(pair.damaged)
        for window in Windows(editor, pair.damaged, [(0, len(pair.damaged))]).windows:
            prompt = editor.prompt(tokens[: window.start], True, editor.limit // 2)
            yield _Work(number, window, prompt, tokens)


def _proposed(
    model: Model, editor: Editor, works: Sequence[_Work]
) -> Iterator[tuple[_Work, Proposal, list[float]]]:
    """Two evaluations for some windows: their canvases, and their text as it stands."""
    reader = model.reader
    silent = [t for t in editor.pieces.silent if t != reader.null]
    contexts = [model.backend.new_context(len(w.prompt) + len(w.window.canvas.initial)) for w in works]
    canvases = [
        Pass(
            context,
            np.array(w.prompt, np.int64),
            canvas=np.array(w.window.canvas.initial, np.int64),
            locked=np.array(w.window.canvas.locked),
        )
        for context, w in zip(contexts, works, strict=True)
    ]
    found = []
    for work, result in zip(works, model.backend.forward(canvases), strict=True):
        log_p = log_softmax(cast(np.ndarray, result.canvas), silent)
        found.append(reader.slips(work.window.canvas, log_p))
    checks = []
    for context, work in zip(contexts, works, strict=True):
        standing = [t for t in work.window.canvas.initial if t != reader.null]
        context.truncate(len(work.prompt) - 1)
        checks.append(Pass(context, np.array([work.prompt[-1], *standing], np.int64), "all"))
    for work, slips, result in zip(works, found, model.backend.forward(checks), strict=True):
        log_p = log_softmax(result.encode, editor.pieces.silent)
        canvas = work.window.canvas
        for proposal, features in slips:
            yield work, proposal, [*features, *reader.left(canvas, proposal, features, log_p)]


def _gathered(pair: Pair, found: Sequence[tuple[list[float], bool, bool]]) -> Examples:
    features = np.array([f for f, _, _ in found], np.float64).reshape(-1, len(FEATURES))
    return Examples(
        bool(pair.kind),
        features,
        np.array([m for _, m, _ in found], bool),
        np.array([f for *_, f in found], bool),
    )


def fitted(texts: Sequence[Examples]) -> np.ndarray:
    """float64 [F]: the weights under which the examples are likeliest (less the ridge), by Newton's method. Raises
    NothingToLearn without an example that is right."""
    x = np.concatenate([t.features for t in texts])
    y = np.concatenate([(t.mends + 1.0 * t.found) / 2 for t in texts])
    if not y.any():
        raise NothingToLearn("no proposal comes near any of the errors")
    weights = np.zeros(x.shape[1])
    ridge = np.full(len(weights), RIDGE)
    for _ in range(ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -500, 500)))
        slope = x.T @ (y - p) - ridge * weights
        weights = weights + np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + np.diag(ridge), slope)
    return weights


def operating_point(
    weights: np.ndarray, texts: Sequence[Examples], most_false: float = MARGIN * MOST_FALSE
) -> float:
    """The lowest threshold at which at most `most_false` of the texts without error are edited; 1, at which nothing is,
    where there are none."""
    tops = [float((t.features @ weights).max()) if len(t.features) else -np.inf for t in texts if not t.error]
    scores = sorted(tops, reverse=True)
    allowed = int(most_false * len(scores))
    if allowed >= len(scores):
        return 0.0 if scores else 1.0
    # Just above the surest of those that must stay as they are.
    return float(min(1.0, np.nextafter(1 / (1 + np.exp(-scores[allowed])), 2)))


def tuned_channel(
    generation: dict[str, Any], model: Model, pairs: Sequence[Pair], progress: Progress = lambda text: None
) -> dict[str, Any]:
    """generation_config.json with the entry `proofread`, chosen on validation texts."""
    found = examples(model, pairs, progress)
    weights = fitted(found).round(4)
    threshold = round(operating_point(weights, found) + 5e-5, 4)
    told = {name: float(w) for name, w in zip(FEATURES, weights, strict=True)}
    left = np.concatenate([t.features for t in found])[:, -len(LEFT) :] @ weights[-len(LEFT) :]
    proofread = {"threshold": min(threshold, 1.0), "reach": round(float(left.max()), 2), "weights": told}
    return generation | {"proofread": proofread}
