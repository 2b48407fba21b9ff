"""The held-out numbers against brute force: exact chain rule, exact any-order likelihood, exact expectations."""

from __future__ import annotations

from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch

from redraft.training.objective import JointObjective
from redraft.training.recipe import Objective
from redraft.training.validate import HeldOut, _hidden_counts, held_out
from tests.training import toys

EOS, NULL, MASK, VOCAB = 0, 3, 4, 5


def tiny(seed: int = 0, layout: str = "causal_context", dtype: torch.dtype = torch.float32):
    return toys.network(
        seed,
        dtype,
        vocab_size=VOCAB,
        mask_token_id=MASK,
        null_token_id=NULL,
        eos_token_ids=(EOS,),
        layout=layout,
        num_hidden_layers=1,
    )


def measured(model, documents, canvas: int, **more: int) -> HeldOut:
    objective = JointObjective(model, toys.process("absorbing", VOCAB), Objective())
    return held_out(objective, [np.array(d) for d in documents], canvas, **more)


def conditional(model, context: list[int], slots: tuple[int, ...]) -> np.ndarray:
    """log p of every token for each slot [C, V], from a pass of its own; the mask is never text."""
    return toys.logprobs(toys.dense_logits(model, context, slots)[len(context) :], MASK)


class Canvas:
    """All conditionals of one canvas behind a context, each set of shown slots computed once."""

    def __init__(self, model, context: list[int], length: int) -> None:
        self.model, self.context, self.length = model, context, length
        self.known: dict[tuple[int, ...], np.ndarray] = {}

    def logp(self, text: tuple[int, ...], hidden: tuple[int, ...], slot: int) -> float:
        shown = tuple(MASK if i in hidden else t for i, t in enumerate(text))
        if shown not in self.known:
            self.known[shown] = conditional(self.model, self.context, shown)
        return float(self.known[shown][slot, text[slot]])

    def nll(self, text: tuple[int, ...]) -> float:
        """-log of the probability that slots settled one by one, in a random order, spell the text."""
        orders = list(permutations(range(self.length)))
        total = 0.0
        for order in orders:
            steps = [self.logp(text, order[i:], order[i]) for i in range(self.length)]
            total += np.exp(sum(steps)) / len(orders)
        return -float(np.log(total))

    def bound(self, text: tuple[int, ...]) -> float:
        """The exact mean of n/k * sum of -log p over hidden sets of size k, k uniform."""
        out = 0.0
        for k in range(1, self.length + 1):
            sets = list(combinations(range(self.length), k))
            for hidden in sets:
                loss = -sum(self.logp(text, hidden, i) for i in hidden)
                out += loss * self.length / k / len(sets) / self.length
        return out


def blocks(document: list[int], length: int) -> list[tuple[list[int], tuple[int, ...]]]:
    """Context and content of each canvas over a document, null past its end."""
    padded = document + [NULL] * (-len(document) % length)
    return [(document[:at], tuple(padded[at : at + length])) for at in range(0, len(document), length)]


def test_canvases_of_one_slot_give_the_exact_chain_rule() -> None:
    model = tiny()
    documents = [[1, 2, 2, 1, EOS], [2, EOS]]
    found = measured(model, documents, canvas=1, copies=2)
    exact = sum(-conditional(model, d[:i], (MASK,))[0, token] for d in documents for i, token in enumerate(d))
    assert found.nelbo == pytest.approx(exact, rel=1e-5)
    assert found.nelbo_se == 0.0
    assert found.tokens == 7


def test_ar_nll_is_the_encode_role_alone() -> None:
    model = tiny()
    documents = [[1, 2, 2, 1, EOS], [2, EOS]]
    found = measured(model, documents, canvas=3)
    exact = 0.0
    for d in documents:
        for i in range(1, len(d)):
            exact -= toys.logprobs(toys.dense_logits(model, d[:i], []), MASK, NULL)[-1, d[i]]
    assert found.ar_nll == pytest.approx(exact, rel=1e-5)
    assert found.ar_tokens == 5
    ar, bound = found.bits_per_byte(10)
    assert ar == pytest.approx(exact / np.log(2) / 10, rel=1e-5)
    assert bound == pytest.approx(found.nelbo / np.log(2) / 10)
    assert measured(tiny(layout="block_causal"), documents, canvas=2).ar_nll is None


