"""Masks by blocks, layers that run twice, bases shared out over processes, and checkpoints that are carried."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import redraft
from redraft.denoiser import adapters
from redraft.denoiser.adapter_config import AdapterConfig
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.transformer import Denoiser
from redraft.errors import RequestError
from redraft.hub.runs import complete
from redraft.training import portable
from redraft.training.adaptation import Adaptation, adapt
from redraft.training.adaptation_masks import flex_masks
from redraft.training.adaptation_objective import AdaptationObjective
from redraft.training.adaptation_recipe import load_adaptation
from tests.training.bases import finish, recipe, shake, torchrun, weights
from tests.training.masks import dense

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Adaptation:
    several = recipe(data, train={"row_length": 100})  # documents a row
    made = Adaptation(several, tmp_path / "run", resume=False)
    shake(made.model)
    return made


# -- attention ------------------------------------------------------------------------------------------------


def test_block_masks_are_the_dense_masks(run: Adaptation) -> None:
    from torch.nn.attention.flex_attention import create_mask

    batch = run.batch(range(4))
    assert (batch.clean_document < 0).any()
    assert len(set(batch.clean_document.flatten().tolist())) > 2
    clean, canvas = flex_masks(batch, torch.device("cpu"))
    for mask, due in (
        (clean, torch.from_numpy(batch.clean_visible)),
        (canvas, dense(torch.from_numpy(batch.canvas_visible))),
    ):
        found = create_mask(mask.mask_mod, len(due), 1, *due.shape[1:], device="cpu")[:, 0]
        assert torch.equal(found, due)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_gives_the_same_hidden_states(run: Adaptation) -> None:
    batch = run.batch(range(4))
    flexible = AdaptationObjective(run.model, run.recipe.losses, flex=True)
    with torch.no_grad():
        for one, other, seen in zip(
            run.objective.hidden(batch),
            flexible.hidden(batch),
            (batch.clean_document >= 0, batch.document >= 0),
            strict=True,
        ):
            where = torch.from_numpy(seen)  # rows that see nothing average garbage in one, zeros in the other
            torch.testing.assert_close(other[where], one[where], atol=1e-4, rtol=1e-4)


# -- layers that run twice ------------------------------------------------------------------------------------


def test_layers_run_twice_give_the_same_gradient(data: Path, tmp_path: Path) -> None:
    def gradients(twice: bool) -> tuple[dict[str, torch.Tensor], int]:
        own = recipe(data, train={"recompute": twice})
        made = Adaptation(own, tmp_path / str(twice), resume=False)
        adapter, calls = adapters.adapter_of(made.model), 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        made.model.model.layers[0].mlp.register_forward_pre_hook(count)
        with torch.no_grad():
            for p in adapter.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
        batch = made.batch(range(4))
        made._gradients(batch, batch.divisors())
        return {n: p.grad for n, p in adapter.named_parameters() if p.grad is not None}, calls

    (plain, once), (again, twice) = gradients(False), gradients(True)
    assert (once, twice) == (2, 3)  # clean rows, canvas rows, and these once more
    assert plain.keys() == again.keys()
    for name, value in plain.items():
        assert torch.equal(again[name], value), name


# -- several processes ----------------------------------------------------------------------------------------


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for line in lines if "loss" in (record := json.loads(line))]


MIXED = {"draft": 0.7, "prefix": 0.0, "revealed": 0.0, "hole": 0.3, "per_row": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    "own",
    [
        pytest.param({}, id="from the first layer on"),
        # One process may have drafts alone, which skip layers where they can, while the other's canvases hold text.
        pytest.param({"adapter": {"rank": 8, "canvas_entry": 1}, "canvas": MIXED}, id="entering late"),
    ],
)
def test_a_base_shared_out_learns_what_a_whole_one_does(
    data: Path, tmp_path: Path, own: dict[str, Any]
) -> None:
    train = {"steps": 3, "evaluate_every": 2, "sample_prompts": ["abc"], "sample_tokens": 4}
    one = recipe(data, train=train, **own)
    told = finish(torchrun(recipe(data, train=train | {"shard": True}, **own), tmp_path / "two"))
    assert "drafts accepted in a row" in told
    adapt(one, tmp_path / "one")
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)
    two = weights(tmp_path / "two")
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-3)
    model = redraft.load(tmp_path / "two", backend="torch")  # what two processes wrote, in one
    assert model.generate("abc", decode="verified", max_tokens=4, seed=0).tokens


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds a process by /proc")
def test_a_run_whose_process_is_killed_goes_on(data: Path, tmp_path: Path) -> None:
    own = recipe(data, train={"steps": 60, "save_every": 4, "keep": 99})
    whole = torchrun(own, tmp_path / "whole")
    finish(whole)
    process = torchrun(own, tmp_path / "killed")
    while not complete(tmp_path / "killed"):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(rank_of(process.pid, 1), signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode
    assert 4 <= int(complete(tmp_path / "killed")[-1].name.removeprefix("step-")) < 60
    finish(torchrun(own, tmp_path / "killed", "--resume"))
    due = weights(tmp_path / "whole")
    for name, value in weights(tmp_path / "killed").items():
        assert torch.equal(value, due[name]), name


def rank_of(parent: int, rank: int) -> int:
    """torchrun's process of this rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            mine = f"\nPPid:\t{parent}\n" in (folder / "status").read_text()
            if mine and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"no process of rank {rank}")


