"""The bound against exact enumeration over the masks of a canvas."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from redraft.engine.backend import Pass
from redraft.engine.likelihood import blocks, likelihood
from redraft.errors import RequestError
from tests.engine.models import MASK, NOTHING, NULL, backend

TEXT = np.array([7, 12, 3, 20, 5, 9, 31])


def log_p(on: Any, text: np.ndarray, start: int, masked: tuple[int, ...], length: int) -> np.ndarray:
    """log p of the masked tokens of the canvas over text[start : start + length], from one pass of its
    own."""
    context = on.new_context(16)
    if start:
        on.forward([Pass(context, text[:start])])
    canvas = text[start : start + length].copy()
    canvas[list(masked)] = MASK
    locked = np.zeros(length, dtype=bool)
    logits = on.forward([Pass(context, NOTHING, canvas=canvas, locked=locked)])[0].canvas[list(masked)]
    logits = logits.astype(np.float64)
    logits[:, MASK] = -np.inf
    wide = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    return (wide - logits.max(-1, keepdims=True))[np.arange(len(masked)), text[start + np.array(masked)]]


def exact_bound(on: Any, length: int) -> float:
    """The NELBO by its definition: the mean over k of L / k times the mean over all masks of k slots."""
    total = 0.0
    for start in range(1, len(TEXT), length):
        size = min(length, len(TEXT) - start)
        for k in range(1, size + 1):
            masks = list(itertools.combinations(range(size), k))
            total -= np.mean([log_p(on, TEXT, start, m, size).sum() for m in masks]) * size / k / size
    return total


def true_nll(on: Any, length: int) -> float:
    """-log p of the text when slots are revealed one at a time in a uniformly random order."""
    total = 0.0
    for start in range(1, len(TEXT), length):
        size = min(length, len(TEXT) - start)
        paths = []
        for order in itertools.permutations(range(size)):
            steps = [log_p(on, TEXT, start, tuple(sorted(order[i:])), size) for i in range(size)]
            places = [sorted(order[i:]).index(order[i]) for i in range(size)]
            paths.append(sum(step[place] for step, place in zip(steps, places, strict=True)))
        total -= np.logaddexp.reduce(paths) - math.log(math.factorial(size))
    return total


def test_canvases_of_one_slot_give_the_exact_chain_rule() -> None:
    on = backend()
    bound = likelihood(on, TEXT, canvas_length=1)
    chain = -sum(float(log_p(on, TEXT, at, (0,), 1)[0]) for at in range(1, len(TEXT)))
    assert bound.nelbo == pytest.approx(chain, abs=1e-9)
    assert bound.nelbo_se == 0.0
    assert bound.tokens == len(TEXT) - 1


@pytest.mark.parametrize("length", [2, 3])
def test_the_estimate_is_unbiased_and_its_error_honest(length: int) -> None:
    on = backend()
    exact = exact_bound(on, length)
    assert exact >= true_nll(on, length)
    bounds = [likelihood(on, TEXT, length, strata=2, replicates=4, seed=s) for s in range(12)]
    estimates = np.array([b.nelbo for b in bounds])
    errors = np.array([b.nelbo_se for b in bounds])
    spread = math.sqrt(float(np.mean(errors**2)))
    assert abs(estimates.mean() - exact) < 4 * spread / math.sqrt(len(bounds))
    assert 0.5 < estimates.std(ddof=1) / spread < 2.0


def test_the_encode_role_gives_the_exact_ar_likelihood() -> None:
    on = backend()
    rows = on.forward([Pass(on.new_context(8), TEXT, "all")])[0].encode.astype(np.float64)
    rows[:, [MASK, NULL]] = -np.inf
    logs = rows - np.logaddexp.reduce(np.where(np.isinf(rows), -1e300, rows), -1)[:, None]
    want = -sum(logs[i, TEXT[i + 1]] for i in range(len(TEXT) - 1))
    assert likelihood(on, TEXT).ar_nll == pytest.approx(want, abs=1e-9)


def test_one_block_over_all_is_the_full_layouts_bound() -> None:
    """full: one canvas over the text with its first token given, all others masked in turn."""
    for family in ({"layout": "full"}, {"layout": "full", "shift": True}):
        on = backend(**family)
        bound = likelihood(on, TEXT, strata=6, replicates=2)
        assert bound.ar_nll is None
        assert bound.nelbo is not None
        assert bound.nelbo > 0
    assert [(b.start, b.stop, b.given) for b in blocks(on.config, 7, 3)] == [(0, 7, 1)]


@pytest.mark.parametrize("shift", [False, True])
def test_canvases_see_the_context_before_them_alone(shift: bool) -> None:
    """Scoring a text's end does not change with how it is cut, nor with what was scored before it."""
    for layout in ("causal_context", "block_causal"):
        on = backend(layout=layout, shift=shift, canvas_length=2)
        first = likelihood(on, TEXT, strata=2, replicates=2, seed=4)
        again = likelihood(on, TEXT, strata=2, replicates=2, seed=4)
        assert first == again
        covered = sorted(t for b in blocks(on.config, 7, 2) for t in range(b.start + b.given, b.stop))
        assert covered == list(range(1, 7))


def test_what_can_not_be_scored() -> None:
    with pytest.raises(RequestError, match="too short"):
        likelihood(backend(), TEXT[:1])
    with pytest.raises(RequestError, match="the text has 193 tokens and the context 192"):
        likelihood(backend(), np.full(193, 5))
    assert likelihood(backend(mask_token_id=None), TEXT).nelbo is None


@pytest.mark.parametrize("layout", ["causal_context", "block_causal", "full"])
def test_a_text_behind_a_given_one(layout: str) -> None:
    """Only the tokens behind are scored, and each of them once; in AR the two parts add up to the whole."""
    on = backend(layout=layout)
    for given in (1, 2, 3, 6):
        covered = sorted(t for b in blocks(on.config, 7, 2, given) for t in range(b.start + b.given, b.stop))
        assert covered == list(range(given, 7))
    tail = likelihood(on, TEXT, given=4, strata=2, replicates=2)
    assert tail.tokens == 3
    assert tail.nelbo is not None
    if layout == "causal_context":
        whole, head = likelihood(on, TEXT, replicates=0), likelihood(on, TEXT[:4], replicates=0)
        assert whole.nelbo is None
        assert head.ar_nll + tail.ar_nll == pytest.approx(whole.ar_nll, abs=1e-5)
    with pytest.raises(RequestError, match="too short"):
        likelihood(on, TEXT, given=7)


def test_greedy_is_told_of_the_encode_role() -> None:
    on = backend()
    text = list(TEXT[:3])
    for _ in range(4):
        row = on.forward([Pass(on.new_context(8), np.array(text), "all")])[0].encode[-1].copy()
        row[[MASK, NULL]] = -np.inf
        text.append(int(row.argmax()))
    assert likelihood(on, np.array(text), replicates=0, given=3).ar_greedy is True
    text[4] = (text[4] + 1) % 40
    assert likelihood(on, np.array(text), replicates=0, given=3).ar_greedy is False
    assert likelihood(backend(layout="full"), TEXT, replicates=0).ar_greedy is None
