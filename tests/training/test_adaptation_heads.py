"""Heads behind an adapter: what they learn from, alone or beside it, and how they are measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import redraft
from redraft.denoiser import adapters
from redraft.engine.backend import Pass
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.errors import RequestError
from redraft.hub.runs import complete
from redraft.sampling import NoiseKey, SamplerSettings, SlotVocabulary, begin
from redraft.sampling.heads import draft
from redraft.training.adaptation import Adaptation, adapt
from redraft.training.adaptation_heads import calibration_error, live, platt
from redraft.training.adaptation_recipe import AdaptRecipe
from tests.training.bases import recipe, shake, weights

HEADS: dict[str, Any] = {"markov_rank": 4, "confidence": True}
ALL_MASKS = {"draft": 1, "prefix": 0, "revealed": 0, "hole": 0}


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Adaptation:
    made = Adaptation(recipe(data, adapter=HEADS), tmp_path / "run", resume=False)
    shake(made.model)
    return made


@pytest.fixture
def trained(data: Path, tmp_path: Path) -> Path:
    """A run without heads."""
    adapt(recipe(data, train={"steps": 2}), tmp_path / "trained")
    return tmp_path / "trained"


def behind(data: Path, start: Path, **changes: Any) -> AdaptRecipe:
    """A recipe of heads behind that run's adapter."""
    own = HEADS | {"start": str(start), "frozen": True} | changes.pop("adapter", {})
    return recipe(data, adapter=own, canvas=ALL_MASKS, **changes)


def test_the_token_before_a_slot_goes_into_its_logits(run: Adaptation) -> None:
    """Against the two tables of the head written out."""
    batch, model = run.batch(range(4)), run.model
    heads = adapters.adapter_of(model).heads
    with torch.no_grad():
        pairs = run.objective.pairs(batch)
        table = model.model.embed_tokens.weight
        normed = table / (table**2).mean(-1, keepdim=True).add(1e-6).sqrt()
        w1, w2 = normed @ heads.markov_A.T, heads.markov_B @ model.lm_head.weight.T
        due = model.logits(pairs.canvas) + pairs.taught[:, None] * (w1[pairs.previous] @ w2)
        got = model.logits(run.objective.moved(pairs, pairs.previous))
    torch.testing.assert_close(got, due, atol=2e-4, rtol=1e-4)
    where = np.argwhere((batch.weight > 0) | (batch.fill > 0))
    taught = np.flatnonzero(pairs.taught.numpy())
    assert len(taught) > 10
    for i in taught:
        b, n, j = where[i]
        assert int(pairs.previous[i]) == batch.target[b, n, j - 1]  # shifted: slot 0 isn't supervised


def learnt(run: Adaptation) -> set[str]:
    batch = run.batch(range(4))
    run._gradients(batch, batch.divisors())
    named = adapters.adapter_of(run.model).named_parameters()
    return {n for n, p in named if p.grad is not None and p.grad.any()}


def test_heads_learn_beside_the_adapter(run: Adaptation) -> None:
    names = learnt(run)
    assert {f"heads.{n}" for n in ("markov_A", "markov_B", "confidence_weight", "confidence_bias")} < names
    assert "slots.mask" in names
    assert not {"heads.confidence_scale", "heads.confidence_shift"} & names


def test_behind_a_frozen_adapter_only_heads_learn(data: Path, tmp_path: Path, trained: Path) -> None:
    run = Adaptation(behind(data, trained), tmp_path / "run", resume=False)
    shake(run.model)
    assert not run.objective.pairs(run.batch(range(2))).canvas.requires_grad
    trainable = {"heads.markov_A", "heads.markov_B", "heads.confidence_weight", "heads.confidence_bias"}
    assert learnt(run) == trainable
    assert {n for n, p in run.model.named_parameters() if p.requires_grad} == {
        f"adapter.{n}" for n in trainable
    }


def test_the_confidence_head_does_not_bend_what_it_judges(run: Adaptation) -> None:
    pairs = run.objective.pairs(run.batch(range(2)))
    pairs.canvas.retain_grad()
    run.objective.heads.raw_confidence(pairs.canvas, pairs.slot).sum().backward()
    assert pairs.canvas.grad is None


