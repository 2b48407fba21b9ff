"""The process against brute force: everything is enumerated, nothing is assumed."""

from __future__ import annotations

import numpy as np
import pytest

from redraft.corruption import Process, process
from tests.corruption.toy import Toy

V, MASK = 4, 3
PROCESSES = {
    "absorbing": process("absorbing", V, MASK),
    "absorbing cosine": process("absorbing", V, MASK, "cosine"),
    "uniform": process("uniform", V),
    "uniform beside a mask": process("uniform", V, MASK, "loglinear"),
    "hybrid": process("hybrid", V, MASK, "linear", 0.2),
    "hybrid cosine": process("hybrid", V, MASK, "cosine", 0.4),
    "hybrid, two tokens of noise": process("hybrid", V, MASK, "linear", 0.3, noise_ids=(0, 2)),
}
each_process = pytest.mark.parametrize("q", PROCESSES.values(), ids=PROCESSES.keys())
TIMES = [(0.1, 0.35), (0.35, 0.8), (0.5, 1.0), (0.0, 0.6)]


def transitions(q: Process, s: float, t: float) -> np.ndarray:
    return q.transition(np.arange(V), s, t)


@each_process
def test_marginal_is_what_the_shares_say(q: Process) -> None:
    for t in (0.0, 0.3, 1.0):
        shares = q.kernel.shares(t)
        for x in range(V):
            want = np.zeros(V)
            for y in q.noise_tokens:
                want[y] += shares.uniform / len(q.noise_tokens)
            if q.mask_id is not None:
                want[q.mask_id] += shares.mask
            want[x] += shares.alpha
            assert np.allclose(q.marginal(np.array(x), t), want, atol=1e-15)
            assert want.sum() == pytest.approx(1.0)


@each_process
@pytest.mark.parametrize(("s", "t"), TIMES)
def test_chapman_kolmogorov(q: Process, s: float, t: float) -> None:
    step = transitions(q, s, t)
    assert (step >= 0).all()
    assert np.allclose(step.sum(axis=-1), 1.0)
    assert np.allclose(q.marginal(np.arange(V), s) @ step, q.marginal(np.arange(V), t), atol=1e-14)
    middle = (s + t) / 2
    assert np.allclose(transitions(q, s, middle) @ transitions(q, middle, t), step, atol=1e-14)


@each_process
@pytest.mark.parametrize(("s", "t"), TIMES)
def test_posterior_is_bayes(q: Process, s: float, t: float) -> None:
    before, step, after = q.marginal(np.arange(V), s), transitions(q, s, t), q.marginal(np.arange(V), t)
    for x in range(V):
        for z in range(V):
            if after[x, z] == 0.0:
                continue
            want = step[:, z] * before[x] / after[x, z]
            assert np.allclose(q.posterior(np.array(z), np.array(x), s, t), want, atol=1e-14)


@each_process
def test_posterior_of_a_belief(q: Process) -> None:
    """ "leave_one_out" is the ratio of mixtures, "full" the mean of posteriors."""
    s, t = 0.2, 0.7
    belief = np.array([0.5, 0.2, 0.3, 0.0])
    step, after = transitions(q, s, t), belief @ q.marginal(np.arange(V), t)
    for z in range(V):
        if after[z] == 0.0:
            continue
        mixed = step[:, z] * (belief @ q.marginal(np.arange(V), s)) / after[z]
        assert np.allclose(q.posterior(np.array(z), belief, s, t), mixed, atol=1e-14)
        possible = q.marginal(np.arange(V), t)[:, z] > 0
        if not possible[belief > 0].all():
            continue
        mean = sum(belief[x] * q.posterior(np.array(z), np.array(x), s, t) for x in range(3))
        assert np.allclose(q.posterior(np.array(z), belief, s, t, "full"), mean, atol=1e-14)


