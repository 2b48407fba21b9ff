"""Formulas on texts small enough to count by hand, and likelihoods against the network itself."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redraft.api import Model
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.errors import RequestError
from redraft.evaluation.text import (
    bootstrap,
    bootstrap_ratio,
    continuation_nll,
    distinct,
    nll_of_rows,
    repetition,
    shortened,
    unigram_entropy,
)
from tests.denoiser.networks import clean_rows, mask_of, our_logits
from tests.engine.models import network
from tests.evaluation.conftest import random_texts

words = st.lists(st.integers(0, 3), max_size=12)


def test_distinct_counts_over_all_texts() -> None:
    assert distinct([[1, 2, 3], [1, 2, 4]], 2) == 3 / 4  # 12 23 12 24
    assert distinct([[1, 1, 1, 1]], 3) == 1 / 2
    assert distinct([[1, 2], [3]], 3) == 0.0


def test_no_ngram_crosses_from_one_text_into_the_next() -> None:
    assert distinct([[1, 2], [3, 4]], 2) == 1.0
    assert distinct([[1, 2], [1, 2]], 2) == 1 / 2


@given(st.lists(words, max_size=4), st.integers(1, 4))
def test_distinct_and_repetition_by_enumeration(texts: list[list[int]], n: int) -> None:
    possible = list(itertools.product(range(4), repeat=n))
    counts = {g: sum(t[i : i + n] == list(g) for t in texts for i in range(len(t))) for g in possible}
    total = sum(counts.values())
    assert distinct(texts, n) == (sum(c > 0 for c in counts.values()) / total if total else 0.0)
    for text in texts:
        again = sum(text[i : i + n] in [text[j : j + n] for j in range(i)] for i in range(len(text) - n + 1))
        assert repetition(text, n) == pytest.approx(again / max(1, len(text) - n + 1))


def test_entropy_of_known_texts() -> None:
    assert unigram_entropy([7, 8, 9, 10]) == pytest.approx(math.log(4), abs=1e-15)
    assert unigram_entropy([7, 7, 7]) == 0.0
    assert unigram_entropy([1, 1, 1, 2]) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert unigram_entropy([]) == 0.0


def test_texts_are_compared_over_equally_many_tokens() -> None:
    assert shortened([[[1, 2, 3], [4, 5]], [[6, 7, 8, 9]]]) == [[[1, 2], [4, 5]], [[6, 7]]]
    assert shortened([]) == []


def test_nll_of_rows_is_the_softmax_without_what_cannot_be() -> None:
    logits = np.array([[0.0, math.log(3), 50.0]], dtype=np.float32)
    assert nll_of_rows(logits, np.array([1]), (2,))[0] == pytest.approx(-math.log(3 / 4), abs=1e-7)
    assert nll_of_rows(logits + 1e4, np.array([0]), (2,))[0] == pytest.approx(math.log(4), abs=1e-3)


def test_likelihood_of_continuations_is_the_networks_own() -> None:
    """Against a plain forward over the whole text, of prompts and texts of several lengths in one batch."""
    denoiser = network(seed=3)
    vocab, never = denoiser.config.vocab_size, list(denoiser.config.special_slot_ids)
    prompts = [t[:n] for t, n in zip(random_texts(5, 20, vocab - 2), (1, 7, 20, 3, 7), strict=True)]
    texts = [t[:n] for t, n in zip(random_texts(5, 9, vocab - 2, seed=1), (9, 1, 4, 0, 9), strict=True)]
    found = continuation_nll(TorchBackend(denoiser), prompts, texts, batch=3)
    for prompt, text, nll in zip(prompts, texts, found, strict=True):
        assert nll.shape == (len(text),)
        if not len(text):
            continue
        whole = torch.from_numpy(np.concatenate((prompt, text)))[None]
        rows = clean_rows("causal_context", whole.shape[1], 8)
        logits = our_logits(denoiser, whole, rows.position, mask_of(rows))[0, len(prompt) - 1 : -1].double()
        logits[:, never] = -torch.inf
        expected = -torch.log_softmax(logits, -1)[torch.arange(len(text)), torch.from_numpy(text)]
        np.testing.assert_allclose(nll, expected.numpy(), rtol=0, atol=2e-5)


def test_likelihood_does_not_depend_on_the_batch(model: Model) -> None:
    vocab = 300
    prompts, texts = random_texts(6, 11, vocab), random_texts(6, 8, vocab, seed=1)
    alone = continuation_nll(model.backend, prompts, texts, batch=1)
    together = continuation_nll(model.backend, prompts, texts, batch=6)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_a_causal_self_there_is_no_likelihood() -> None:
    with pytest.raises(RequestError, match="layout full has no AR self"):
        continuation_nll(TorchBackend(network(layout="full")), [np.array([3])], [np.array([4])])
    with pytest.raises(RequestError, match="prompt is empty"):
        continuation_nll(TorchBackend(network()), [np.array([], dtype=np.int64)], [np.array([4])])


def test_bootstrap_interval_of_a_constant_and_of_a_known_spread() -> None:
    assert bootstrap(np.full(9, 2.5)) == (2.5, 2.5)
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.2 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.2 * half)


def test_bootstrap_of_a_ratio_keeps_pairs_together() -> None:
    below = np.arange(1.0, 9.0)
    assert bootstrap_ratio(2 * below, below) == pytest.approx((2.0, 2.0))
    low, high = bootstrap_ratio(2 * below, below, paired=False)
    assert low < 1.5
    assert high > 2.5