def test_rows_that_cannot_be_shared_out(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from redraft.training import adaptation_start

    with pytest.raises(RequestError, match="make train.batch_rows a multiple of 3"):
        adaptation_start.check(recipe(data, train={"shard": True}), 3)


# -- what is carried ------------------------------------------------------------------------------------------


def test_a_run_goes_on_elsewhere_from_its_portable_copy(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "LIMIT", 40_000)
    train = {"steps": 3, "save_every": 2, "portable": True}
    adapt(recipe(data, train=train | {"steps": 2}), tmp_path / "here")
    (copy,) = (tmp_path / "here" / "portable").glob("step-*")
    parts = sorted((copy / "training_state").glob("optimizer-*.safetensors"))
    assert len(parts) > 1
    assert max(path.stat().st_size for path in parts) <= 40_000
    (tmp_path / "there").mkdir()
    copy.rename(tmp_path / "there" / copy.name)
    run = Adaptation(recipe(data, train=train), tmp_path / "there", resume=True)
    assert run.state.step == 2
    here = Adaptation(recipe(data, train=train), tmp_path / "here", resume=True)
    own, due = run.state.model.state_dict(), here.state.model.state_dict()
    for name, value in due.items():
        assert torch.equal(own[name], value.bfloat16().float()), name
        assert torch.equal(run.state.ema.shadow[name], own[name])
    for p, q in zip(run.state.model.parameters(), here.state.model.parameters(), strict=True):
        mine, theirs = run.state.optimizers[0].state[p], here.state.optimizers[0].state[q]
        assert mine["step"] == theirs["step"]
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(mine[key], theirs[key].bfloat16().float())
    told = run.step()
    assert told["loss"] == pytest.approx(here.step()["loss"], rel=0.05)


def test_the_recipe_for_a_gpu_can_be_carried() -> None:
    """In 48 MiB, with a tokenizer of 4; and the adapter ships in 16."""
    own = load_adaptation(ROOT / "recipes" / "135m-h100.yaml")
    base = DenoiserConfig(  # SmolLM2-135M's
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        canvas_rows_marked=False,
        tie_word_embeddings=True,
    )
    assert own.train.portable
    with torch.device("meta"):
        network = Denoiser(base)
        adapter = adapters.Adapter(network, AdapterConfig("base", own.adapter.rank, 1.0, 0, 1))
    numbers = sum(p.numel() for p in adapter.parameters())
    assert 2 * numbers < 16 << 20
    assert 6 * numbers < 44 << 20


def test_a_larger_tensor_than_a_file_may_hold_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "LIMIT", 1000)
    sizes = {"a": 50, "b": 2000, "c": 50, "d": 60, "e": 200}
    groups = portable.portions({n: torch.zeros(k, dtype=torch.float32) for n, k in sizes.items()})
    assert [list(group) for group in groups] == [["a"], ["b"], ["c", "d"], ["e"]]
