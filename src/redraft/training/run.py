"""The training loop: `redraft train RECIPE`.

    redraft train recipes/tiny.yaml --set train.steps=100          one process
    torchrun --nproc-per-node 2 -m redraft.cli.main train RECIPE   data parallel

A run's folder holds metrics.jsonl, recipe.yaml (as resolved), loss.png and the checkpoints.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer
from torch.nn.parallel import DistributedDataParallel

from redraft import corruption
from redraft.denoiser import checkpoint
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.transformer import Denoiser
from redraft.errors import RedraftError, RequestError
from redraft.training import checkpoints, optim
from redraft.training.batch import Batch, build
from redraft.training.checkpoints import TrainingState
from redraft.training.data import Corpus
from redraft.training.distributed import World, join
from redraft.training.memory import keep_freed_memory
from redraft.training.objective import JointObjective, slot_weights
from redraft.training.packing import Rows
from redraft.training.recipe import Recipe
from redraft.training.tokenizer import EOS, MASK, NULL, USER
from redraft.training.validate import held_out


class Reporter(Protocol):
    """Shows progress; cli.progress has one for terminals and logs."""

    def update(self, step: int, metrics: dict[str, float]) -> None: ...

    def message(self, text: str) -> None: ...


class Silent:
    def update(self, step: int, metrics: dict[str, float]) -> None: ...

    def message(self, text: str) -> None: ...


Sampler = Callable[[Denoiser, list[str]], list[str]]


def denoiser_config(recipe: Recipe, tokenizer: Tokenizer) -> DenoiserConfig:
    """The recipe's sizes with the special tokens of the prepared tokenizer."""
    ids = {name: tokenizer.token_to_id(name) for name in (EOS, USER, MASK, NULL)}
    for name in (EOS, MASK, NULL):
        if ids[name] is None:
            raise RequestError(f"the tokenizer in {recipe.data} has no {name}; make it with redraft prepare")
    stops = [i for i in (ids[EOS], ids[USER]) if i is not None]
    lengths, weights = recipe.canvas.lengths, recipe.canvas.length_weights
    return DenoiserConfig(
        vocab_size=tokenizer.get_vocab_size(),
        canvas_length=lengths[int(np.argmax(weights))],
        mask_token_id=ids[MASK],
        null_token_id=ids[NULL],
        eos_token_ids=tuple(stops),
        **recipe.model.model_dump(),
    )


def forward_process(recipe: Recipe, config: DenoiserConfig) -> corruption.Process:
    settings = recipe.corruption
    return corruption.process(
        settings.kind,
        schedule=settings.schedule,
        vocab_size=config.vocab_size,
        mask_id=config.mask_token_id,
        uniform_share=settings.uniform_share,
    )


