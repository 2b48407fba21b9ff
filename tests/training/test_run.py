"""A run goes on as if it had never stopped, in one process or two, and ends in one line when it can't."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from redraft.denoiser import checkpoint
from redraft.errors import RedraftError, RequestError
from redraft.training import checkpoints, samples
from redraft.training.recipe import Recipe
from redraft.training.run import Run, train
from tests.training import toys

ROOT = Path(__file__).parents[2]


class Told:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.messages: list[str] = []

    def update(self, step: int, metrics: dict[str, float]) -> None:
        self.steps.append(step)

    def message(self, text: str) -> None:
        self.messages.append(text)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything of a checkpoint: averaged weights, weights, optimizers' state."""
    files = (folder / "model.safetensors", *sorted((folder / "training_state").glob("*.safetensors")))
    return {f"{f.name}:{k}": v for f in files for k, v in load_file(f).items()}


def same(a: Path, b: Path) -> None:
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 60
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def started(
    script: str, recipe: Recipe, folder: Path, *arguments: str, processes: int = 1
) -> subprocess.Popen[str]:
    """Training in a process of its own (or two, by torchrun), as the command line runs it: errors are one line."""
    (folder.parent / "recipe.json").write_text(recipe.model_dump_json())
    code = f"""
import json, sys
import torch
from redraft.errors import RedraftError
from redraft.training.recipe import Recipe
from redraft.training.run import Run, train
recipe = Recipe.model_validate_json(open({str(folder.parent / "recipe.json")!r}).read())
folder, resume = {str(folder)!r}, "--resume" in sys.argv
try:
    {script}
except RedraftError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""
    path = folder.parent / "run_script.py"
    path.write_text(code)
    runner = [sys.executable]
    if processes > 1:
        runner += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    return subprocess.Popen(
        [*runner, str(path), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """Waits for a process; its stderr."""
    _, errors = process.communicate(timeout=500)
    return errors


def test_a_resumed_run_is_the_same_to_the_last_bit(prepared: Path, tmp_path: Path) -> None:
    recipe = toys.recipe(prepared, micro_batches=2)
    once = train(recipe, tmp_path / "once")
    first = Run(recipe, tmp_path / "twice", resume=False)
    for _ in range(3):
        first.step()
    first.save()
    told = Told()
    twice = train(recipe, tmp_path / "twice", resume=True, reporter=told)
    assert once.name == twice.name == "step-000006"
    same(once, twice)
    assert "step-000003" in told.messages[0]
    assert [r["loss"] for r in metrics(tmp_path / "once") if "loss" in r][3:] == [
        r["loss"] for r in metrics(tmp_path / "twice") if "loss" in r
    ]
    state = json.loads((twice / "training_state" / "state.json").read_text())
    assert state["step"] == state["ema_updates"] == 6
    assert state["seconds"] > 0
    # The finished run has nothing left to do, and its folder is a model that anyone can load.
    assert train(recipe, tmp_path / "twice", resume=True) == twice
    assert checkpoint.load(twice).config.canvas_length == 4
    assert (twice / "tokenizer.json").read_bytes() == (prepared / "tokenizer.json").read_bytes()


def test_the_loss_falls_and_everything_is_written(prepared: Path, tmp_path: Path) -> None:
    recipe = toys.recipe(
        prepared, steps=40, evaluate_every=20, save_every=20, sample_prompts=["a table please", "yes"]
    )
    told = Told()
    train(recipe, tmp_path / "run", reporter=told)
    records = metrics(tmp_path / "run")
    losses = [r["loss"] for r in records if "loss" in r]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    evaluations = [r for r in records if "valid_nelbo" in r]
    assert [r["step"] for r in evaluations] == [20, 40]
    assert evaluations[1]["valid_nelbo"] < evaluations[0]["valid_nelbo"]
    assert evaluations[1]["valid_ar"] < evaluations[0]["valid_ar"]
    assert evaluations[1]["valid_nelbo_se"] > 0
    assert all(len(r["samples"]) == 2 for r in evaluations)
    assert told.steps == list(range(1, 41))
    assert any("held-out AR" in m for m in told.messages)
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    folders = [p.name for p in checkpoints.complete(tmp_path / "run")]
    assert folders == ["step-000020", "step-000040"]
    from redraft.training.recipe import load

    assert load(tmp_path / "run" / "recipe.yaml") == recipe
    assert records[0]["tokens_per_second"] > 0
    assert 0 < records[0]["lr"] <= 1


@pytest.mark.parametrize("layout", ["block_causal", "full"])
@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_other_layouts_and_corruptions_train_too(
    prepared: Path, tmp_path: Path, layout: str, kind: str
) -> None:
    recipe = toys.recipe(prepared, steps=2, evaluate_every=2, sample_prompts=["yes"])
    recipe = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"layout": layout}),
            "corruption": recipe.corruption.model_copy(update={"kind": kind}),
            "objective": recipe.objective.model_copy(update={"weighting": "elbo"}),
        }
    )
    train(recipe, tmp_path / "run")
    records = metrics(tmp_path / "run")
    assert records[0]["ar_loss"] == 0  # their clean rows see what comes next
    assert "valid_ar" not in records[-1]
    assert records[-1]["valid_nelbo"] > 0


def test_two_processes_train_as_one_does_and_resume(prepared: Path, tmp_path: Path) -> None:
    recipe = toys.recipe(prepared, steps=4, save_every=2, batch_rows=5)
    alone = train(recipe, tmp_path / "one")
    script = "Run(recipe, folder, resume).train()"
    process = started(script, recipe, tmp_path / "two", processes=2)
    errors = ended(process)
    assert process.returncode == 0, errors
    together = checkpoints.complete(tmp_path / "two")[-1]
    assert together.name == alone.name
    ours, theirs = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    for a, b in zip(ours, theirs, strict=True):
        for key in ("loss", "canvas_loss", "ar_loss", "grad_norm", "valid_nelbo", "accuracy", "lr"):
            assert (key in a) == (key in b)
            assert key not in a or a[key] == pytest.approx(b[key], rel=1e-3), key
    for name, value in load_file(alone / "model.safetensors").items():
        torch.testing.assert_close(
            value, load_file(together / "model.safetensors")[name], rtol=1e-2, atol=1e-4
        )
    # Two more steps from the checkpoint in the middle are the same two steps.
    before = tensors(together)
    for file in together.rglob("*"):
        if file.is_file():
            file.unlink()
    process = started(script, recipe, tmp_path / "two", "--resume", processes=2)
    ended(process)
    assert process.returncode == 0
    after = tensors(checkpoints.complete(tmp_path / "two")[-1])
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(value, after[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_keeps_a_checkpoint_from_which_the_run_goes_on(
    prepared: Path, tmp_path: Path, number: signal.Signals
) -> None:
    recipe = toys.recipe(prepared, steps=100_000, save_every=100_000)
    process = started("Run(recipe, folder, resume).train()", recipe, tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    end = time.monotonic() + 400
    while not (file.exists() and file.read_text().count("\n") > 2) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    errors = ended(process)
    assert process.returncode == 130, errors
    (kept,) = checkpoints.complete(tmp_path / "run")
    stopped = int(kept.name.removeprefix("step-"))
    assert stopped == metrics(tmp_path / "run")[-1]["step"]
    # The rate depends on the number of steps, so both are compared with a run of the same recipe in here.
    straight = Run(recipe, tmp_path / "straight", resume=False)
    for _ in range(stopped):
        straight.step()
    straight.save()
    same(kept, tmp_path / "straight" / kept.name)
    resumed = Run(recipe, tmp_path / "run", resume=True)
    assert resumed.state.step == stopped
    resumed.step()


def test_two_processes_stop_at_the_same_step(prepared: Path, tmp_path: Path) -> None:
    """A signal that reaches only one of them stops both, with one checkpoint; and though the rate follows the clock all
    the way, both have the same weights to the last bit."""
    recipe = toys.recipe(prepared, steps=100_000, save_every=100_000, minutes=5)
    recipe = changed(recipe, "optimizer", warmup=1.0)
    script = """
    import os, signal, threading
    run = Run(recipe, folder, resume)
    if run.world.rank == 1:
        step = run.step
        def then():
            out = step()
            if run.state.step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return out
        run.step = then
    try:
        run.train()
    finally:
        weights = torch.cat([p.flatten() for p in run.state.model.parameters()])
        torch.save(weights, f"{folder}-{run.world.rank}.pt")
    """.strip()
    process = started(script, recipe, tmp_path / "run", processes=2)
    errors = ended(process)
    assert process.returncode != 0
    assert [p.name for p in checkpoints.complete(tmp_path / "run")] == ["step-000003"], errors
    ours, theirs = (torch.load(tmp_path / f"run-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(ours, theirs)
    assert len({r["lr"] for r in metrics(tmp_path / "run") if "lr" in r}) == 3


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoint(
    prepared: Path, tmp_path: Path
) -> None:
    recipe = toys.recipe(prepared, save_every=2)
    run = Run(recipe, tmp_path / "run", resume=False)
    for _ in range(2):
        run.step()
    run.save()
    with torch.no_grad():
        run.state.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(RedraftError, match=r"not finite at step 2; .*step-000002 is good") as caught:
        run.train()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    (good,) = checkpoints.complete(tmp_path / "run")
    assert all(bool(v.isfinite().all()) for v in tensors(good).values())
    train(recipe, tmp_path / "run", resume=True)


def test_a_full_disk_ends_the_run_in_one_line_and_the_last_checkpoint_survives(
    prepared: Path, tmp_path: Path
) -> None:
    """A real limit: no file may grow over 20 kB, which the weights exceed."""
    recipe = toys.recipe(prepared, save_every=3)
    run = Run(recipe, tmp_path / "run", resume=False)
    for _ in range(3):
        run.step()
    run.save()
    good = checkpoints.complete(tmp_path / "run")[-1]
    before = tensors(good)
    script = """
    import resource
    run = Run(recipe, folder, resume)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    run.train()
    """.strip()
    process = started(script, recipe, tmp_path / "run", "--resume")
    errors = ended(process)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "could not be written: File too large; " in errors
    assert f"{good} is good: --resume goes on from it" in errors
    assert ".part" not in errors
    assert checkpoints.complete(tmp_path / "run") == [good]
    assert not list((tmp_path / "run").glob(".step*"))
    assert all(torch.equal(v, before[k]) for k, v in tensors(good).items())
    train(recipe, tmp_path / "run", resume=True)


def refused(recipe: Recipe, folder: Path, resume: bool = False) -> str:
    with pytest.raises(RequestError) as caught:
        train(recipe, folder, resume)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def test_runs_that_can_t_be_are_refused(prepared: Path, tmp_path: Path) -> None:
    recipe = toys.recipe(prepared)
    assert "to resume from" in refused(recipe, tmp_path / "none", resume=True)
    (tmp_path / "file").write_text("")
    assert "can't be made" in refused(recipe, tmp_path / "file" / "run")
    assert "redraft prepare" in refused(toys.recipe(tmp_path), tmp_path / "run")
    assert "micro_batches" in refused(toys.recipe(prepared, micro_batches=5), tmp_path / "run")
    assert "max_position_embeddings" in refused(toys.recipe(prepared, row_length=65), tmp_path / "run")
    assert "same number" in refused(changed(recipe, "canvas", length_weights=[1]), tmp_path / "run")
    assert "above 0" in refused(changed(recipe, "canvas", length_weights=[0, 0]), tmp_path / "run")
    assert "row_length" in refused(changed(recipe, "canvas", lengths=[4, 33]), tmp_path / "run")
    assert "multiple" in refused(changed(recipe, "model", num_key_value_heads=3), tmp_path / "run")
    absent = recipe.model_copy(update={"init": str(tmp_path / "absent")})
    assert "config.json" in refused(absent, tmp_path / "run")
    if not torch.cuda.is_available():
        assert "no GPU" in refused(toys.recipe(prepared, device="cuda"), tmp_path / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    assert "can't be written" in refused(toys.recipe(prepared), tmp_path / "run")


def test_a_run_is_not_overwritten(prepared: Path, tmp_path: Path) -> None:
    recipe = toys.recipe(prepared, steps=1)
    last = train(recipe, tmp_path / "run")
    assert "--resume" in refused(recipe, tmp_path / "run")
    assert last.exists()
    # What a run left that never came to a checkpoint is no obstacle.
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "early" / ".step-000001.part").mkdir()
    train(recipe, tmp_path / "early")
    assert len(metrics(tmp_path / "early")) == 2
    assert not list((tmp_path / "early").glob(".step*"))


def test_another_tokenizer_is_noticed(prepared: Path, tmp_path: Path) -> None:
    from redraft.training.data import prepare
    from redraft.training.recipe import Prepare, Source

    path = toys.write_jsonl(tmp_path / "t.jsonl", [{"text": "zebra zebra zebra"}] * 3)
    prepare(Prepare(sources=[Source(path=str(path))], vocab_size=300, holdout=0), tmp_path / "other")
    mixed = toys.recipe(prepared).model_dump() | {"mixture": [{"path": str(tmp_path / "other")}]}
    assert "another tokenizer" in refused(Recipe.model_validate(mixed), tmp_path / "run")


def test_a_run_starts_from_a_model_or_another_run(prepared: Path, tmp_path: Path) -> None:
    recipe = toys.recipe(prepared, steps=2, save_every=1)
    last = train(recipe, tmp_path / "first")
    for init in (last, tmp_path / "first"):
        run = Run(recipe.model_copy(update={"init": str(init)}), tmp_path / f"from-{init.name}", resume=False)
        for name, value in load_file(last / "model.safetensors").items():
            assert torch.equal(run.state.model.state_dict()[name], value)
    other = toys.network()
    checkpoint.save(other, tmp_path / "other")
    foreign = recipe.model_copy(update={"init": str(tmp_path / "other")})
    assert "other tokens" in refused(foreign, tmp_path / "run")


def test_a_budget_of_minutes_ends_the_run(prepared: Path, tmp_path: Path) -> None:
    recipe = toys.recipe(prepared, steps=1_000_000, minutes=0.01, log_every=5)
    last = train(recipe, tmp_path / "run")
    records = metrics(tmp_path / "run")
    assert records[-1]["step"] == int(last.name.removeprefix("step-")) < 1_000_000
    progress = [r["progress"] for r in records if "progress" in r]
    assert progress == sorted(progress)
    assert progress[-1] >= 1


def test_samples_are_the_engine_s_answers(prepared: Path, tmp_path: Path) -> None:
    """What a run shows is what `redraft.load` of its checkpoint writes for the same request."""
    import redraft.api

    recipe = toys.recipe(prepared, steps=30, save_every=30)
    last = train(recipe, tmp_path / "run")
    prompts = ["a table please", "no " * 100, "yes"]
    network = checkpoint.load(last)
    shown = samples.sampler(recipe)(network, prompts)
    model = redraft.api.load(last, backend="torch")
    canvas = network.config.canvas_length
    for prompt, text in zip(prompts, shown, strict=True):
        ids = model.encode([{"role": "user", "content": prompt}])
        if len(ids) >= 64:
            continue
        answer = model.generate(
            [{"role": "user", "content": prompt}], max_tokens=64, canvas=canvas, steps=canvas, seed=0
        )
        assert answer.text == text
    assert len(shown) == 3
