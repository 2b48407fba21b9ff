"""All weights of a base adapted: what learns, what the AR self keeps, and checkpoints that need no base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import redraft
from redraft.denoiser import families
from redraft.engine.backends.onnx_backend import OnnxBackend, eight_bits
from redraft.engine.backends.onnx_export import export
from redraft.errors import RequestError
from redraft.hub import store
from redraft.hub.runs import complete
from redraft.training import checkpoints
from redraft.training.adaptation import Adaptation, adapt
from redraft.training.adaptation_methods import FullMethod
from redraft.training.flops import Work
from tests.training.bases import NAME, finish, recipe, torchrun, weights

RATE = {"learning_rate": 0.003, "ema": 0.9}


def full(data: Path, **changes: Any) -> Any:
    return recipe(data, **({"method": "full", "optimizer": RATE} | changes))


def records(folder: Path, name: str) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record[name] for line in lines if name in (record := json.loads(line))]


def test_it_begins_as_the_base(data: Path, tmp_path: Path) -> None:
    run = Adaptation(full(data), tmp_path / "run", resume=False)
    base = families.load(store.resolve(NAME).path)
    batch = run.batch(range(4))
    clean, _ = run.objective.hidden(batch)
    with torch.no_grad():
        due, _ = base(
            torch.from_numpy(batch.clean), torch.from_numpy(batch.positions), run.objective._text(batch)
        )
    where = torch.from_numpy(batch.clean_document >= 0)
    assert torch.equal(clean[where], due[where])
    logits = base.logits(due).index_fill(-1, torch.tensor(run.model.config.special_slot_ids), -1e30)
    following = torch.from_numpy(batch.following)
    ar, kept, count = run.objective.ar_sums(batch, clean)
    torch.testing.assert_close(
        ar, F.cross_entropy(logits[following >= 0], following[following >= 0], reduction="sum")
    )
    assert (kept.item(), int(count)) == (0.0, int((following >= 0).sum()))
    assert batch.divisors()[3] == count


def test_what_follows_is_of_the_same_document(data: Path, tmp_path: Path) -> None:
    several = full(data, train={"row_length": 100})
    batch = Adaptation(several, tmp_path / "run", resume=False).batch(range(4))
    for b, i in np.ndindex(batch.clean.shape):
        document = batch.clean_document[b, i]
        goes_on = (
            i + 1 < batch.clean.shape[1] and document >= 0 and batch.clean_document[b, i + 1] == document
        )
        assert batch.following[b, i] == (batch.clean[b, i + 1] if goes_on else -1)


@pytest.mark.parametrize(("losses", "reached"), [({"ar": 0.0}, True), ({"ar": 1.0, "keep": 1.0}, True)])
def test_gradients_reach_every_weight(
    data: Path, tmp_path: Path, losses: dict[str, float], reached: bool
) -> None:
    run = Adaptation(full(data, losses=losses), tmp_path / "run", resume=False)
    batch = run.batch(range(4))
    run._gradients(batch, batch.divisors())
    for name, p in run.model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_portions_and_recomputed_logits_give_the_same_gradient(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redraft.training import adaptation_objective as module

    def gradients(micro_rows: int, kept: int, chunk: int, twice: bool) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(module, "KEPT", kept)
        monkeypatch.setattr(module, "CHUNK", chunk)
        own = full(data, losses={"keep": 0.5}, train={"recompute": twice})
        run = Adaptation(own, tmp_path / f"{micro_rows}{twice}", resume=False)
        with torch.no_grad():
            for p in run.model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
        run.micro_rows = micro_rows
        batch = run.batch(range(4))
        sums = run._gradients(batch, batch.divisors())
        assert sums[-2] > 0  # it is no longer the base
        return {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None}

    whole, parts = gradients(4, 10_000, 10_000, False), gradients(1, 8, 16, True)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-3)


def test_the_ar_loss_keeps_the_ar_self_and_the_model_stands_alone(data: Path, tmp_path: Path) -> None:
    train = {
        "steps": 30,
        "evaluate_every": 30,
        "save_every": 30,
        "sample_prompts": ["abc"],
        "sample_tokens": 6,
    }
    with_ar = full(data, train=train)
    adapt(with_ar, tmp_path / "with")
    adapt(full(data, train=train, losses={"ar": 0.0}), tmp_path / "without")
    kept, lost = (records(tmp_path / name, "valid_ar")[-1] for name in ("with", "without"))
    assert kept < lost - 0.3
    assert records(tmp_path / "with", "fill")[-1] < records(tmp_path / "with", "fill")[0]

    (store.local_root() / NAME).rename(tmp_path / "gone")
    model = redraft.load(tmp_path / "with", backend="torch")
    options = {"max_tokens": 16, "temperature": 0.0, "seed": 0, "ignore_eos": True}
    ar = model.generate("abcdef", decode="ar", **options)
    assert model.generate("abcdef", decode="verified", **options).token_ids == ar.token_ids
    assert model.generate("abcdef", decode="diffusion", **options).tokens == 16
    assert model.fill("abc", "hij", seed=0).full_text.endswith("hij")
    onnx = redraft.load(tmp_path / "with", backend="onnx")
    assert onnx.generate("abcdef", decode="ar", **options).token_ids == ar.token_ids
    assert onnx.generate("abcdef", decode="verified", **options).token_ids == ar.token_ids
    written = export(
        complete(tmp_path / "with")[-1], tmp_path / "out", "fp32", [np.array(model.encode("abcdef"))]
    )
    assert written.agreement is not None
    assert written.agreement.argmax_share == 1
    assert isinstance(onnx.backend, OnnxBackend)


def test_a_run_in_slices_is_the_run_in_one_go(data: Path, tmp_path: Path) -> None:
    adapt(full(data), tmp_path / "whole")
    for resume in (False, True):
        adapt(full(data, train={"slice_minutes": 1e-9}), tmp_path / "cut", resume=resume)
    adapt(full(data), tmp_path / "cut", resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(parts[name], value), name


def test_it_goes_on_elsewhere_from_its_portable_copy(data: Path, tmp_path: Path) -> None:
    train = {"steps": 3, "save_every": 2, "portable": True}
    adapt(full(data, train=train | {"steps": 2}), tmp_path / "here")
    (copy,) = (tmp_path / "here" / "portable").glob("step-*")
    (tmp_path / "there").mkdir()
    copy.rename(tmp_path / "there" / copy.name)
    run = Adaptation(full(data, train=train), tmp_path / "there", resume=True)
    here = Adaptation(full(data, train=train), tmp_path / "here", resume=True)
    for name, value in FullMethod().weights(here.model).items():
        assert torch.equal(FullMethod().weights(run.model)[name], value.bfloat16().float()), name
    assert len(checkpoints.moments(run.state)) == len(checkpoints.moments(here.state)) > 0
    assert run.step()["loss"] == pytest.approx(here.step()["loss"], rel=0.05)


@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_does(data: Path, tmp_path: Path, shard: bool) -> None:
    train = {"steps": 3, "save_every": 2, "evaluate_every": 2, "sample_prompts": ["abc"], "sample_tokens": 4}
    losses = {"keep": 0.3}
    one = full(data, train=train, losses=losses)
    two = full(data, train=train | {"shard": shard}, losses=losses)
    finish(torchrun(two, tmp_path / "two"))
    adapt(one, tmp_path / "one")
    for name in ("loss", "ar", "kept", "grad_norm", "valid_ar"):
        np.testing.assert_allclose(
            records(tmp_path / "two", name), records(tmp_path / "one", name), rtol=1e-3
        )
    found = weights(tmp_path / "two")
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(found[name], value, atol=1e-3, rtol=1e-2)
    model = redraft.load(tmp_path / "two", backend="torch")
    assert model.generate("abc", decode="verified", max_tokens=4, seed=0).tokens
    for path in (tmp_path / "two").glob("step-000003"):  # goes on, from shares to shares, to where it was
        path.rename(tmp_path / "later")
    finish(torchrun(two, tmp_path / "two", "--resume"))
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, found[name], atol=1e-6, rtol=1e-4)


def test_products_in_bfloat16_learn_float32_weights(data: Path, tmp_path: Path) -> None:
    run = Adaptation(
        full(data, train={"bfloat16": True}, losses={"keep": 0.5}), tmp_path / "run", resume=False
    )
    told = [run.step() for _ in range(2)]
    plain = Adaptation(full(data, losses={"keep": 0.5}), tmp_path / "plain", resume=False)
    assert told[0]["loss"] == pytest.approx(plain.step()["loss"], rel=0.05)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_a_large_model_made_of_an_ar_base_keeps_the_precision_of_its_outliers(
    data: Path, tmp_path: Path
) -> None:
    small = Adaptation(full(data), tmp_path / "run", resume=False).model.config
    large = replace(small, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8)
    assert eight_bits(large) == "blocks"
    assert eight_bits(replace(large, shift=False)) == "int8"  # as models of our own have it


def test_flops_of_a_step(data: Path, tmp_path: Path) -> None:
    work = Work.of(Adaptation(full(data), tmp_path / "run", resume=False).model)
    assert work.adapter is None
    assert work.flops(1, 0, 0, 0) == 6 * (work.layers + work.head)
    assert work.flops(0, 1, 1, 1) == 6 * work.layers + 8 * work.head


@pytest.mark.parametrize("own", [{"markov_rank": 4}, {"confidence": True}, {"start": "somewhere"}])
def test_heads_are_an_adapters(data: Path, tmp_path: Path, own: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="method full has no adapter: adapter.frozen, start, markov_rank"):
        Adaptation(full(data, adapter=own), tmp_path / "run", resume=False)


def test_a_checkpoint_of_the_other_method_is_refused(data: Path, tmp_path: Path) -> None:
    adapt(recipe(data, train={"steps": 1}), tmp_path / "run")
    with pytest.raises(RequestError, match="can't be resumed from"):
        Adaptation(full(data), tmp_path / "run", resume=True)
    adapt(full(data, train={"steps": 1}), tmp_path / "full")
    again = full(data, base={"name": str(tmp_path / "full")})
    with pytest.raises(RequestError, match="denoises already: train it on with redraft train"):
        Adaptation(again, tmp_path / "again", resume=False)
