"""The training loop: `redraft train RECIPE`.

    redraft train recipes/tiny.yaml --set train.steps=100          one process
    torchrun --nproc-per-node 2 -m redraft.cli train RECIPE   data parallel

A run's folder holds metrics.jsonl, recipe.yaml (as resolved), loss.png and the checkpoints.
"""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from redraft.denoiser import checkpoint
from redraft.denoiser.transformer import Denoiser
from redraft.errors import RedraftError, RequestError
from redraft.hub.runs import complete, newest
from redraft.training import checkpoints, metrics, optim, samples, start
from redraft.training.batch import Batch, build
from redraft.training.checkpoints import TrainingState
from redraft.training.distill import distill
from redraft.training.distributed import make_once
from redraft.training.edits import make_edits
from redraft.training.loop import Loop, Reporter, Silent
from redraft.training.objective import JointObjective, slot_weights
from redraft.training.recipe import Recipe
from redraft.training.samples import Sampler
from redraft.training.tokenizer import load_tokenizer
from redraft.training.validate import held_out


class Run(Loop):
    """One training run: data, model, optimizers and where they are written."""

    state: TrainingState[Denoiser]

    def __init__(
        self, recipe: Recipe, folder: str | Path, resume: bool, reporter: Reporter | None = None
    ) -> None:
        super().__init__(recipe.train, recipe.model_dump(mode="json"), folder, reporter)
        self.recipe = recipe
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
        self.begin(self.state.seconds)

    def _resume(self) -> None:
        found = complete(self.folder)
        checkpoints.restore(self.state, found[-1])
        if self.world.first:
            metrics.drop_after(self.folder, self.state.step)
        self.reporter.message(f"resumed {found[-1]}")

    # -- one step ---------------------------------------------------------------------------------------------

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
        make_once(recipe.distill.out, lambda: _distil(recipe, reporter))
    if recipe.edits:
        settings = recipe.edits
        make_once(
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