class Run:
    """One training run: data, model, optimizers and where they are written."""

    def __init__(self, recipe: Recipe, folder: str | Path, resume: bool, reporter: Reporter | None = None) -> None:
        self.recipe, self.folder, self.reporter = recipe, Path(folder), reporter or Silent()
        self.world = join(recipe.train.device)
        if self.world.device.type == "cpu":
            keep_freed_memory()
        if recipe.train.threads:
            torch.set_num_threads(recipe.train.threads)
        self.data = Path(recipe.data)
        self._check_sizes()
        tokenizer_file = self.data / "tokenizer.json"
        if not tokenizer_file.exists():
            raise RequestError(f"{self.data} holds no tokenizer.json; run redraft prepare first")
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        mixture = recipe.corpora()
        corpora = [Corpus(m.path, "train") for m in mixture]
        self.rows = Rows(corpora, [m.weight for m in mixture], recipe.train.row_length, recipe.train.seed)
        self.ar = [m.ar for m in mixture]
        held = Corpus(recipe.data, "valid")
        self.valid = [held[i] for i in range(min(recipe.train.evaluate_rows, len(held)))]
        self.state = self._start()
        if resume:
            self._resume()
        self.process = forward_process(recipe, self.state.model.config)
        self.objective = JointObjective(self.state.model, self.process, recipe.objective)
        self.parallel: Any = self.objective
        if self.world.size > 1:
            ids = [self.world.device.index] if self.world.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.objective, device_ids=ids)
        if recipe.train.compile:
            self.state.model.forward = torch.compile(self.state.model.forward)  # type: ignore[method-assign]
        self._make_folder(resume)
        self.session_start = time.perf_counter()
        self.seconds_before = self.state.seconds

    def _check_sizes(self) -> None:
        train, model = self.recipe.train, self.recipe.model
        if train.batch_rows < self.world.size * train.micro_batches:
            raise RequestError("train.batch_rows must be at least micro_batches times the number of processes")
        if train.row_length > model.max_position_embeddings:
            raise RequestError("train.row_length exceeds model.max_position_embeddings")
        if len(self.recipe.canvas.lengths) != len(self.recipe.canvas.length_weights):
            raise RequestError("canvas.lengths and canvas.length_weights must have the same number of entries")

    def _start(self) -> TrainingState:
        recipe = self.recipe
        if recipe.init:
            model = checkpoint.load(recipe.init).train()
        else:
            model = Denoiser(denoiser_config(recipe, self.tokenizer))
            model.reset_parameters(torch.Generator().manual_seed(recipe.train.seed))
        model = model.to(self.world.device)
        return TrainingState(model, optim.Ema(model, recipe.optimizer.ema), optim.build(model, recipe.optimizer))

    def _resume(self) -> None:
        found = checkpoints.complete(self.folder)
        if not found:
            raise RequestError(f"{self.folder} holds no complete checkpoint to resume from; start without --resume")
        checkpoints.restore(self.state, found[-1])
        self.reporter.message(f"resumed {found[-1]}")

    def _make_folder(self, resume: bool) -> None:
        if not self.world.first:
            return
        if not resume and checkpoints.complete(self.folder):
            raise RequestError(f"{self.folder} already holds a run; go on with --resume or choose another folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            resolved = yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False)
            checkpoint.write_atomically(self.folder / "recipe.yaml", resolved.encode())
        except OSError as error:
            raise RequestError(f"run folder {self.folder} can't be written: {error.strerror}") from None

    # -- one step ---------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.session_start

    @property
    def progress(self) -> float:
        """0..1: by steps, or by the clock where the recipe sets a budget in minutes."""
        by_steps = self.state.step / self.recipe.train.steps
        minutes = self.recipe.train.minutes
        return by_steps if minutes is None else max(by_steps, self.seconds / 60 / minutes)

    def micro_batches(self) -> list[Batch]:
        train = self.recipe.train
        own = self.world.share(train.batch_rows)
        cuts = [own.start + len(own) * i // train.micro_batches for i in range(train.micro_batches + 1)]
        return [
            build(
                self.rows,
                self.ar,
                self.state.model.config,
                self.process,
                self.recipe.canvas,
                step=self.state.step,
                rows=range(first, last),
                batch_rows=train.batch_rows,
                seed=train.seed,
            )
            for first, last in zip(cuts[:-1], cuts[1:], strict=True)
        ]

    def step(self) -> dict[str, float]:
        """One optimizer step; returns its metrics, summed over processes."""
        recipe, state, world = self.recipe, self.state, self.world
        factor = optim.rate(self.progress, recipe.optimizer)
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
            parts = losses.canvas, losses.ar, losses.right, losses.masked
            sums += [float(x) for x in parts]
        norm = float(torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.optimizer.clip))
        canvas, ar, right, masked = world.sum(list(sums))
        if not math.isfinite(canvas + ar + norm):
            raise RedraftError(
                f"the loss is not finite at step {state.step}; the last checkpoint in {self.folder} is good: "
                "resume from it with a lower optimizer.learning_rate"
            )
        for optimizer, base in zip(
            state.optimizers, (recipe.optimizer.learning_rate, recipe.optimizer.adam_learning_rate), strict=True
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
            "accuracy": right / max(masked, 1),
            "grad_norm": norm,
            "lr": factor,
            "tokens": world.sum([float(sum(b.tokens for b in batches))])[0],
        }

    def _autocast(self) -> Any:
        if self.world.device.type == "cuda":
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    # -- the run ----------------------------------------------------------------------------------------------

    def train(self, sampler: Sampler | None = None) -> Path:
        """Trains to the end; returns the last checkpoint. On Ctrl-C a checkpoint is kept, then it is raised on."""
        train = self.recipe.train
        window: list[dict[str, float]] = []
        window_start = time.perf_counter()
        outside = 0.0
        saved = self.state.step if self.state.step else -1
        try:
            while self.state.step < train.steps and self.progress < 1:
                window.append(self.step())
                done = self.state.step >= train.steps or self.progress >= 1
                if self.state.step % train.log_every == 0 or done:
                    seconds = time.perf_counter() - window_start - outside
                    self._log(window, seconds)
                    window, window_start, outside = [], time.perf_counter(), 0.0
                pause = time.perf_counter()
                if self.state.step % train.evaluate_every == 0 or done:
                    self.evaluate(sampler)
                if self.state.step % train.save_every == 0 or done:
                    self.save()
                    saved = self.state.step
                outside += time.perf_counter() - pause
        except KeyboardInterrupt:
            if saved != self.state.step and self.state.step:
                self.save()
            self.reporter.message(f"stopped at step {self.state.step}; go on with --resume")
            raise
        finally:
            self.world.close()
        if self.world.first:
            from redraft.training.plot import plot_losses

            plot_losses(self.folder / "metrics.jsonl", self.folder / "loss.png", self.reporter.message)
        return checkpoints.complete(self.folder)[-1]

    def _write_metrics(self, record: dict[str, Any]) -> None:
        if self.world.first:
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _log(self, window: list[dict[str, float]], seconds: float) -> None:
        mean = {k: float(np.mean([m[k] for m in window])) for k in window[0] if k != "tokens"}
        mean["tokens_per_second"] = sum(m["tokens"] for m in window) / seconds
        mean["eta_seconds"] = self.seconds / max(self.progress, 1e-9) * (1 - self.progress)
        mean["progress"] = self.progress
        self._write_metrics({"step": self.state.step, "seconds": round(self.seconds, 1), **mean})
        if self.world.first:
            self.reporter.update(self.state.step, mean)

    def evaluate(self, sampler: Sampler | None) -> None:
        """Held-out AR loss and NELBO of the averaged weights, and a few samples; on the first process alone."""
        if self.world.first and self.valid:
            model = Denoiser(self.state.model.config).to(self.world.device)
            model.load_state_dict(self.state.ema.shadow)
            objective = JointObjective(model.eval(), self.process, self.recipe.objective)
            measured = held_out(objective, self.valid, model.config.canvas_length, copies=2)
            record = {
                "valid_ar": measured.ar_nll / measured.ar_tokens,
                "valid_nelbo": measured.nelbo / measured.tokens,
                "valid_nelbo_se": measured.nelbo_se / measured.tokens,
            }
            samples = sampler(model, self.recipe.train.sample_prompts) if sampler else []
            self._write_metrics({"step": self.state.step, "seconds": round(self.seconds, 1), **record, "samples": samples})
            self.reporter.message(
                f"step {self.state.step}: held-out AR {record['valid_ar']:.3f}, NELBO {record['valid_nelbo']:.3f} "
                f"± {record['valid_nelbo_se']:.3f} nats a token"
            )
            for prompt, text in zip(self.recipe.train.sample_prompts, samples, strict=False):
                self.reporter.message(f"  {prompt} → {text}")
        self.world.wait()

    def save(self) -> None:
        if self.world.first:
            state = replace(self.state, seconds=self.seconds)
            checkpoints.save(
                state, self.folder, self.data, self.recipe.model_dump(mode="json"), self.recipe.train.keep
            )
        self.world.wait()


def train(
    recipe: Recipe,
    folder: str | Path | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    sampler: Sampler | None = None,
) -> Path:
    """Trains by a recipe into `folder` (runs/NAME by default) and returns the last checkpoint's folder.

    Raises RequestError for what the recipe or the data get wrong, RedraftError when the run itself fails.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return Run(recipe, folder or Path("runs") / recipe.name, resume, reporter).train(sampler)
