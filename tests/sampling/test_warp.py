"""Warping against transformers' processors and against its own words; the noise against its distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from redraft.errors import RedraftError, RequestError
from redraft.sampling import NoiseKey, SamplerSettings, SlotVocabulary, WarpSettings, choose, gumbel, warp
from redraft.sampling.noise import COIN, _Cache, _unit, random_tokens, uniforms

torch.set_num_threads(1)
V = 50


def logits_of(seed: int, rows: int = 6, size: int = V) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32) * 3


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 80])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_temperature_top_k_top_p_are_transformers(temperature: float, top_k: int, top_p: float) -> None:
    from transformers import generation

    logits = logits_of(0)
    scores = torch.tensor(logits, dtype=torch.float64)
    scores = generation.TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        scores = generation.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = generation.TopPLogitsWarper(top_p)(None, scores)
    ours = warp(logits, WarpSettings(temperature, top_k, top_p))
    assert ours.dtype == np.float64
    assert np.allclose(ours, scores.numpy(), rtol=1e-6)
    assert np.array_equal(np.isfinite(ours), np.isfinite(scores.numpy()))


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.99])
def test_top_p_looks_beyond_its_sorted_head(top_p: float) -> None:
    """Flat distributions, whose nucleus is longer than what is sorted first."""
    for scale in (0.01, 0.5):
        logits = logits_of(1, 3, 900) * np.float32(scale)
        p = np.exp(logits.astype(np.float64))
        p = -np.sort(-p / p.sum(-1, keepdims=True), axis=-1)
        want = (np.cumsum(p, -1) - p < top_p).sum(-1)
        assert np.array_equal(np.isfinite(warp(logits, WarpSettings(1.0, 0, top_p))).sum(-1), want)


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_penalty_is_transformers(penalty: float) -> None:
    from transformers import generation

    logits, chosen = logits_of(2, 1), [3, 9, 3, 44]
    theirs = generation.RepetitionPenaltyLogitsProcessor(penalty)(
        torch.tensor([chosen]), torch.tensor(logits)
    )
    assert np.allclose(
        warp(logits, WarpSettings(repetition_penalty=penalty), chosen), theirs.numpy(), rtol=1e-6
    )


def test_bias_penalties_bans_and_grammar() -> None:
    logits = logits_of(3, 2)
    settings = WarpSettings(logit_bias=((5, 2.5), (6, -1.0)), frequency_penalty=0.5, presence_penalty=0.25)
    allowed = np.ones(V, bool)
    allowed[20:] = False
    before = logits.copy()
    out = warp(logits, settings, [3, 3, 3, 5], allowed, banned=[7])
    want = logits.astype(np.float64)
    want[:, 5] += 2.5 - 0.75
    want[:, 6] -= 1.0
    want[:, 3] -= 1.75
    want[:, 20:] = want[:, 7] = -np.inf
    assert np.allclose(out, want)
    assert np.array_equal(logits, before)
    rows = np.stack([allowed, ~allowed])
    assert np.isfinite(warp(logits, settings, allowed=rows)).sum(-1).tolist() == [20, V - 20]


def test_nothing_allowed_and_unknown_tokens_are_told() -> None:
    allowed = np.zeros(V, bool)
    allowed[4] = True
    with pytest.raises(RedraftError, match="no token is allowed"):
        warp(logits_of(0), WarpSettings(), allowed=allowed, banned=[4])
    with pytest.raises(RequestError, match="token 50"):
        warp(logits_of(0), WarpSettings(logit_bias=((50, 1.0),)))


def test_choice_is_a_draw_from_the_warped_distribution() -> None:
    vocabulary, settings = SlotVocabulary(6, mask_id=4, null_id=5, banned=(3,)), WarpSettings(0.8, 0, 0.95)
    logits = np.array([1.0, 0.5, 0.0, 3.0, 4.0, 5.0], np.float32)
    count = 1500
    seen = np.bincount(
        [choose(logits, settings, vocabulary, NoiseKey(1), i) for i in range(count)], minlength=6
    )
    p = np.exp(warp(logits, settings, banned=(3, 4, 5)))
    p /= p.sum()
    assert (np.abs(seen / count - p) <= 5 * np.sqrt(p * (1 - p) / count)).all()
    assert choose(logits, WarpSettings(), vocabulary, NoiseKey(1), 0) == 0
    with pytest.raises(RedraftError, match="not finite"):
        choose(np.full(6, np.nan), settings, vocabulary, NoiseKey(1), 0)


def test_choice_is_the_argmax_of_warp_and_noise() -> None:
    """The contract that lets a canvas and AR agree: argmax(warp(logits) + gumbel(key, position))."""
    vocabulary, settings = SlotVocabulary(V, mask_id=0), SamplerSettings(temperature=0.9, top_k=20)
    for position, row in enumerate(logits_of(4, 30)):
        warped = warp(row, settings, banned=(0,))
        want = int(np.argmax(warped + gumbel(NoiseKey(7, 2), position, V)))
        assert choose(row, settings, vocabulary, NoiseKey(7, 2), position) == want


def test_noise_is_pinned() -> None:
    """A seed's meaning must not change from version to version."""
    first = gumbel(NoiseKey(42), 0, 4)
    assert first.dtype == np.float64
    assert first == pytest.approx(PINNED_GUMBEL, rel=1e-12)
    assert random_tokens(NoiseKey(42), 0, 6, 1, 4096, 4).tolist() == PINNED_TOKENS


