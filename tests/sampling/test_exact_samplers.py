"""Every sampler's output distribution, with an exact denoiser, against an enumerated truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from redraft.corruption import Process, process
from redraft.sampling import SamplerSettings, SlotVocabulary
from tests.corruption.toy import Toy
from tests.sampling.networks import agrees, exact, frequencies, variation

V, MASK = 4, 3
WITH_MASK, WITHOUT = SlotVocabulary(V, mask_id=MASK), SlotVocabulary(3)
TOY = Toy(text=3, length=3, seed=1)
ABSORBING = process("absorbing", V, MASK)
MANY, FEW = 1500, 300  # samples side by side on one canvas, and one by one


class Chain(Toy):
    """A Markov chain's texts: strong neighbour dependence, the case in which parallel draws go wrong."""

    def __init__(self, length: int) -> None:
        super().__init__(3, length)
        step = np.array([[0.85, 0.1, 0.05], [0.05, 0.15, 0.8], [0.3, 0.6, 0.1]])
        first = np.array([0.5, 0.3, 0.2])
        self.p = first[self.texts[:, 0]] * step[self.texts[:, :-1], self.texts[:, 1:]].prod(axis=1)


def independent(toy: Toy) -> np.ndarray:
    """The product of the slots' marginals: what comes of drawing all slots at once."""
    out = np.ones(len(toy.p))
    for slot in range(toy.texts.shape[1]):
        marginal = np.array([toy.p[toy.texts[:, slot] == token].sum() for token in range(3)])
        out *= marginal[toy.texts[:, slot]]
    return out


def reverse_chain(toy: Toy, q: Process, steps: int) -> np.ndarray:
    """The distribution of texts that ancestral sampling in `steps` steps has, by enumerating every x_t."""
    z = toy.noisy(q)
    noise = q.noise(1.0)
    mass = np.prod(noise[z], axis=-1)
    for step in range(steps):
        t, s = 1 - step / steps, 1 - (step + 1) / steps
        belief = toy.belief(q, z, min(t, 1 - 1e-9), True)
        belief = np.where(belief.sum(-1, keepdims=True) > 0, belief, 1 / 3 * (np.arange(q.vocab_size) < 3))
        after = q.posterior(z, belief, s, t)  # [Z, L, V]
        moves = np.ones((len(z), len(z)))
        for slot in range(z.shape[1]):
            moves *= after[:, slot][:, z[:, slot]]
        mass = mass @ moves
    index = {tuple(row): i for i, row in enumerate(z.tolist())}
    return np.array([mass[index[tuple(text)]] for text in toy.texts.tolist()])


@pytest.mark.parametrize("toy", [TOY, Chain(3)], ids=["language", "markov chain"])
def test_first_hitting_is_exact(toy: Toy) -> None:
    settings = SamplerSettings(canvas_length=3, accept="first_hitting", temperature=1.0)
    seen = frequencies(toy, exact(toy, ABSORBING), settings, WITH_MASK, FEW)
    assert agrees(seen, toy.p, FEW)
    assert not agrees(seen, independent(toy), FEW)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("corruption", ["absorbing", "uniform", "hybrid"])
def test_ancestral_is_the_enumerated_reverse_chain(corruption: str, steps: int) -> None:
    vocabulary = WITHOUT if corruption == "uniform" else WITH_MASK
    q = process(corruption, vocabulary.vocab_size, vocabulary.mask_id, "linear", 0.3)
    toy = Chain(2)
    settings = SamplerSettings(
        canvas_length=2,
        accept="ancestral",
        corruption=corruption,
        uniform_share=0.3,
        steps=steps,
        temperature=1.0,
    )
    seen = frequencies(toy, exact(toy, q), settings, vocabulary, MANY, together=MANY)
    want = reverse_chain(toy, q, steps)
    assert want.sum() == pytest.approx(1.0)
    assert agrees(seen, want, MANY)


