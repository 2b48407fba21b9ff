"""The bound against the field's closed forms, against numerical truth, and between numpy and torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from redraft.corruption import SCHEDULES, Process, process
from tests.corruption.toy import Toy, quadrature

torch.set_num_threads(1)

V, MASK = 4, 3
PROCESSES = {
    "absorbing": process("absorbing", V, MASK),
    "absorbing cosine": process("absorbing", V, MASK, "cosine"),
    "uniform": process("uniform", 3),
    "uniform beside a mask": process("uniform", V, MASK, "cosine"),
    "hybrid": process("hybrid", V, MASK, "linear", 0.2),
    "hybrid cosine": process("hybrid", V, MASK, "cosine", 0.1),
}
each_process = pytest.mark.parametrize("q", PROCESSES.values(), ids=PROCESSES.keys())


def log(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(p)


def beliefs(rng: np.random.Generator, rows: int, size: int, text: int) -> np.ndarray:
    p = np.zeros((rows, size))
    p[:, :text] = rng.dirichlet(np.ones(text), size=rows)
    return p


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_absorbing_is_weighted_cross_entropy_at_masks(schedule: str) -> None:
    rng, q = np.random.default_rng(0), process("absorbing", V, MASK, schedule)
    x, t = rng.integers(3, size=200), rng.uniform(0.01, 0.99, 200)
    z = q.corrupt(x, t, rng)
    p = beliefs(rng, 200, V, 3)
    a, slope = SCHEDULES[schedule].survival(t), SCHEDULES[schedule].slope(t)
    want = np.where(z == MASK, slope / (1 - a) * np.log(p[np.arange(200), x]), 0.0)
    assert np.allclose(q.nelbo(log(p), z, x, t), want, rtol=1e-12, atol=1e-13)
    if schedule == "linear":
        assert np.allclose(q.weight(z, x, t)[z == MASK], 1 / (t * (1 - t))[z == MASK])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_uniform_is_the_closed_form_of_udlm(schedule: str) -> None:
    """L = α'/(Vα) [V/x̄_i - V/x̄θ_i - Σ_j (x̄_j/x̄_i) log(x̄θ_i x̄_j/(x̄θ_j x̄_i))], x̄ = Vαx + 1 - α, i =
    z."""
    rng, size = np.random.default_rng(1), 5
    q = process("uniform", size, schedule=schedule)
    x, t = rng.integers(size, size=200), rng.uniform(0.01, 0.99, 200)
    z, p = q.corrupt(x, t, rng), rng.dirichlet(np.ones(size), size=200)
    a, slope = SCHEDULES[schedule].survival(t), SCHEDULES[schedule].slope(t)
    rows = np.arange(200)
    true = size * a[:, None] * np.eye(size)[x] + 1 - a[:, None]
    guess = size * a[:, None] * p + 1 - a[:, None]
    true_z, guess_z = true[rows, z][:, None], guess[rows, z][:, None]
    inner = (true / true_z * np.log(guess_z * true / (guess * true_z))).sum(-1)
    want = slope / (size * a) * (size / true_z[:, 0] - size / guess_z[:, 0] - inner)
    assert np.allclose(q.nelbo(np.log(p), z, x, t), want, rtol=1e-9, atol=1e-10)


def test_hybrid_weights_are_gidds() -> None:
    """Mask 1/(t(1-t)); wrong token (c + (1-t)c')/((1-t)c); right token (c + (1-t)c')/N ÷ ((1-t)(1-t+c/N))."""
    size, share = 6, 0.2
    q, n = process("hybrid", size, size - 1, "linear", share), size - 1
    t = np.linspace(0.05, 0.95, 19)
    c = 2 * share / (1 - share) * np.sqrt(t * (1 - t))
    rate = c + (1 - t) * 0.5 * (1 - 2 * t) / (t * (1 - t)) * c
    x = np.zeros(19, dtype=np.int64)
    assert np.allclose(q.weight(x + n, x, t), 1 / (t * (1 - t)))
    assert np.allclose(q.weight(x + 1, x, t), rate / ((1 - t) * c))
    assert np.allclose(q.weight(x, x, t), rate / n / ((1 - t) * (1 - t + c / n)))


@each_process
def test_zero_for_the_truth_and_never_negative(q: Process) -> None:
    rng = np.random.default_rng(2)
    x, t = rng.integers(3, size=300), rng.uniform(0.02, 0.98, 300)
    z, p = q.corrupt(x, t, rng), beliefs(rng, 300, q.vocab_size, 3)
    assert np.allclose(q.nelbo(log(np.eye(q.vocab_size)[x]), z, x, t), 0.0, atol=1e-12)
    assert (q.nelbo(log(p), z, x, t) >= -1e-12).all()


def bound(q: Process, toy: Toy, believe: Callable[[np.ndarray, float], np.ndarray]) -> np.ndarray:
    """The NELBO of every text by quadrature over t and enumeration over z; believe(z, t) -> p [Z, L, V]."""
    z, total = toy.noisy(q), np.zeros(len(toy.texts))
    shape = (len(z), *toy.texts.shape)
    for t, weight in zip(*quadrature(), strict=True):
        chance = toy.likelihood(q, z, t).prod(-1)  # [Z, X]
        logprobs = np.broadcast_to(log(believe(z, t))[:, None], (*shape, q.vocab_size))
        with np.errstate(divide="ignore", invalid="ignore"):  # some pairs of z and x can't occur
            each = q.nelbo(logprobs, np.broadcast_to(z[:, None], shape), np.broadcast_to(toy.texts, shape), t)
        total += weight * np.where(chance > 0, chance * each.sum(-1), 0.0).sum(0)
    return total


@each_process
def test_exact_denoiser_makes_the_bound_exact(q: Process) -> None:
    """p(x_0 | all slots but this one) is the optimum, and with it the NELBO is -log p(x), text by text: the
    reverse process is then the true one, whether the slots are independent or not."""
    toy = Toy(text=3, length=2)
    nelbo = bound(q, toy, lambda z, t: toy.belief(q, z, t, True))
    assert np.allclose(nelbo, -np.log(toy.p), atol=2e-4)


@each_process
def test_exact_in_the_factorised_case(q: Process) -> None:
    """One slot: the denoiser that ignores what it sees and knows p(x) alone is exact."""
    toy = Toy(text=3, length=1, seed=5)
    prior = np.concatenate([toy.p, np.zeros(q.vocab_size - 3)])
    nelbo = bound(q, toy, lambda z, t: np.broadcast_to(prior, (*z.shape, q.vocab_size)))
    assert np.allclose(nelbo, -np.log(toy.p), atol=2e-4)


@each_process
def test_bounds_the_true_likelihood(q: Process) -> None:
    """Any other denoiser does worse in the mean over the texts than the entropy, the best there is."""
    toy, rng = Toy(text=3, length=2), np.random.default_rng(7)
    entropy = -(toy.p @ np.log(toy.p))
    wrong = beliefs(rng, q.vocab_size**2 * 2, q.vocab_size, 3).reshape(q.vocab_size**2, 2, q.vocab_size)
    assert toy.p @ bound(q, toy, lambda z, t: wrong) > entropy + 0.05


def test_what_cross_entropy_teaches_is_not_the_optimum() -> None:
    """p(x_0 | all slots) counts the slot's own token twice: the bound is above the truth for random tokens,
    and the same for masks, where the two beliefs agree."""
    toy = Toy(text=3, length=2)
    for name, gap in (("absorbing", 0.0), ("uniform", 0.02)):
        q = PROCESSES[name]
        # where a visible token is certain the weight is 0, so its logarithm must not matter
        nelbo = toy.p @ bound(q, toy, lambda z, t, q=q: toy.belief(q, z, t, False))
        assert nelbo + toy.p @ np.log(toy.p) >= gap - 2e-4


@each_process
def test_torch_equals_numpy_and_gradients_are_right(q: Process) -> None:
    rng = np.random.default_rng(3)
    x, t = rng.integers(3, size=(2, 4)), rng.uniform(0.05, 0.95, (2, 1))
    z = q.corrupt(x, t, rng)
    logits = torch.tensor(rng.normal(size=(2, 4, q.vocab_size)), requires_grad=True)
    blocked = torch.zeros(q.vocab_size, dtype=torch.float64)
    if q.mask_id is not None:
        blocked[q.mask_id] = -torch.inf
    tensors = torch.tensor(z), torch.tensor(x), torch.tensor(t)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return q.nelbo((logits + blocked).log_softmax(-1), *tensors)

    numpy = q.nelbo((logits + blocked).log_softmax(-1).detach().numpy(), z, x, t)
    assert np.allclose(loss(logits).detach().numpy(), numpy, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(loss, (logits,))
    single = q.nelbo((logits + blocked).log_softmax(-1).float(), *tensors)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), loss(logits), rtol=1e-3, atol=1e-5)


def test_the_masks_own_entry_is_not_read() -> None:
    q, rng = PROCESSES["hybrid"], np.random.default_rng(4)
    x, t = rng.integers(3, size=50), rng.uniform(0.05, 0.95, 50)
    z, logprobs = q.corrupt(x, t, rng), log(beliefs(rng, 50, V, 3))
    other = logprobs.copy()
    other[:, MASK] = -2.0
    assert np.allclose(q.nelbo(logprobs, z, x, t), q.nelbo(other, z, x, t), rtol=1e-12)


def test_noise_over_chosen_tokens_only() -> None:
    """A token that noise can't be has no weight, and the bound stays exact."""
    q, toy = process("hybrid", V, MASK, "linear", 0.3, noise_ids=(0, 2)), Toy(text=3, length=1, seed=2)
    one = np.ones(1, dtype=np.int64)
    assert q.weight(one, one, np.array([0.4])) == 0.0
    prior = np.concatenate([toy.p, [0.0]])
    nelbo = bound(q, toy, lambda z, t: np.broadcast_to(prior, (*z.shape, V)))
    assert np.allclose(nelbo, -np.log(toy.p), atol=2e-4)
