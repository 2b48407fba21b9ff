"""Weights and operating point of proofreading, on examples counted by hand and a network whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from redraft.editing.noisy_channel import FEATURES, SLIPS, Channel
from redraft.evaluation.channel import (
    Examples,
    NothingToLearn,
    examples,
    fitted,
    operating_point,
    tuned_channel,
)
from redraft.evaluation.editors import Pair
from tests.editing.models import corrector, proofreader, tokens


def text(error: bool, *proposals: tuple[float, bool, bool]) -> Examples:
    """One feature beside the bias."""
    features = np.array([[1.0, value] for value, _, _ in proposals]).reshape(-1, 2)
    return Examples(
        error,
        features,
        np.array([m for _, m, _ in proposals], bool),
        np.array([f for *_, f in proposals], bool),
    )


def test_weights_are_where_the_likelihood_is_highest() -> None:
    rng = np.random.default_rng(0)
    texts = []
    for value in rng.normal(size=4000):
        right = bool(rng.random() < 1 / (1 + np.exp(1.0 - 2.0 * value)))
        texts.append(text(right, (float(value), right, right)))
    assert fitted(texts) == pytest.approx([-1.0, 2.0], abs=0.15)
    # at an error, but no mending: half right
    half = [text(True, (0.0, False, True)) for _ in range(4000)]
    assert fitted(half) == pytest.approx([0.0, 0.0], abs=1e-6)
    with pytest.raises(NothingToLearn):
        fitted([text(False, (1.0, False, False)), text(False)])


def test_the_operating_point_edits_as_many_right_texts_as_it_may() -> None:
    weights = np.array([0.0, 1.0])
    right = [text(False, (float(i), False, False), (-9.0, False, False)) for i in range(9)] + [text(False)]
    wrong = [text(True, (99.0, True, True))]
    for most, edits in ((0.0, 0), (0.1, 1), (0.25, 2), (0.89, 8), (0.9, 9)):
        threshold = operating_point(weights, [*right, *wrong], most)
        assert sum(1 / (1 + np.exp(-i)) >= threshold for i in range(9)) == edits
    assert operating_point(weights, right, 1.0) == 0.0
    assert operating_point(weights, wrong) == 1.0


def test_examples_are_what_the_canvas_proposes_and_whether_it_mends() -> None:
    (q,), (k,) = tokens("q"), tokens("k")
    model, backend = proofreader(corrector({q: k}, 0.6), lambda before: k)
    pairs = [
        Pair("go kick it", "go qick it", "typo"),
        Pair("go quick it", "go quiqk it", "typo"),
        Pair("go quick it", "go quick it"),
        Pair("go on", "go on"),
    ]
    found = examples(model, pairs)
    assert [t.error for t in found] == [True, True, False, False]
    # the likeliest proposal comes first
    assert [t.mends[:1].tolist() for t in found] == [[True], [False], [False], []]
    assert [bool(t.mends.any()) for t in found] == [True, False, False, False]
    assert [bool(t.found.all() and len(t.found)) for t in found] == [True, True, False, False]
    row = dict(zip(FEATURES, found[0].features[0], strict=True))
    assert (row["bias"], row["letter"], sum(row[kind] for kind in SLIPS)) == (1.0, 1.0, 1.0)
    # as the editor itself sees them
    model.edit("go qick it")
    assert backend.checked[-1] in backend.checked[:-1]


def test_what_is_chosen_is_what_the_defaults_keep() -> None:
    (q,), (k,) = tokens("q"), tokens("k")
    model, _ = proofreader(corrector({q: k}, 0.6), lambda before: k)
    pairs = [Pair("go kick it", "go qick it", "typo")] * 20 + [Pair("go on", "go on")] * 20
    told = tuned_channel({"threshold": 0.7}, model, pairs)
    assert told["threshold"] == 0.7
    channel = Channel.of(told["proofread"])
    assert channel is not None
    assert channel.threshold < 0.5
    assert channel.weights["letter"] > 0
