"""Work by difficulty and canvas length, error correction and mending on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from redraft.api import Model
from redraft.errors import RequestError
from redraft.evaluation import adaptive as a
from redraft.evaluation import correction as c
from redraft.evaluation import difficulty as d
from redraft.evaluation.benches import BENCHES, Options, run_bench
from redraft.evaluation.lengths import LENGTHS
from redraft.evaluation.prompts import Dialogues, Reply
from redraft.evaluation.writing import Way, write_all


@pytest.fixture(scope="module")
def told(model: Model) -> dict:
    return run_bench("adaptive", model, Options(quick=True))


def test_damage_swaps_the_given_share_and_nothing_else() -> None:
    replies = [Reply(np.array([1]), np.arange(10, 30) + i, 20) for i in range(10)]
    cases = c.damage(replies, 16, 0.05, never=(0, 1), vocab=50, seed=0)
    wrong = np.array([case.wrong for case in cases])
    assert wrong.sum() == 8  # 5 % of 160
    for case, reply in zip(cases, replies, strict=True):
        np.testing.assert_array_equal(case.right, reply.text[:16])
        assert set(case.tokens) <= set(range(10, 40))


def test_damage_never_puts_a_special_token_in() -> None:
    replies = [Reply(np.array([1]), np.array([0, 2, 3, 4]), 4)] * 5
    cases = c.damage(replies, 4, 1.0, never=(0,), vocab=5, seed=1)
    assert all(case.wrong.all() for case in cases)
    assert not any((case.tokens == 0).any() for case in cases)


@pytest.mark.parametrize("budget", c.BUDGETS)
def test_every_correction_keeps_to_the_budget(model: Model, dialogues: Dialogues, budget: int) -> None:
    prompt = dialogues.replies[0][0].prompt
    for sampler in c.corrections(budget).values():
        assert sampler["max_steps"] == budget
        request = Way("diffusion", canvas=8, sampler=sampler).request(model, prompt, 8)
        (ticket,) = write_all(model, [request], 1)
        assert ticket.writer.nfe <= budget * ticket.writer.canvases
    assert c.corrections(budget, masks=False).keys() == {"off", "editing"}


def test_hard_replies_are_those_with_the_higher_nll(told: dict) -> None:
    rows = told["difficulty"]["rows"]
    assert [(r["way"], r["measure"]) for r in rows] == [
        (way, measure) for way in ("verified", "verified, branches", "diffusion") for measure in d.MEASURES
    ]
    for row in rows:
        assert row["hardest"]["ar_nll"] > row["easiest"]["ar_nll"]
        assert row["ratio"] == pytest.approx(
            row["hardest"]["nfe_per_token"] / row["easiest"]["nfe_per_token"]
        )
        low, high = row["ratio_interval"]
        assert low <= row["ratio"] <= high
        assert row["hardest"]["replies"] == row["easiest"]["replies"] == 2
        assert len(row["tenths"]) == 10
        assert all(1 / 8 <= t <= 1 for t in row["tenths"])


def test_tenths_by_hand() -> None:
    nll = np.array([5.0, 1.0, 3.0, 2.0, 4.0] * 4)
    found = d.tenths(nll, nll / 10)
    assert found["easiest"]["nfe_per_token"] == pytest.approx(0.1)
    assert found["hardest"]["nfe_per_token"] == pytest.approx(0.5)
    assert found["ratio"] == pytest.approx(5.0)
    assert found["tenths"] == sorted(found["tenths"])


def test_verified_writes_the_given_reply_and_keeps_only_what_it_says(
    model: Model, dialogues: Dialogues
) -> None:
    """The text is the reply whatever is drafted; where the reply is the model's own text, it takes what that took."""
    prompt = dialogues.replies[0][0].prompt
    way = Way("verified", temperature=0.0, canvas=4)
    request = way.request(model, prompt, 12)
    (free,) = write_all(model, [request], 1)
    own = np.array(free.writer.output.tokens)
    other = (own + 1) % 50 + 20
    vocab = model.config.vocab_size
    same, forced = write_all(model, [replace(request, allow=d.only(t, vocab)) for t in (own, other)], 1)
    assert (same.writer.output.tokens, same.writer.nfe) == (own.tolist(), free.writer.nfe)
    assert forced.writer.output.tokens == other.tolist()
    assert forced.writer.nfe <= 11  # the prompt's own pass brings the first token


