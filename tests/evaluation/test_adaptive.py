"""Work by difficulty, error correction and mending on a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from redraft.api import Model
from redraft.errors import RequestError
from redraft.evaluation import adaptive as a
from redraft.evaluation.benches import BENCHES, Options, run_bench
from redraft.evaluation.prompts import Dialogues, Reply
from redraft.evaluation.writing import Way


@pytest.fixture(scope="module")
def told(model: Model) -> dict:
    return run_bench("adaptive", model, Options(quick=True))


def test_damage_swaps_the_given_share_and_nothing_else() -> None:
    replies = [Reply(np.array([1]), np.arange(10, 30) + i, 20) for i in range(10)]
    cases = a.damage(replies, 16, 0.05, never=(0, 1), vocab=50, seed=0)
    wrong = np.array([c.wrong for c in cases])
    assert wrong.sum() == 8  # 5 % of 160
    for case, reply in zip(cases, replies, strict=True):
        np.testing.assert_array_equal(case.right, reply.text[:16])
        assert set(case.tokens) <= set(range(10, 40))


def test_damage_never_puts_a_special_token_in() -> None:
    replies = [Reply(np.array([1]), np.array([0, 2, 3, 4]), 4)] * 5
    cases = a.damage(replies, 4, 1.0, never=(0,), vocab=5, seed=1)
    assert all(c.wrong.all() for c in cases)
    assert not any((c.tokens == 0).any() for c in cases)


@pytest.mark.parametrize("budget", a.BUDGETS)
def test_every_correction_keeps_to_the_budget(model: Model, dialogues: Dialogues, budget: int) -> None:
    from redraft.evaluation.writing import write_all

    prompt = dialogues.replies[0][0].prompt
    for sampler in a.corrections(budget).values():
        assert sampler["max_steps"] == budget
        request = Way("diffusion", canvas=8, sampler=sampler).request(model, prompt, 8)
        (ticket,) = write_all(model, [request], 1)
        assert ticket.writer.nfe <= budget * ticket.writer.canvases
    assert "remasking" not in a.corrections(budget, masks=False)


def test_hard_replies_are_those_with_the_higher_nll(told: dict) -> None:
    d = told["difficulty"]
    assert d["hardest"]["ar_nll"] > d["easiest"]["ar_nll"]
    assert d["ratio"] == pytest.approx(d["hardest"]["nfe_per_token"] / d["easiest"]["nfe_per_token"])
    assert d["hardest"]["replies"] == d["easiest"]["replies"] == 2
    for part in ("hardest", "easiest"):
        assert 1 / 8 <= d[part]["nfe_per_token"] <= 1


def test_settling_all_at_once_makes_every_reply_cost_the_same(model: Model, dialogues: Dialogues) -> None:
    settings = a.Adaptive(replies=20, length=8, diffusion=Way("diffusion", threshold=0.0, temperature=0.0))
    d = a.difficulty(model, dialogues, settings)
    assert d["hardest"]["nfe_per_token"] == d["easiest"]["nfe_per_token"] == 1 / 8
    assert d["ratio_interval"] == (1.0, 1.0)


def test_correction_is_compared_prompt_by_prompt(told: dict) -> None:
    assert [row["nfe_per_canvas"] for row in told["correction"]] == list(a.BUDGETS)
    for row in told["correction"]:
        assert row["tokens"] == 32
        for name in ("editing", "remasking"):
            assert row[name]["difference"] == pytest.approx(
                row[name]["ar_nll"] - row["off"]["ar_nll"], abs=1e-9
            )
            low, high = row[name]["interval"]
            assert low <= row[name]["difference"] <= high


def test_what_no_model_is_sure_enough_of_stays(
    model: Model, dialogues: Dialogues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(a, "EDIT_THRESHOLDS", (1.0, 0.0))
    m = a.mending(model, dialogues, a.Adaptive(length=8, canvases=10))
    never, always = m["thresholds"]
    assert m["swapped"] == 4
    assert (never["repaired"], never["otherwise"], never["spoiled"]) == (0.0, 0.0, 0.0)
    assert never["ar_nll"] == pytest.approx(m["ar_nll_damaged"], rel=1e-12)
    assert always["otherwise"] + always["repaired"] > 0
    assert always["spoiled"] > 0  # a random network would rewrite everything


def test_replies_too_short_for_the_canvas(model: Model, dialogues: Dialogues) -> None:
    with pytest.raises(RequestError, match="no reply in .* has 400 tokens"):
        a.long_replies(model, dialogues, 400, 5, 0)
    assert all(len(r.text) >= 20 for r in a.long_replies(model, dialogues, 20, 50, 0))


def test_report_and_picture(told: dict, tmp_path: Path) -> None:
    assert len(a.lines(told)) == 3 + 3 + 1 + 3
    BENCHES["adaptive"].plot(told, tmp_path / "adaptive.png")
    assert (tmp_path / "adaptive.png").stat().st_size > 1000
