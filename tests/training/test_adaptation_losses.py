"""The losses of adaptation against their formulas, computed slot by slot in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from redraft.denoiser import adapters
from redraft.training import adaptation_objective as objective
from redraft.training.adaptation import Adaptation
from redraft.training.adaptation_objective import FORGIVEN, NAMES, Pairs, behind_failure
from redraft.training.adaptation_recipe import Losses
from tests.training.bases import make_base, make_data, recipe

EVERY = {"hidden": 0.5, "on_policy": 0.2, "sharpen": 0.3}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Adaptation:
    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path / "home"))
    make_base()
    toy = recipe(make_data(tmp_path), losses=EVERY, adapter={"markov_rank": 3, "confidence": True})
    made = Adaptation(toy, tmp_path / "run", resume=False)
    with torch.no_grad():
        for p in adapters.adapter_of(made.model).parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
    return made


def brute(pairs: Pairs, log_q: np.ndarray, log_p: np.ndarray, odds: np.ndarray) -> dict[str, float]:
    """Every sum, one slot at a time in float64. odds: the confidence head's."""
    hidden, theirs = pairs.canvas.detach().double().numpy(), pairs.clean[pairs.row].double().numpy()
    sums = dict.fromkeys(NAMES, 0.0)
    failed: dict[int, int] = {}
    for i in range(len(pairs.target)):
        weight, fill, taught = (float(x[i]) for x in (pairs.weight, pairs.fill, pairs.taught))
        w, canvas, slot = weight * taught, int(pairs.number[i]), int(pairs.slot[i])
        p, q = np.exp(log_p[i]), np.exp(log_q[i])
        forward, reverse = (p * (log_p[i] - log_q[i])).sum(), (q * (log_q[i] - log_p[i])).sum()
        same = p.argmax() == q.argmax()
        if taught and not same:
            failed.setdefault(canvas, slot)
        behind = slot - failed.get(canvas, slot)
        sums["ce"] -= weight * log_q[i, pairs.target[i]]
        sums["fill"] -= fill * log_q[i, pairs.target[i]]
        sums["kl"] += w * forward
        sums["live"] += w * (reverse * FORGIVEN**behind if behind > 0 else forward)
        overlap, sure = np.minimum(p, q).sum(), 1 / (1 + np.exp(-odds[i]))
        sums["rejected"] += w * (1 - overlap)
        sums["doubt"] -= w * (overlap * np.log(sure) + (1 - overlap) * np.log(1 - sure))
        cosine = hidden[i] @ theirs[i] / np.linalg.norm(hidden[i]) / np.linalg.norm(theirs[i])
        sums["aligned"] += w * (1 - cosine)
        sums["entropy"] -= w * same * (q * log_q[i]).sum()
        sums["agreed"] += bool(same and w)
        sums["against"] += bool(w)
        sums["weight"] += weight
        sums["taught"] += w
        sums["fill_count"] += fill
    return sums


def test_sums_are_the_formulas(run: Adaptation) -> None:
    """Against an AR self that agrees with two slots in three and finds no token impossible."""
    generator = torch.Generator().manual_seed(3)
    pairs = run.objective.pairs(run.batch(range(4)))
    with torch.no_grad():
        moved, heads = run.objective.moved(pairs, pairs.previous), run.objective.heads
        log_q = torch.log_softmax(run.model.logits(moved).double(), -1)
        odds = (moved.double() @ heads.confidence_weight.double() + heads.confidence_bias[pairs.slot]).numpy()
        theirs = torch.randn(log_q.shape, generator=generator, dtype=torch.float64)
        agreeing = torch.arange(len(theirs)) % 3 > 0
        theirs[agreeing, log_q[agreeing].argmax(-1)] += 9
        log_p = torch.log_softmax(theirs, -1)
    everyone = torch.arange(len(log_p))
    run.objective.taught_by = lambda pairs: (log_p.float(), everyone)  # type: ignore[method-assign]
    found = dict(zip(NAMES, run.objective(run.batch(range(4))).detached(), strict=True))
    due = brute(pairs, log_q.numpy(), log_p.numpy(), odds)
    own = [name for name in NAMES if name not in ("ar", "kept", "ar_count")]  # the clean rows are the base's
    assert all(due[name] > 0 for name in own)
    assert due["live"] != pytest.approx(due["kl"], rel=0.01)
    for name in NAMES:
        np.testing.assert_allclose(found[name], due[name], rtol=1e-4, err_msg=name)


def test_slots_without_a_teacher_cannot_fail() -> None:
    number, slot = torch.tensor([0, 0, 0, 2, 2, 2, 3]), torch.tensor([1, 2, 4, 1, 2, 3, 1])
    taught = torch.tensor([1, 1, 1, 0, 1, 1, 1]).float()
    none = torch.zeros(7)
    pairs = Pairs(none, number, number, number, number, slot, none, none, taught, none)
    same = torch.tensor([True, False, False, False, True, False, True])
    behind = behind_failure(pairs, same)
    assert behind[:3].tolist() == [-1, 0, 2]
    assert behind[3:6].tolist() == [-2, -1, 0]
    assert behind[6] < -(10**6)


def test_portions_hold_whole_canvases_and_change_nothing(
    run: Adaptation, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = run.batch(range(4))
    factors = dict.fromkeys(("ce", "kl", "rejected", "aligned", "live", "entropy", "fill"), 0.7)

    def gradient() -> tuple[np.ndarray, torch.Tensor]:
        sums = run.objective(batch)
        run.objective.total(sums, batch.divisors(), factors).backward()
        found = run.state.model.slots.mask.grad
        assert found is not None
        run.state.optimizers[0].zero_grad()
        return sums.detached(), found

    whole = gradient()
    monkeypatch.setattr(objective, "CHUNK", 7)
    monkeypatch.setattr(objective, "KEPT", 0)
    parts = list(run.objective.pairs(batch).portions())
    assert len(parts) > 3
    owners = [set(part.number.tolist()) for part in parts]
    assert sum(map(len, owners)) == len(set().union(*owners))
    again = gradient()
    np.testing.assert_allclose(again[0], whole[0], rtol=1e-5)
    torch.testing.assert_close(again[1], whole[1], rtol=1e-3, atol=1e-6)


def test_which_losses_count_when() -> None:
    plain = Losses(kl_share=0.25)
    always = {"ce": 0.1, "aligned": 0.0, "entropy": 0.0, "fill": 0.5, "ar": 1.0, "kept": 0.0, "doubt": 1.0}
    assert plain.at(0.1) == always | {"kl": 1.0}
    assert plain.at(0.25) == always | {"rejected": 0.9}
    assert Losses(kl_share=1).at(0.999)["kl"] == 1.0
    every = Losses(kl_share=0.25, sharpen_share=0.1, **EVERY)
    assert every.at(0.25)["aligned"] == pytest.approx(0.25)
    assert every.at(0.7)["aligned"] == 0
    assert (every.at(0.79).get("live"), every.at(0.8)["live"]) == (None, 1.0)
    assert (every.at(0.89)["entropy"], every.at(0.9)["entropy"]) == (0.0, 0.3)
