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
    held_out,
    operating_point,
    proposed,
    screened,
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


def certain(texts: list[Examples], value: float, units: int = 0) -> float:
    return float(1 / (1 + np.exp(-fitted(texts, units, 2).scores(text(True, (value, True, True)))[0])))


def test_weights_are_where_the_likelihood_is_highest() -> None:
    rng = np.random.default_rng(0)
    texts = []
    for value in rng.normal(size=4000):
        right = bool(rng.random() < 1 / (1 + np.exp(1.0 - 2.0 * value)))
        texts.append(text(right, (float(value), right, right)))
    direct = fitted(texts, 0, 1)
    assert direct.matrix[:, 0] == pytest.approx([-1.0, 2.0], abs=0.15)
    assert direct.units.shape == (0,)
    # at an error, but no mending: half right
    half = [text(True, (0.0, False, True)) for _ in range(100)]
    assert certain(half, 0.0) == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(NothingToLearn):
        fitted([text(False, (1.0, False, False)), text(False)])


def test_hidden_units_tell_what_no_sum_can() -> None:
    rng = np.random.default_rng(0)
    # right between -1 and 1 alone
    texts = [text(True, (float(v), bool(abs(v) < 1), bool(abs(v) < 1))) for v in rng.uniform(-3, 3, 2000)]
    assert max(abs(certain(texts, v) - 1 / 3) for v in (-2.0, 0.0, 2.0)) < 0.1
    assert certain(texts, 0.0, 8) > 0.8
    assert max(certain(texts, v, 8) for v in (-2.0, 2.0)) < 0.1


def test_held_out_scores_come_from_other_texts() -> None:
    # every fourth text says the opposite of the others; weights that had seen it would lean to it
    texts = [text(True, (1.0, n % 4 != 0, n % 4 != 0)) for n in range(40)]
    found = held_out(texts)
    assert [len(own) for own in found] == [1] * 40
    assert min(float(own[0]) for n, own in enumerate(found) if n % 4 == 0) > 3
    assert held_out([text(False, (1.0, False, False))] * 4)[0].shape == (0,)


def test_the_operating_point_edits_as_many_right_texts_as_it_may() -> None:
    right = [text(False, (float(i), False, False), (-9.0, False, False)) for i in range(9)] + [text(False)]
    wrong = [text(True, (99.0, True, True))]

    def point(texts: list[Examples], most: float) -> float:
        return operating_point(texts, [t.features[:, 1] for t in texts], most)

    for most, edits in ((0.0, 0), (0.1, 1), (0.25, 2), (0.89, 8), (0.9, 9)):
        threshold = point([*right, *wrong], most)
        assert sum(1 / (1 + np.exp(-i)) >= threshold for i in range(9)) == edits
    assert point(right, 1.0) == 0.0
    assert point(wrong, 0.02) == 1.0


def test_examples_are_what_the_canvas_proposes_and_whether_it_mends() -> None:
    (q,), (k,) = tokens("q"), tokens("k")
    model, backend = proofreader(corrector({q: k}, 0.6), lambda before: k)
    pairs = [
        Pair("go kick it", "go qick it", "typo"),
        Pair("go quick it", "go quiqk it", "typo"),
        Pair("go quick it", "go quick it"),
        Pair("go on", "go on"),
    ]
    made = proposed(model, pairs)
    found = examples(model, pairs, made)
    assert [t.error for t in found] == [True, True, False, False]
    # the likeliest proposal comes first
    assert [t.mends[:1].tolist() for t in found] == [[True], [False], [False], []]
    assert [bool(t.mends.any()) for t in found] == [True, False, False, False]
    assert [bool(t.found.all() and len(t.found)) for t in found] == [True, True, False, False]
    row = dict(zip(FEATURES, found[0].features[0], strict=True))
    assert (row["bias"], row["letter"], sum(row[kind] for kind in SLIPS)) == (1.0, 1.0, 1.0)
    # as the editor itself sees them
    model.edit("go qick it")
    read = [[*context, *encoded] for context, encoded in backend.checked]
    assert read[-1] in read[:-1]
    # a screen that tells the one from the other
    screen = screened(made)
    right = [float(screen @ one.shown) for one in made if one.mends]
    assert min(right) > max(float(screen @ one.shown) for one in made if not one.found)


def test_what_is_chosen_is_what_the_defaults_keep() -> None:
    (q,), (k,) = tokens("q"), tokens("k")
    model, _ = proofreader(corrector({q: k}, 0.6), lambda before: k)
    pairs = [Pair("go kick it", "go qick it", "typo")] * 20 + [Pair("go on", "go on")] * 20
    told = tuned_channel({"threshold": 0.7}, model, pairs)
    assert told["threshold"] == 0.7
    channel = Channel.of(told["proofread"])
    assert channel is not None
    assert channel.threshold < 0.5
    (mended,) = examples(model, pairs[:1], proposed(model, pairs[:1]))
    assert channel.scores(mended.features)[mended.mends].min() > 2