@pytest.mark.parametrize("length", [2, 3])
def test_any_order_likelihood_is_a_distribution(length: int) -> None:
    canvas = Canvas(tiny(), [1, 2], length)
    total = sum(np.exp(-canvas.nll(text)) for text in product(range(VOCAB - 1), repeat=length))
    assert total == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("length", [2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_estimate_has_the_bound_as_its_mean_and_the_bound_is_one(length: int, seed: int) -> None:
    model = tiny(seed)
    document = [1, 2, 2, 1, EOS]
    canvases = [(Canvas(model, c, length), text) for c, text in blocks(document, length)]
    bound = sum(c.bound(text) for c, text in canvases)
    assert bound > sum(c.nll(text) for c, text in canvases) + 1e-6
    found = measured(model, [document], canvas=length, copies=400)
    assert abs(found.nelbo - bound) < 4 * max(found.nelbo_se, 1e-4 * bound)
    many = [measured(model, [document], canvas=length, copies=2 * length, seed=s).nelbo for s in range(60)]
    assert abs(np.mean(many) - bound) < 4 * np.std(many, ddof=1) / 60**0.5


def test_one_canvas_over_the_document_is_masked_diffusion_without_context() -> None:
    """Block length L: the causal-context pass and the full layout (MDLM) say the same, and no clean row is seen."""
    document = [1, 2, EOS]
    ours = measured(tiny(), [document], canvas=3, copies=60)
    full = measured(tiny(layout="full"), [document], canvas=3, copies=60)
    assert ours.nelbo == pytest.approx(full.nelbo, rel=1e-6)
    bound = Canvas(tiny(), [], 3).bound(tuple(document))
    assert abs(full.nelbo - bound) < 4 * full.nelbo_se


def test_the_standard_error_is_honest() -> None:
    """Over many seeds the mean of its square is the variance that the estimates have."""
    model = tiny(seed=2)
    documents = [[1, 2, 2, 1, 2, EOS], [2, 2, EOS], [1, EOS]]
    for copies in (2, 4):
        runs = [measured(model, documents, canvas=3, copies=copies, seed=s) for s in range(150)]
        true = np.var([r.nelbo for r in runs], ddof=1)
        told = np.mean([r.nelbo_se**2 for r in runs])
        assert 0.6 < told / true < 1.6


def test_hidden_counts_climb_a_ladder_in_each_replicate() -> None:
    rng = np.random.default_rng(0)
    k = _hidden_counts(500, 4, 8, rng)
    for replicate in (k[:4], k[4:]):
        assert (np.sort(replicate, 0) == np.arange(1, 5)[:, None]).all()
    assert len({tuple(c) for c in (k[0] - k[4])[:, None]}) == 7
    free = _hidden_counts(5000, 5, 2, rng)
    assert set(free.reshape(-1)) == set(range(1, 6))
    np.testing.assert_allclose(np.bincount(free[0], minlength=6)[1:] / 5000, 0.2, atol=0.03)
    assert abs(np.corrcoef(free)[0, 1]) < 0.05


def test_documents_don_t_depend_on_their_batch() -> None:
    """Exact canvases of one slot: one by one or all at once, in any order."""
    model = tiny()
    documents = [[1, 2, 2, 1, EOS], [2, EOS], [2, 2, 1, EOS]]
    alone = sum(measured(model, [d], canvas=1, rows=1).nelbo for d in documents)
    assert measured(model, documents[::-1], canvas=1, rows=3).nelbo == pytest.approx(alone, rel=1e-6)
    parts = [measured(model, [d], canvas=1).ar_nll for d in documents]
    assert measured(model, documents, canvas=2, rows=2).ar_nll == pytest.approx(sum(parts), rel=1e-6)
