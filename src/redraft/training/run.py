"""The training loop: `redraft train RECIPE`.

    redraft train recipes/tiny.yaml --set train.steps=100          one process
    torchrun --nproc-per-node 2 -m redraft.cli train RECIPE   data parallel

A run's folder holds metrics.jsonl, recipe.yaml (as resolved), loss.png and the checkpoints.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from torch.nn.parallel import DistributedDataParallel

from redraft.denoiser import checkpoint
from redraft.denoiser.transformer import Denoiser
from redraft.errors import RedraftError, RequestError
from redraft.hub.runs import complete, newest
from redraft.training import checkpoints, metrics, optim, samples, start
from redraft.training.batch import Batch, build
from redraft.training.checkpoints import TrainingState
from redraft.training.data import make_folder
from redraft.training.distill import distill
from redraft.training.distributed import join
from redraft.training.edits import make_edits
from redraft.training.interrupt import Interrupt
from redraft.training.memory import keep_freed_memory
from redraft.training.objective import JointObjective, slot_weights
from redraft.training.recipe import Recipe
from redraft.training.samples import Sampler
from redraft.training.tokenizer import load_tokenizer
from redraft.training.validate import held_out


class Reporter(Protocol):
    """Shows progress; cli.progress has one for terminals and logs."""

    def update(self, step: int, metrics: dict[str, float]) -> None: ...

    def message(self, text: str) -> None: ...


class Silent:
    def update(self, step: int, metrics: dict[str, float]) -> None: ...

    def message(self, text: str) -> None: ...


class Run:
    """One training run: data, model, optimizers and where they are written."""

    def __init__(
        self, recipe: Recipe, folder: str | Path, resume: bool, reporter: Reporter | None = None
    ) -> None:
        self.recipe, self.folder, self.reporter = recipe, Path(folder), reporter or Silent()
        self.world = join(recipe.train.device)
        if self.world.device.type == "cpu":
            keep_freed_memory()
        if recipe.train.threads:
            torch.set_num_threads(recipe.train.threads)
        self.data = Path(recipe.data)
        start.check_sizes(recipe, self.world.size)
        tokenizer = load_tokenizer(self.data)
        self.rows = start.training_rows(recipe)
        self._make_folder(resume)
        model = start.network(recipe, tokenizer).to(self.world.device)
        optimizers = optim.build(model, recipe.optimizer)
        self.state = TrainingState(model, optim.Ema(model, recipe.optimizer.ema), optimizers)
        self.valid = start.held_out_documents(recipe, model.config)
        if resume:
            self._resume()
        self.process = start.forward_process(recipe, self.state.model.config)
        self.objective = JointObjective(self.state.model, self.process, recipe.objective)
        self.parallel: Any = self.objective
        if self.world.size > 1:
            ids = [self.world.device.index] if self.world.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.objective, device_ids=ids)
        if recipe.train.compile:
            self.state.model.forward = torch.compile(self.state.model.forward)  # type: ignore[method-assign]
        self.session_start = time.perf_counter()
        self.seconds_before = self.agreed_seconds = self.state.seconds

    def _resume(self) -> None:
        found = complete(self.folder)
        checkpoints.restore(self.state, found[-1])
        if self.world.first:
            metrics.drop_after(self.folder, self.state.step)
        self.reporter.message(f"resumed {found[-1]}")

    def _make_folder(self, resume: bool) -> None:
        if resume and not complete(self.folder):
            raise RequestError(
                f"{self.folder} holds no complete checkpoint to resume from; start without --resume"
            )
        failed: RedraftError | None = None
        if self.world.first:
            try:
                self._write_recipe(resume)
            except RedraftError as error:
                failed = error
        if self.world.any(failed is not None):  # the other processes must not wait for the first in vain
            raise failed or RequestError(f"run folder {self.folder} can't be used: see the first process")

    def _write_recipe(self, resume: bool) -> None:
        if not resume and complete(self.folder):
            raise RequestError(
                f"{self.folder} already holds a run; go on with --resume or choose another folder"
            )
        make_folder(self.folder)
        resolved = yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False)
        try:
            checkpoint.write_atomically(self.folder / "recipe.yaml", resolved.encode())
            if not resume:  # of a run that ended before its first checkpoint
                (self.folder / metrics.METRICS).unlink(missing_ok=True)
        except (RedraftError, OSError) as error:
            raise RequestError(f"run folder {self.folder} can't be written: {error}") from None

    # -- one step ---------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.session_start

    @property
    def progress(self) -> float:
        """0..1: by steps, or by the clock where the recipe sets a budget in minutes; all processes see the same."""
        by_steps = self.state.step / self.recipe.train.steps
        minutes = self.recipe.train.minutes
        return by_steps if minutes is None else max(by_steps, self.agreed_seconds / 60 / minutes)

    @property
    def done(self) -> bool:
        return self.state.step >= self.recipe.train.steps or self.progress >= 1

    def micro_batches(self) -> list[Batch]:
        train = self.recipe.train
        own = self.world.share(train.batch_rows)
        cuts = [own.start + len(own) * i // train.micro_batches for i in range(train.micro_batches + 1)]
        return [
            build(
                self.rows,
                self.recipe.corpora(),
                self.state.model.config,
                self.process,
                self.recipe.canvas,
                step=self.state.step,
                rows=range(first, last),
                batch_rows=train.batch_rows,
                seed=train.seed,
            )
            for first, last in pairwise(cuts)
        ]

    def step(self) -> dict[str, float]:
        """One optimizer step; returns its metrics, summed over processes."""
        recipe, state, world = self.recipe, self.state, self.world
        # Of the middle of the step, so that the first one already learns.
        factor = optim.rate(self.progress + 0.5 / recipe.train.steps, recipe.optimizer)
        batches = self.micro_batches()
        weight = sum(float(slot_weights(b, self.process, recipe.objective).sum()) for b in batches)
        count = float(sum((b.next_token >= 0).sum() for b in batches))
        weight_all, count_all = world.sum([weight, count])
        sums = np.zeros(4)
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            syncing = nullcontext() if last or world.size == 1 else self.parallel.no_sync()
            with syncing, self._autocast():
                # DDP averages gradients over processes; dividing by total/size makes that the global mean.
                losses = self.parallel(batch, (weight_all / world.size, count_all / world.size))
                losses.total.backward()
            parts = losses.canvas, losses.ar, losses.right, losses.corrupted
            sums += [float(x) for x in parts]
        norm = float(torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.optimizer.clip))
        tokens = float(sum(b.tokens for b in batches))
        canvas, ar, right, corrupted, tokens, seconds = world.sum([*map(float, sums), tokens, self.seconds])
        self.agreed_seconds = seconds / world.size
        if not math.isfinite(canvas + ar + norm):
            raise RedraftError(self._diverged())
        for optimizer, base in zip(
            state.optimizers,
            (recipe.optimizer.learning_rate, recipe.optimizer.adam_learning_rate),
            strict=True,
        ):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state.ema.update(state.model)
        state.step += 1
        settings = recipe.objective
        canvas_loss, ar_loss = canvas / max(weight_all, 1), ar / max(count_all, 1)
        return {
            "loss": settings.canvas_weight * canvas_loss + settings.ar_weight * ar_loss,
            "canvas_loss": canvas_loss,
            "ar_loss": ar_loss,
            "accuracy": right / max(corrupted, 1),
            "grad_norm": norm,
            "lr": factor,
            "tokens": tokens,
        }

    def _diverged(self) -> str:
        good = complete(self.folder)
        then = f"{good[-1]} is good: resume from it" if good else "start again"
        return (
            f"the loss is not finite at step {self.state.step}; {then} with a lower optimizer.learning_rate"
        )

    def _autocast(self) -> Any:
        if self.world.device.type == "cuda":
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    # -- the run ----------------------------------------------------------------------------------------------

    def train(self, sampler: Sampler | None = None) -> Path:
        """Trains to the end; returns the last checkpoint.

        On Ctrl-C (or SIGTERM) the step under way is finished and a checkpoint kept, then KeyboardInterrupt is raised.
        """
        try:
            with Interrupt() as interrupt:
                self._loop(sampler, interrupt)
        finally:
            self.world.close()
        if self.world.first:
            from redraft.training.plot import plot_losses

            plot_losses(self.folder / metrics.METRICS, self.folder / "loss.png", self.reporter.message)
        return complete(self.folder)[-1]

    def _loop(self, sampler: Sampler | None, interrupt: Interrupt) -> None:
        train = self.recipe.train
        window: list[dict[str, float]] = []
        window_start, outside = time.perf_counter(), 0.0
        while not self.done:
            window.append(self.step())
            if self.state.step % train.log_every == 0 or self.done:
                self._log(window, time.perf_counter() - window_start - outside)
                window, window_start, outside = [], time.perf_counter(), 0.0
            pause = time.perf_counter()
            stopping = self.world.any(interrupt.asked)
            if (self.state.step % train.evaluate_every == 0 or self.done) and not stopping:
                self.evaluate(sampler)
            if self.state.step % train.save_every == 0 or self.done or stopping:
                self.save()
            if stopping:
                self.reporter.message(f"stopped at step {self.state.step}; go on with --resume")
                raise KeyboardInterrupt
            outside += time.perf_counter() - pause

    def _log(self, window: list[dict[str, float]], seconds: float) -> None:
        mean = {k: float(np.mean([m[k] for m in window])) for k in window[0] if k != "tokens"}
        mean["tokens_per_second"] = sum(m["tokens"] for m in window) / seconds
        mean["eta_seconds"] = self.seconds / max(self.progress, 1e-9) * (1 - self.progress)
        mean["progress"] = self.progress
        if self.world.first:
            metrics.append(self.folder, {"step": self.state.step, "seconds": round(self.seconds, 1), **mean})
            self.reporter.update(self.state.step, mean)

    def evaluate(self, sampler: Sampler | None) -> None:
        """Held-out AR loss and NELBO of the averaged weights, and a few samples; on the first process alone."""
        if self.world.first:
            model = checkpoint.build(self.state.model.config, self.state.ema.shadow, "the average")
            self._evaluate(model.to(self.world.device), sampler)
        self.world.wait()

    def _evaluate(self, model: Denoiser, sampler: Sampler | None) -> None:
        record: dict[str, Any] = {"step": self.state.step, "seconds": round(self.seconds, 1)}
        if self.valid:
            objective = JointObjective(model, self.process, self.recipe.objective)
            measured = held_out(objective, self.valid, model.config.canvas_length, copies=2)
            told = ""
            if measured.ar_nll is not None and measured.ar_tokens:
                record["valid_ar"] = measured.ar_nll / measured.ar_tokens
                told = f"AR {record['valid_ar']:.3f}, "
            record["valid_nelbo"] = measured.nelbo / measured.tokens
            record["valid_nelbo_se"] = measured.nelbo_se / measured.tokens
            bound = f"NELBO {record['valid_nelbo']:.3f} ± {record['valid_nelbo_se']:.3f}"
            self.reporter.message(f"step {self.state.step}: held-out {told}{bound} nats a token")
        prompts = self.recipe.train.sample_prompts
        record["samples"] = sampler(model, prompts) if sampler else []
        for prompt, text in zip(prompts, record["samples"], strict=False):
            self.reporter.message(f"  {prompt} → {text}")
        metrics.append(self.folder, record)

    def save(self) -> None:
        if self.world.first:
            state = replace(self.state, seconds=self.seconds)
            checkpoints.save(
                state, self.folder, self.data, self.recipe.model_dump(mode="json"), self.recipe.train.keep
            )
        self.world.wait()


def _make_once(folder: str, make: Callable[[], object]) -> None:
    """Makes a corpus unless it's there; the other processes of a group wait for it."""
    made = Path(folder) / "train.json"  # written last
    if int(os.environ.get("RANK", "0")):
        while not made.exists():
            time.sleep(1)
    elif not made.exists():
        make()


