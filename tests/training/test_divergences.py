"""Losses over the vocabulary against their formulas, and their gradients against autograd's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from redraft.training import divergences
from redraft.training.divergences import against

IMPOSSIBLE = torch.finfo(torch.float32).min / 2


def made(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, a teacher of fewer rows that finds a token impossible, which of these teaches a row, targets."""
    generator = torch.Generator().manual_seed(seed)
    own = 3 * torch.randn(rows, 11, generator=generator)
    theirs = 3 * torch.randn(3, 11, generator=generator)
    theirs[:, 4] = IMPOSSIBLE
    teacher = torch.randint(3, (rows,), generator=generator)
    own[::3] = (
        theirs[teacher[::3]].clamp(min=-20) + 0.2 * own[::3]
    )  # some agree, but for total variation's kink
    return own, theirs.log_softmax(-1), teacher, torch.randint(11, (rows,), generator=generator)


def formulas(own: Tensor, log_p: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_q, log_p = own.log_softmax(-1), log_p[teacher].to(own.dtype)
    p = log_p.exp()
    ce = -log_q.gather(1, target[:, None])[:, 0]
    return ce, (p * (log_p - log_q)).sum(-1), 0.5 * (p - log_q.exp()).abs().sum(-1)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 9), each=st.integers(1, 10), seed=st.integers(0, 1000))
def test_losses_and_gradients_are_the_formulas(rows: int, each: int, seed: int) -> None:
    given = made(rows, seed)
    own, rest = given[0], given[1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(divergences, "ROWS", each)
        leaf = own.clone().requires_grad_()
        found = against(leaf, *rest)
        wide = own.double().requires_grad_()
        due = formulas(wide, *rest)
        factors = torch.randn(3, rows, generator=torch.Generator().manual_seed(seed))
        sum((f * x).sum() for f, x in zip(factors, found, strict=False)).backward()
        sum((f.double() * x).sum() for f, x in zip(factors, due, strict=True)).backward()
    for one, other in zip(found, due, strict=False):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.same, own.argmax(-1) == rest[0][rest[1]].argmax(-1))
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.double(), wide.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ce", "kl", "tv"])
def test_a_loss_alone_has_its_own_gradient(name: str) -> None:
    own, *rest = made(6, 5)
    leaf, wide = own.clone().requires_grad_(), own.double().requires_grad_()
    getattr(against(leaf, *rest), name).sum().backward()
    dict(zip(("ce", "kl", "tv"), formulas(wide, *rest), strict=True))[name].sum().backward()
    assert leaf.grad is not None
    assert wide.grad is not None
    assert leaf.grad.abs().max() > 0.01
    torch.testing.assert_close(leaf.grad.double(), wide.grad, rtol=1e-4, atol=1e-5)


def test_narrow_logits_take_narrow_gradients() -> None:
    own, *rest = made(6, 5)
    leaf = own.to(torch.bfloat16).requires_grad_()
    against(leaf, *rest).kl.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.bfloat16
    wide = leaf.detach().double().requires_grad_()
    formulas(wide, *rest)[1].sum().backward()
    torch.testing.assert_close(leaf.grad.double(), wide.grad, rtol=1e-2, atol=1e-2)


def test_who_agrees_with_the_teacher_loses_nothing() -> None:
    _, log_p, teacher, target = made(5, 1)
    found = against(log_p[teacher], log_p, teacher, target)
    assert found.same.all()
    torch.testing.assert_close(found.kl, torch.zeros(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.tv, torch.zeros(5), rtol=0, atol=1e-6)
