"""A checkpoint appears whole or not at all, and what does not fit is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import redraft.api
from redraft.denoiser import checkpoint
from redraft.errors import RequestError
from redraft.hub.runs import newest
from redraft.training import optim
from redraft.training.checkpoints import TrainingState, complete, restore, save
from redraft.training.recipe import Optimizer
from redraft.training.ship import ship
from tests.training import toys


def state(seed: int = 0, steps: int = 2, **changes: int) -> TrainingState:
    """A network after a few steps on noise, so that averages and optimizers hold something."""
    model = toys.network(seed, **changes)
    out = TrainingState(model, optim.Ema(model, 0.9), optim.build(model, Optimizer()))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        for optimizer in out.optimizers:
            optimizer.step()
        out.ema.update(model)
        out.step += 1
    return out


def test_everything_comes_back(tmp_path: Path) -> None:
    first, second = state(), state(seed=5, steps=0)
    first.seconds = 12.5
    folder = save(first, tmp_path, tmp_path, {"name": "x"}, keep=2)
    restore(second, folder)
    assert (second.step, second.seconds, second.ema.updates) == (2, 12.5, 2)
    for (name, a), b in zip(
        first.model.state_dict().items(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
        assert torch.equal(first.ema.shadow[name], second.ema.shadow[name]), name
    for a, b in zip(first.optimizers, second.optimizers, strict=True):
        ours, theirs = a.state_dict()["state"], b.state_dict()["state"]
        assert ours.keys() == theirs.keys()
        for i, values in ours.items():
            assert values.keys() == theirs[i].keys()
            assert all(torch.equal(v, theirs[i][k]) for k, v in values.items())
    averaged = checkpoint.load(folder).state_dict()
    assert all(torch.equal(v, first.ema.shadow[k]) for k, v in averaged.items())


def test_the_newest_are_kept_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    now = state()
    for step in (999_999, 1_000_000, 1_000_001):
        now.step = step
        save(now, tmp_path, tmp_path, {}, keep=2)
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-000007").mkdir()  # without a state it's not complete
    assert [p.name for p in complete(tmp_path)] == ["step-1000000", "step-1000001"]
    assert newest(tmp_path).name == "step-1000001"
    assert newest(tmp_path / "step-1000000") == tmp_path / "step-1000000"
    assert complete(tmp_path / "absent") == []


def test_damaged_or_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    now = state()
    for name, damage in {
        "state.json": lambda b: b[:-5],
        "weights.safetensors": lambda b: b[: len(b) // 2],
        "optimizer.safetensors": lambda b: b"",
    }.items():
        folder = save(now, tmp_path / name, tmp_path, {}, keep=1)
        path = folder / "training_state" / name
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(RequestError, match="can't be resumed from") as caught:
            restore(state(), folder)
        assert "\n" not in str(caught.value)
    folder = save(now, tmp_path / "keys", tmp_path, {}, keep=1)
    (folder / "training_state" / "state.json").write_text(json.dumps({"step": 3}))
    with pytest.raises(RequestError, match="can't be resumed from"):
        restore(state(), folder)
    folder = save(now, tmp_path / "wide", tmp_path, {}, keep=1)
    with pytest.raises(RequestError, match="config"):
        restore(state(hidden_size=32), folder)


def test_a_shipped_model_says_what_the_checkpoint_says(tmp_path: Path, prepared: Path) -> None:
    from redraft.training.run import train

    last = train(toys.recipe(prepared, steps=3), tmp_path / "run")
    generation = {"canvas_length": 8, "threshold": 0.5, "max_new_tokens": 12}
    shipped = ship(tmp_path / "run", tmp_path / "out", generation)
    ours, theirs = checkpoint.load(last), checkpoint.load(shipped)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1 / 128, atol=0)
    model = redraft.api.load(shipped, backend="torch")
    assert model.defaults.canvas_length == 8
    assert model.generate([{"role": "user", "content": "yes"}], seed=0).tokens <= 12
    listed = json.loads((shipped / "manifest.json").read_text())["files"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= set(listed)
