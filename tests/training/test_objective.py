"""What is minimised: each slot's weight, the tokens AR may never say, and sums that add up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from redraft.training.batch import Batch
from redraft.training.objective import JointObjective, slot_weights
from redraft.training.recipe import Canvas, Objective
from tests.training import toys
from tests.training.toys import MASK, NULL

RICH = Canvas(
    lengths=[4], length_weights=[1], gap_share=0.3, insert_share=0.2, pin_share=0.3, draft_share=0.4, copies=2
)


def a_batch(folder: Path, kind: str = "hybrid") -> Batch:
    """Three rows, of which the first's first canvas is not in use."""
    batch = toys.batch(toys.rows(folder, toys.documents(30)), RICH, kind, batch_rows=3, step=1)
    unused = batch.canvas_document.copy()
    unused[0, 0] = -1
    return replace(batch, canvas_document=unused)


def test_flat_weights(tmp_path: Path) -> None:
    batch = a_batch(tmp_path)
    weight = slot_weights(batch, toys.process("hybrid"), Objective(right_weight=0.25)).numpy()
    free = ~batch.locked & (batch.canvas_document >= 0)[..., None]
    expected = np.where(batch.noisy != batch.target, 1.0, 0.25) * free
    assert np.array_equal(weight, expected)
    assert (weight == 1).any()
    assert (weight == 0.25).any()


def test_elbo_weights_are_those_of_the_absorbing_bound(tmp_path: Path) -> None:
    """Linear and absorbing: 1/t on masks (MDLM), cut at max_weight; at t = 1, where rates are infinite, 1."""
    batch = a_batch(tmp_path, "absorbing")
    settings = Objective(weighting="elbo", max_weight=3.0, right_weight=0)
    weight = slot_weights(batch, toys.process("absorbing"), settings).numpy()
    t = np.broadcast_to(batch.time[..., None], weight.shape)
    free = (~batch.locked & (batch.canvas_document >= 0)[..., None]) & (batch.noisy == MASK)
    np.testing.assert_allclose(weight[free], np.minimum(1 / t[free], 3.0), rtol=2e-3)
    assert not weight[~free].any()
    assert (t[free] == 1.0).any()
    assert (weight == 3.0).any()


def test_draft_decay_moves_weight_to_a_drafts_first_slots(tmp_path: Path) -> None:
    """By exp(-1/decay) a slot, with a mean of 1 over the slots; other canvases are as they were."""
    batch = a_batch(tmp_path)
    process = toys.process("hybrid")
    plain = slot_weights(batch, process, Objective()).numpy()
    fallen = slot_weights(batch, process, Objective(draft_decay=2.0)).numpy()
    draft = batch.time == 1.0
    np.testing.assert_array_equal(fallen[~draft], plain[~draft])
    factors = np.exp(-np.arange(plain.shape[-1]) / 2.0)
    expected = plain[draft] * factors / factors.mean()
    assert (expected > 1).any()
    np.testing.assert_allclose(fallen[draft], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["absorbing", "hybrid", "uniform"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "loglinear"])
def test_elbo_weights_are_finite_for_every_process(tmp_path: Path, kind: str, schedule: str) -> None:
    batch = a_batch(tmp_path, kind)
    noise = toys.process(kind, schedule=schedule)
    weight = slot_weights(batch, noise, Objective(weighting="elbo")).numpy()
    assert np.isfinite(weight).all()
    assert (weight >= 0).all()
    assert (weight <= 4.0).all()
    assert weight.any()