PINNED_GUMBEL = [1.6184316138830466, -0.5096506393391381, 1.9522493507146503, 0.07264634652931154]
PINNED_TOKENS = [1517, 823, 260, 915, 1854, 1381]


def test_noise_is_gumbel_and_reaches_its_tail() -> None:
    noise = np.concatenate([gumbel(NoiseKey(3), i, 4096) for i in range(20)])
    assert noise.mean() == pytest.approx(0.577216, abs=0.03)
    assert noise.var() == pytest.approx(np.pi**2 / 6, rel=0.05)
    ends = _unit(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert 0.0 < ends[0] < ends[1] < 1.0
    assert -np.log(-np.log(ends[1])) > 30.0  # float32 stops at 16.6


def test_noise_has_no_memory() -> None:
    key = NoiseKey(9)
    alone = [uniforms(key, i, 1, 3, COIN)[0] for i in range(10)]
    assert alone == uniforms(key, 0, 10, 3, COIN).tolist()
    assert alone[4:] == uniforms(key, 4, 6, 3, COIN).tolist()  # wherever the canvas starts
    before = gumbel(key, 5, V).copy()
    for other in range(2000):
        gumbel(NoiseKey(other), 5, V)
    assert np.array_equal(gumbel(key, 5, V), before)
    with pytest.raises(ValueError, match="read-only"):
        gumbel(key, 5, V)[0] = 0.0


def test_the_cache_keeps_to_its_bytes() -> None:
    cache = _Cache(limit=1000)
    for i in range(50):
        cache.row((NoiseKey(i), 0, 30), lambda: np.zeros(30))
    assert cache._held <= 1000
    assert cache._held == sum(row.nbytes for row in cache._rows.values()) > 0


def test_random_tokens_are_uniform_and_never_the_mask() -> None:
    tokens = random_tokens(NoiseKey(1), 0, 20_000, 0, 8, 3)
    seen = np.bincount(tokens, minlength=8) / len(tokens)
    assert seen[3] == 0.0
    assert np.abs(np.delete(seen, 3) - 1 / 7).max() < 5 * np.sqrt(1 / 7 * 6 / 7 / len(tokens))
    assert set(random_tokens(NoiseKey(1), 0, 500, 0, 8, None)) == set(range(8))


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": float("nan")},
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": float("inf")},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((1, float("nan")),)},
        {"canvas_length": 0},
        {"canvas_length": True},
        {"max_steps": 0},
        {"steps": 0},
        {"accept": "luck"},
        {"threshold": 1.5},
        {"threshold": "0.9"},
        {"entropy_bound": -1.0},
        {"renoise": "pink"},
        {"temperature_end": 0.4},
        {"edit_threshold": 2.0},
        {"edit_steps": -1},
        {"remask": "all"},
        {"remask": "cap", "remask_eta": 2.0},
        {"corruption": "gaussian"},
        {"schedule": "square"},
        {"start": 0.0},
        {"uniform_share": 1.0},
        {"belief": "none"},
        {"stable_steps": -1},
        {"confident_entropy": -0.1},
        {"accept": "first_hitting", "corruption": "uniform"},
        {"accept": "first_hitting", "remask": "cap"},
        {"accept": "entropy_bound", "renoise": "uniform", "edit_threshold": 0.5},
        {"accept": "ancestral", "corruption": "hybrid", "remask": "cap"},
        {"renoise": "uniform", "remask": "cap"},
    ],
    ids=str,
)
def test_settings_that_make_no_sense(bad: dict) -> None:
    with pytest.raises(RequestError) as error:
        SamplerSettings(**bad)
    assert "\n" not in str(error.value)
    assert any(word in str(error.value) for word in bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"mask_id": 9},
        {"null_id": -1},
        {"eos_ids": (8,)},
        {"banned": (99,)},
        {"mask_id": 1, "null_id": 1},
        {"banned": tuple(range(8))},
    ],
)
def test_a_vocabulary_that_makes_no_sense(bad: dict) -> None:
    with pytest.raises(RequestError):
        SlotVocabulary(8, **bad)
