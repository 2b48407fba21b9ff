"""The optimizers: orthogonal updates, batched or not, the shape of the rate, the average's warm-up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.training import optim
from redraft.training.optim import Ema, Muon, orthogonalize, rate
from redraft.training.recipe import Optimizer
from tests.training import toys


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8), (3, 12, 20)])
def test_singular_values_come_close_to_one(shape: tuple[int, ...]) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if shape == (16, 16):  # a square Gaussian has some singular values near 0, which stay small
        g = g + 4 * torch.eye(16)
    turned = orthogonalize(g)
    values = torch.linalg.svdvals(turned)
    assert values.min() > 0.6
    assert values.max() < 1.3
    # The directions stay: UV^T of the same singular vectors.
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    inner = u.mT @ turned @ vh.mT
    assert (inner - torch.diag_embed(torch.diagonal(inner, dim1=-2, dim2=-1))).abs().max() < 1e-3
    torch.testing.assert_close(orthogonalize(1000 * g), turned, rtol=1e-3, atol=1e-3)


def test_a_zero_gradient_stays_zero() -> None:
    assert not orthogonalize(torch.zeros(4, 6)).any()


def test_muon_in_batches_is_muon_one_by_one() -> None:
    def parameters() -> list[torch.nn.Parameter]:
        generator = torch.Generator().manual_seed(1)
        shapes = [(6, 4), (6, 4), (4, 6), (6, 4)]
        return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]

    together, alone = parameters(), parameters()
    optimizers = [Muon(together, 0.1, 0.9, 0.01), *(Muon([p], 0.1, 0.9, 0.01) for p in alone)]
    for step in range(3):
        for group in (together, alone):
            generator = torch.Generator().manual_seed(step)
            for p in group:
                p.grad = torch.randn(p.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_muon_steps_as_its_formula_says() -> None:
    p = torch.nn.Parameter(torch.ones(4, 9))
    optimizer = Muon([p], lr=0.5, momentum=0.9, weight_decay=0.1)
    buffer, expected = torch.zeros(4, 9), torch.ones(4, 9)
    for step in range(3):
        g = torch.randn(4, 9, generator=torch.Generator().manual_seed(step))
        p.grad = g
        optimizer.step()
        buffer = 0.9 * buffer + g
        expected = expected * (1 - 0.5 * 0.1) - 0.5 * 0.2 * 3 * orthogonalize(g + 0.9 * buffer)
    torch.testing.assert_close(p.detach(), expected)


def test_every_parameter_has_one_optimizer() -> None:
    model = toys.network()
    muon, adam = optim.build(model, Optimizer(weight_decay=0.3))
    held = [id(p) for o in (muon, adam) for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted({id(p) for p in model.parameters()})
    inside = {id(p) for g in muon.param_groups for p in g["params"]}
    for name, p in model.named_parameters():
        assert (id(p) in inside) == (".layers." in name and p.dim() == 2)
    decayed = {id(p) for g in adam.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(model.model.embed_tokens.weight)}


shares = st.integers(0, 1000).map(lambda n: n / 1000)


@settings(max_examples=60, deadline=None)
@given(shares, shares, shares)
def test_the_rate_is_a_trapezoid(progress: float, warmup: float, decay: float) -> None:
    of = Optimizer(warmup=warmup, decay=decay)
    factor = rate(progress, of)
    assert 0 <= factor <= 1
    if warmup <= progress <= 1 - decay:
        assert factor == pytest.approx(1.0)
    near = rate(min(1.0, progress + 1e-9), of)
    if min(warmup, decay) > 1e-3:
        assert abs(near - factor) < 1e-5


def test_the_rate_rises_and_falls_linearly() -> None:
    of = Optimizer(warmup=0.1, decay=0.4)
    found = [rate(p, of) for p in (0, 0.05, 0.1, 0.5, 0.6, 0.8, 1.0, 1.1)]
    np.testing.assert_allclose(found, [0, 0.5, 1, 1, 1, 0.5, 0, 0], atol=1e-12)
    assert rate(0.0, Optimizer(warmup=0, decay=0)) == rate(1.0, Optimizer(warmup=0, decay=0)) == 1.0


def test_the_average_forgets_its_start() -> None:
    model = toys.network()
    ema = Ema(model, decay=0.9)
    start = model.model.norm.weight.detach().clone()
    expected = start.clone()
    for n in range(1, 100):
        with torch.no_grad():
            model.model.norm.weight += 1
        ema.update(model)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * (start + n)
        torch.testing.assert_close(ema.shadow["model.norm.weight"], expected)
    assert ema.updates == 99
    assert not torch.equal(ema.shadow["model.norm.weight"], model.model.norm.weight)
    torch.testing.assert_close(ema.shadow["lm_head.weight"], model.lm_head.weight.detach())