def test_heads_are_trained_behind_a_run_and_measured(data: Path, tmp_path: Path, trained: Path) -> None:
    train = {"steps": 60, "evaluate_every": 60, "save_every": 60, "batch_rows": 8, "evaluate_rows": 12}
    last = adapt(behind(data, trained, train=train), tmp_path / "heads")
    before, after = weights(trained), weights(tmp_path / "heads")
    for name, value in before.items():
        if name.startswith("average/"):  # of the checkpoint itself
            assert torch.equal(after[name], value), name
    assert any(name.startswith(f"average/{adapters.HEADS}") for name in after)
    records = [json.loads(line) for line in (tmp_path / "heads" / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if "loss" in r]
    for name, sign in (("doubt", -1), ("kl", -1), ("accept", 1)):
        first, final = (np.mean([r[name] for r in part]) for part in (steps[:5], steps[-5:]))
        assert sign * (final - first) > 0, name
    first, final = (r for r in records if "valid_accepted_live" in r)
    assert final["valid_accepted"] == first["valid_accepted"]  # of the canvas alone
    assert first["valid_accepted_live"] == first["valid_accepted"]
    for name in ("valid_reached", "valid_right", "valid_confidence_error"):
        assert len(final[name]) == 5
        assert all(0 <= x <= 1 for x in final[name])
    held = after[f"average/{adapters.HEADS}confidence_scale"]
    assert (held[1:] != 1).any()
    model = redraft.load(tmp_path / "heads", backend="torch")
    assert (tmp_path / "heads" / last.name) == last
    options = {"max_tokens": 16, "temperature": 0.0, "seed": 0, "ignore_eos": True}
    verified, ar = (model.generate("abcdef", decode=d, **options) for d in ("verified", "ar"))
    assert verified.token_ids == ar.token_ids


def test_a_run_with_heads_resumes(data: Path, tmp_path: Path, trained: Path) -> None:
    adapt(behind(data, trained), tmp_path / "whole")
    cut = behind(data, trained, train={"slice_minutes": 1e-9})
    adapt(cut, tmp_path / "cut")
    while complete(tmp_path / "cut")[-1].name != "step-000004":
        adapt(cut, tmp_path / "cut", resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(parts[name], value), name


def test_a_run_can_start_from_one_with_the_same_heads(data: Path, tmp_path: Path, trained: Path) -> None:
    adapt(behind(data, trained), tmp_path / "heads")
    again = Adaptation(behind(data, tmp_path / "heads"), tmp_path / "again", resume=False)
    held = weights(tmp_path / "heads")
    for name, p in adapters.adapter_of(again.model).named_tensors().items():
        assert torch.equal(p, held[f"average/{name}"]), name


@pytest.mark.parametrize(
    ("adapter", "line"),
    [
        ({"rank": 4}, "doesn't fit the recipe: its rank is 8, the recipe's only 4"),
        ({"shift": False}, "doesn't fit the recipe: its shift is True, the recipe's False"),
        ({"markov_rank": 0, "confidence": False}, "leaves nothing to learn without heads"),
        ({"start": None}, "needs a trained adapter to begin with"),
        ({"start": "tiny-base"}, "is no adapter"),
        ({"start": "tiny-bass"}, "unknown model 'tiny-bass'"),
    ],
)
def test_what_heads_cannot_stand_behind_gets_one_line(
    data: Path, tmp_path: Path, trained: Path, adapter: dict[str, Any], line: str
) -> None:
    with pytest.raises(RequestError, match=line) as caught:
        Adaptation(behind(data, trained, adapter=adapter), tmp_path / "run", resume=False)
    assert "\n" not in str(caught.value)


def test_live_drafts_are_those_of_the_engine(data: Path, tmp_path: Path) -> None:
    """Canvas by canvas: the backend's logits, drafted by sampling.heads with all tokens as candidates."""
    toy = recipe(data, adapter=HEADS, canvas=ALL_MASKS, train={"steps": 60}, losses={"ce": 0, "kl_share": 1})
    run = Adaptation(toy, tmp_path / "run", resume=False)
    while not run.done:  # until some drafts are right
        run.step()
    batch = run._build(run.rows, 0, range(4), 4, kind=0)
    with torch.no_grad():
        found = live(run.objective, batch)
        pairs = run.objective.pairs(batch)
        theirs = run.objective.favoured(pairs).numpy()
    backend, config = TorchBackend(run.model), run.model.config
    assert backend.heads is not None
    heads = replace(backend.heads, candidates=config.vocab_size)
    vocabulary = SlotVocabulary(config.vocab_size, config.mask_token_id, config.null_token_id)
    settings = SamplerSettings(canvas_length=6, temperature=0.0)
    due, reached = [], []
    number, slot = pairs.number.numpy(), pairs.slot.numpy()
    taught = pairs.taught.numpy() > 0
    for b, n in np.argwhere(batch.document >= 0):
        own = np.flatnonzero(batch.canvas_visible[b, n, 0, : batch.clean.shape[1]])
        canvas = begin(settings, vocabulary, NoiseKey(0), 0).after(settled=np.arange(6) == 0)
        call = Pass(
            backend.new_context(64), batch.clean[b, own], canvas=canvas.tokens, canvas_rows=canvas.wanted
        )
        logits = backend.forward([call])[0].canvas
        assert logits is not None
        tokens, _ = draft(heads, canvas, logits, int(batch.target[b, n, 0]))
        assert tokens is not None
        count = 0
        for place, token in enumerate(tokens.tolist(), 1):
            at = np.flatnonzero((number == b * 4 + n) & (slot == place) & taught)
            if not len(at) or token != theirs[at[0]]:
                break
            count += 1
        due.append(count)
        reached.append(min(count + 1, int((taught & (number == b * 4 + n)).sum())))
    assert found.runs.tolist() == due
    assert len(found.place) == len(found.right) == len(found.odds) == sum(reached)
    assert max(due) > 0


def test_platt_finds_the_scale_and_the_shift() -> None:
    rng = np.random.default_rng(0)
    odds = rng.standard_normal(20_000) * 2
    right = rng.random(len(odds)) < 1 / (1 + np.exp(-(0.4 * odds + 1.1)))
    scale, shift = platt(odds, right)
    assert scale == pytest.approx(0.4, abs=0.05)
    assert shift == pytest.approx(1.1, abs=0.05)
    assert platt(odds[:0], right[:0]) == (1.0, 0.0)
    every = platt(odds[:50], np.ones(50, bool))  # nothing was ever wrong: surer, but no infinity
    assert np.isfinite(every).all()
    assert every[1] > 0


def test_calibration_error_is_the_formula() -> None:
    chance = np.array([0.05, 0.05, 0.95, 0.95, 0.55])
    right = np.array([False, True, True, True, False])
    assert calibration_error(chance, right) == pytest.approx((abs(0.1 - 1) + abs(1.9 - 2) + 0.55) / 5)
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0.0
    assert calibration_error(chance[:0], right[:0]) == 0.0