def _distil(recipe: Recipe, reporter: Reporter) -> None:
    """The corpus of the model's own continuations."""
    assert recipe.distill is not None
    assert recipe.init is not None
    if recipe.train.threads:  # the others wait: their threads are free
        torch.set_num_threads(recipe.train.threads * int(os.environ.get("WORLD_SIZE", "1")))
    distill(newest(recipe.init), recipe.data, recipe.distill, recipe.train.seed, reporter.message)


def _make_corpora(recipe: Recipe, reporter: Reporter) -> None:
    """What the recipe has made before training."""
    if recipe.distill:
        if recipe.init is None:
            raise RequestError("distill continues texts with a trained model: name it in init")
        _make_once(recipe.distill.out, lambda: _distil(recipe, reporter))
    if recipe.edits:
        settings = recipe.edits
        _make_once(
            settings.out,
            lambda: make_edits(recipe.data, settings, recipe.canvas, recipe.train.seed, reporter.message),
        )


def train(
    recipe: Recipe,
    folder: str | Path | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    sampler: Sampler | None = None,
) -> Path:
    """Trains by a recipe into `folder` (runs/NAME by default) and returns the last checkpoint's folder.

    sampler: answers the recipe's sample_prompts at each evaluation; the default one samples with the engine.
    Raises RequestError for what the recipe or the data get wrong, RedraftError when the run itself fails.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _make_corpora(recipe, reporter or Silent())
    run = Run(recipe, folder or Path("runs") / recipe.name, resume, reporter)
    return run.train(sampler or samples.sampler(recipe))