@each_process
def test_leave_one_out_is_bayes_on_an_enumerated_language(q: Process) -> None:
    toy, t = Toy(text=3, length=3), 0.6
    z = toy.noisy(q)
    possible = (toy.p * toy.likelihood(q, z, t).prod(-1)).sum(-1) > 0
    z = z[possible]
    full, without = toy.belief(q, z, t, False), toy.belief(q, z, t, True)
    ours = q.leave_one_out(full, z, t)
    alone = (
        q.noise(t)[z] == 0.0
    )  # a token that noise can't make tells its own x_0: nothing is left to infer from
    assert np.allclose(ours[~alone], without[~alone], atol=1e-12)
    assert np.allclose(ours[alone], np.eye(V)[z[alone]], atol=1e-15)


@each_process
def test_reverse_chain_reproduces_the_marginal(q: Process) -> None:
    """Σ_z q_t(z) p(x_s | z) with the exact full denoiser is q_s, slot by slot."""
    toy, s, t = Toy(text=3, length=2), 0.25, 0.75
    z = toy.noisy(q)
    joint = (toy.p * toy.likelihood(q, z, t).prod(-1)).sum(-1)
    z, joint = z[joint > 0], joint[joint > 0]
    after = q.posterior(z, toy.belief(q, z, t, False), s, t, "full")
    assert np.allclose(after, q.posterior(z, toy.belief(q, z, t, True), s, t), atol=1e-12)
    for slot in range(2):
        want = toy.p @ q.marginal(toy.texts[:, slot], s)
        assert np.allclose(joint @ after[:, slot], want, atol=1e-13)


@each_process
def test_corrupt_draws_from_the_marginal(q: Process) -> None:
    rng = np.random.default_rng(0)
    x = np.tile(np.array([0, 1, 2]), (40_000, 1))
    times = np.array([0.2, 0.5, 0.9])  # one time a slot
    first, second = q.coupled_corrupt(x, times, rng)
    for drawn, when in ((q.corrupt(x, times, rng), times), (first, times), (second, 1 - times)):
        assert drawn.dtype == np.int64
        for slot in range(3):
            seen = np.bincount(drawn[:, slot], minlength=V) / len(x)
            want = q.marginal(x[0, slot], when[slot])
            assert (np.abs(seen - want) <= 5 * np.sqrt(want * (1 - want) / len(x))).all()


def test_coupled_copies_are_complements_when_absorbing() -> None:
    rng, q = np.random.default_rng(1), PROCESSES["absorbing"]
    x = rng.integers(3, size=(500, 16))
    t = rng.random((500, 1))
    first, second = q.coupled_corrupt(x, t, rng)
    assert ((first == MASK) ^ (second == MASK)).all()
    assert np.array_equal(np.where(first == MASK, second, first), x)
    whole, none = q.coupled_corrupt(x, 1.0, rng)
    assert (whole == MASK).all()
    assert np.array_equal(none, x)


@each_process
def test_ends_of_time(q: Process) -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(3, size=(50, 8))
    assert np.array_equal(q.corrupt(x, 0.0, rng), x)
    prior = q.prior((20_000,), rng)
    want = q.noise(1.0) / q.noise(1.0).sum()
    seen = np.bincount(prior, minlength=V) / len(prior)
    assert (np.abs(seen - want) <= 5 * np.sqrt(want * (1 - want) / len(prior))).all()
    assert (np.isin(prior, q.noise_tokens) | (prior == q.mask_id)).all()


def test_hybrid_without_random_tokens_equals_absorbing() -> None:
    hybrid, absorbing = process("hybrid", V, MASK, "linear", 0.0), PROCESSES["absorbing"]
    x, t = np.arange(3), 0.4
    assert np.array_equal(hybrid.marginal(x, t), absorbing.marginal(x, t))
    assert np.array_equal(
        hybrid.posterior(np.full(3, MASK), x, 0.1, t), absorbing.posterior(np.full(3, MASK), x, 0.1, t)
    )
    same = (q.corrupt(np.tile(x, 99), t, np.random.default_rng(3)) for q in (hybrid, absorbing))
    assert np.array_equal(*same)


def test_a_token_that_can_not_be_there_tells_nothing() -> None:
    """Text given to the hybrid process at t = 1, where all should be masks, must not turn into NaN."""
    q, belief = PROCESSES["hybrid"], np.array([0.5, 0.2, 0.3, 0.0])
    assert np.array_equal(q.posterior(np.array(1), belief, 0.4, 1.0), q.marginal(belief, 0.4))