@pytest.mark.parametrize(("threshold", "steps"), [(0.0, 1), (1.0, 8)])
def test_spelling_takes_as_many_steps_as_the_rule_lets_it(
    model: Model, dialogues: Dialogues, threshold: float, steps: int
) -> None:
    reply = a.long_replies(model, dialogues, 8, 1, 0)[0]
    request = Way("diffusion", canvas=8, threshold=threshold).request(model, reply.prompt, 8)
    assert d.spelled(model, reply.prompt, reply.text[:8], request) == steps


def test_settling_all_at_once_makes_every_reply_cost_the_same(model: Model, dialogues: Dialogues) -> None:
    replies = a.long_replies(model, dialogues, 8, 20, 0)
    way = Way("diffusion", canvas=8, threshold=0.0, temperature=0.0)
    for row in d.difficulty(model, replies, 8, {"diffusion": way}, 8, 0)["rows"]:
        assert row["hardest"]["nfe_per_token"] == row["easiest"]["nfe_per_token"] == 1 / 8
        assert row["ratio_interval"] == (1.0, 1.0)


def test_lengths_are_counted_for_every_way(told: dict) -> None:
    rows = {(r["way"], r["length"]): r for r in told["lengths"]}
    assert len(rows) == 3 * len(LENGTHS) + 1
    for (way, length), row in rows.items():
        assert row["nfe_per_token"] > 0
        assert row["tokens_by_cost"] > 0
        if way == "unchecked" and length != "auto":
            assert length <= row["rows"] <= 2 * length + 1  # the canvas, and the commit of the one before


def test_correction_is_compared_prompt_by_prompt(told: dict) -> None:
    assert [row["nfe_per_canvas"] for row in told["correction"]] == list(c.BUDGETS)
    for row in told["correction"]:
        assert row["tokens"] == 32
        assert row.keys() >= {"doubt", "editing", "remasking"}
        for name in row.keys() - {"nfe_per_canvas", "tokens", "off"}:
            assert row[name]["difference"] == pytest.approx(
                row[name]["ar_nll"] - row["off"]["ar_nll"], abs=1e-9
            )
            low, high = row[name]["interval"]
            assert low <= row[name]["difference"] <= high


def test_what_is_checked_counts_only_where_it_keeps_to_the_budget(
    model: Model, dialogues: Dialogues, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [r.prompt for r in a.long_replies(model, dialogues, 8, 2, 0)]
    monkeypatch.setattr(c, "BUDGETS", (1, 8))
    few, many = c.correction(model, prompts, Way("diffusion", temperature=0.0), 8, 16, 2, 0)
    assert "checked" not in few  # a random network keeps hardly a draft
    assert many["checked"]["nfe_per_token"] <= 1.0


def test_what_no_model_is_sure_enough_of_stays(
    model: Model, dialogues: Dialogues, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {
        "editing 1": {"edit_threshold": 1.0},
        "doubt 0": {"doubt": 0.0, "edit_steps": 1},
        "editing 0": {"edit_threshold": 0.0},
        "doubt 1": {"doubt": 1.0, "edit_steps": 1},
    }
    monkeypatch.setattr(c, "MENDING", ways)
    m = c.mending(model, a.long_replies(model, dialogues, 8, 10, 1), 8, 8, 0)
    assert m["swapped"] == 4
    for never in m["ways"][:2]:
        assert (never["repaired"], never["otherwise"], never["spoiled"]) == (0.0, 0.0, 0.0)
        assert never["ar_nll"] == pytest.approx(m["ar_nll_damaged"], rel=1e-12)
        assert never["interval"] == (0.0, 0.0)
        assert never["nfe_per_canvas"] == 1.0
    for always in m["ways"][2:]:
        assert always["otherwise"] + always["repaired"] > 0
        assert always["spoiled"] > 0  # a random network would rewrite everything


def test_replies_too_short_for_the_canvas(model: Model, dialogues: Dialogues) -> None:
    with pytest.raises(RequestError, match="no reply in .* has 400 tokens"):
        a.long_replies(model, dialogues, 400, 5, 0)
    assert all(len(r.text) >= 20 for r in a.long_replies(model, dialogues, 20, 50, 0))


def test_report_and_picture(told: dict, tmp_path: Path) -> None:
    assert len(a.lines(told)) == 2 + 9 + 3 + 1 + 3 * len(LENGTHS) + 1 + 1 + 3 + 1 + len(c.MENDING)
    BENCHES["adaptive"].plot(told, tmp_path / "adaptive.png")
    assert (tmp_path / "adaptive.png").stat().st_size > 1000