def test_the_loss_is_the_weighted_mean_and_its_gradient_too(tmp_path: Path) -> None:
    """Against a sum slot by slot, written out, in float64; and against finite differences of one parameter."""
    batch = a_batch(tmp_path)
    model = toys.network(dtype=torch.float64)
    settings = Objective(canvas_weight=0.7, ar_weight=1.3)
    objective = JointObjective(model, toys.process("hybrid"), settings)
    losses = objective(batch)
    logits = model.logits(objective.hidden(batch)).float()
    length = batch.clean.shape[1]
    weight = slot_weights(batch, toys.process("hybrid"), settings)
    canvas = logits[:, length:].unflatten(1, batch.noisy.shape[1:])
    canvas_sum = ar_sum = ar_count = 0.0
    for index in np.ndindex(*batch.noisy.shape):
        each = F.cross_entropy(canvas[index], torch.tensor(batch.target[index]))
        canvas_sum += weight[index] * each
    for index in np.ndindex(*batch.clean.shape):
        if batch.next_token[index] >= 0:
            row = logits[:, :length][index].clone()
            row[[MASK, NULL]] = -torch.inf
            ar_sum += F.cross_entropy(row, torch.tensor(batch.next_token[index]))
            ar_count += 1
    expected = 0.7 * canvas_sum / weight.sum() + 1.3 * ar_sum / ar_count
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses.canvas.item() == pytest.approx(canvas_sum.item(), rel=1e-5)
    assert losses.ar.item() == pytest.approx(ar_sum.item(), rel=1e-5)
    assert int(losses.ar_count) == ar_count
    losses.total.backward()
    p = model.model.layers[0].mlp.up_proj.weight
    step = 1e-3
    around = []
    for sign in (1, -1):
        with torch.no_grad():
            p[3, 5] += sign * step
            around.append(objective(batch).total.item())
            p[3, 5] -= sign * step
    assert float(p.grad[3, 5]) == pytest.approx((around[0] - around[1]) / (2 * step), rel=0.02, abs=1e-3)


def test_scales_make_micro_batches_add_up(tmp_path: Path) -> None:
    data = toys.rows(tmp_path, toys.documents(30))
    parts = [toys.batch(data, RICH, "hybrid", batch_rows=4, rows=r) for r in (range(0, 1), range(1, 4))]
    whole = toys.batch(data, RICH, "hybrid", batch_rows=4)
    model = toys.network(dtype=torch.float64)
    objective = JointObjective(model, toys.process("hybrid"), Objective())
    weight = sum(float(slot_weights(b, objective.process, objective.settings).sum()) for b in parts)
    count = float(sum((b.next_token >= 0).sum() for b in parts))
    objective(whole).total.backward()
    once = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    total = 0.0
    for part in parts:
        losses = objective(part, (weight, count))
        losses.total.backward()
        total += losses.total.item()
    assert total == pytest.approx(objective(whole).total.item(), rel=1e-6)
    for a, p in zip(once, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-5, atol=1e-7)


class Oracle(torch.nn.Module):
    """A denoiser whose hidden state is one-hot at what should be said, so that its loss is 0."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.config = toys.config()
        self.lm_head = torch.nn.Linear(1, 1)
        right = np.concatenate((batch.next_token.clip(0), batch.target.reshape(len(batch.clean), -1)), axis=1)
        self.answers = F.one_hot(torch.from_numpy(right), toys.VOCAB).float() * 100

    def forward(self, *rows: object) -> tuple[torch.Tensor, list[object]]:
        return self.answers, []

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def test_the_loss_of_a_perfect_model_is_zero(tmp_path: Path) -> None:
    batch = a_batch(tmp_path)
    losses = JointObjective(Oracle(batch), toys.process("hybrid"), Objective())(batch)  # type: ignore[arg-type]
    assert float(losses.total) == 0.0
    assert int(losses.right) == int(losses.corrupted) > 0
    wrong = replace(batch, target=(batch.target + 1) % MASK)
    losses = JointObjective(Oracle(batch), toys.process("hybrid"), Objective())(wrong)  # type: ignore[arg-type]
    assert float(losses.canvas / losses.canvas_weight) == pytest.approx(100.0)


def test_ar_can_t_say_mask_or_null(tmp_path: Path) -> None:
    """Their head rows get no gradient from the AR loss, and as large as they may be they take no probability."""
    batch = a_batch(tmp_path)
    model = toys.network(tie_word_embeddings=False)
    objective = JointObjective(model, toys.process("hybrid"), Objective(canvas_weight=0))
    before = objective(batch)
    before.total.backward()
    grad = model.lm_head.weight.grad
    assert grad is not None
    assert not grad[[MASK, NULL]].any()
    assert grad[1].any()
    with torch.no_grad():
        model.lm_head.weight[[MASK, NULL]] *= 50
    assert float(objective(batch).ar) == float(before.ar)


def test_a_batch_without_anything_to_learn_has_no_loss(tmp_path: Path) -> None:
    batch = a_batch(tmp_path)
    empty = replace(batch, next_token=batch.next_token * 0 - 1, canvas_document=batch.canvas_document * 0 - 1)
    losses = JointObjective(toys.network(), toys.process("hybrid"), Objective())(empty)
    assert float(losses.total) == 0.0
    losses.total.backward()