@pytest.mark.parametrize("corruption", ["absorbing", "uniform", "hybrid"])
def test_ancestral_error_falls_with_steps(corruption: str) -> None:
    toy = Chain(2)
    size, mask = (3, None) if corruption == "uniform" else (V, MASK)
    q = process(corruption, size, mask, "linear", 0.3)
    errors = [variation(reverse_chain(toy, q, steps), toy.p) for steps in (1, 2, 4, 16, 128)]
    assert errors[0] == pytest.approx(variation(independent(toy), toy.p))
    assert all(after < before for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.1 * errors[0], errors


def test_what_the_logits_stand_for_matters() -> None:
    """Uniform noise with a denoiser that has seen the slot's own token: right when told so, wrong when
    not."""
    toy, q = Chain(2), process("uniform", 3)
    errors = {}
    for belief in ("full", "leave_one_out"):
        settings = SamplerSettings(
            canvas_length=2,
            accept="ancestral",
            corruption="uniform",
            steps=16,
            temperature=1.0,
            belief=belief,
        )
        seen = frequencies(toy, exact(toy, q, leave_one_out=False), settings, WITHOUT, 700, together=700)
        errors[belief] = variation(seen, toy.p)
    assert errors["full"] < 0.08 < 0.1 < errors["leave_one_out"]


def test_entropy_bound_from_one_by_one_to_all_at_once() -> None:
    """Bound 0: one slot a step in an order that no draw decides, which is the chain rule, hence exact (the
    oracle's entropies are never 0). No bound: all in one step, the product of the marginals."""
    toy = Chain(3)
    network = exact(toy, ABSORBING)
    for bound, want, count, together in ((0.0, toy.p, FEW, 1), (1e9, independent(toy), MANY, MANY)):
        settings = SamplerSettings(
            canvas_length=3, accept="entropy_bound", entropy_bound=bound, temperature=1.0
        )
        assert agrees(frequencies(toy, network, settings, WITH_MASK, count, together), want, count)


@pytest.mark.parametrize("rule", [{"threshold": 0.0}, {"accept": "quota", "steps": 1}, {"max_steps": 1}])
def test_confidence_rules_all_at_once_give_the_product_of_marginals(rule: dict) -> None:
    toy = Chain(2)
    settings = SamplerSettings(canvas_length=2, temperature=1.0, **rule)
    seen = frequencies(toy, exact(toy, ABSORBING), settings, WITH_MASK, MANY, together=MANY)
    assert agrees(seen, independent(toy), MANY)


@pytest.mark.parametrize("rule", [{"threshold": 1.0}, {"accept": "quota", "steps": 3}])
def test_confidence_rules_one_by_one_are_nearer_to_the_truth(rule: dict) -> None:
    """Not exact, since the order depends on what was drawn, but better than drawing all at once."""
    toy = Chain(3)
    settings = SamplerSettings(canvas_length=3, temperature=1.0, **rule)
    seen = frequencies(toy, exact(toy, ABSORBING), settings, WITH_MASK, FEW)
    assert variation(seen, toy.p) < 0.8 * variation(independent(toy), toy.p)


def test_greedy_follows_the_most_certain_slot() -> None:
    """Temperature 0, one slot a step: the text that fixing the surest slot first leads to, by enumeration."""
    toy = Chain(3)
    known: dict[int, int] = {}
    while len(known) < 3:
        fits = (
            np.all([toy.texts[:, slot] == token for slot, token in known.items()], axis=0) if known else True
        )
        mass = np.where(fits, toy.p, 0.0)
        best = max(
            ((slot, token) for slot in range(3) if slot not in known for token in range(3)),
            key=lambda pair: mass[toy.texts[:, pair[0]] == pair[1]].sum(),
        )
        known[best[0]] = best[1]
    want = [known[slot] for slot in range(3)]
    settings = SamplerSettings(canvas_length=3, threshold=1.0)
    seen = frequencies(toy, exact(toy, ABSORBING), settings, WITH_MASK, 3)
    assert toy.texts[seen.argmax()].tolist() == want
    assert seen.max() == 1.0
