"""From an AR base to a diffusion model: `redraft adapt RECIPE`.

The base stays as it is; a gated adapter learns to draft what the base would write, and to fill holes. A run's folder
holds metrics.jsonl, recipe.yaml (as resolved) and checkpoints, each an adapter that loads on the base it names.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from redraft.denoiser import adapters
from redraft.denoiser.adapter_config import ADAPTER_WEIGHTS
from redraft.errors import RedraftError, RequestError
from redraft.hub.runs import complete
from redraft.training import adaptation_start as start
from redraft.training import checkpoints, metrics, optim, portable, sharding
from redraft.training.adaptation_batch import AdaptBatch, build
from redraft.training.adaptation_canvases import Tokens
from redraft.training.adaptation_objective import NAMES, AdaptationObjective, Sums, accepted
from redraft.training.adaptation_recipe import AdaptRecipe
from redraft.training.adaptation_samples import Sampler, sampler
from redraft.training.answers import make_answers
from redraft.training.checkpoints import Stored, TrainingState
from redraft.training.distributed import device_for, make_once
from redraft.training.flops import FORMULA, Work
from redraft.training.loop import Loop, Reporter, Silent
from redraft.training.packing import Rows
from redraft.training.start import training_rows

DRAFT, HOLE = 0, 3  # states of a canvas, see adaptation_canvases.draw


class Adaptation(Loop):
    """One run."""

    state: TrainingState[adapters.Adapter]

    def __init__(
        self, recipe: AdaptRecipe, folder: str | Path, resume: bool, reporter: Reporter | None = None
    ) -> None:
        super().__init__(recipe.train, recipe.model_dump(mode="json"), folder, reporter)
        self.recipe, train = recipe, recipe.train
        self.pause_after = None if train.slice_minutes is None else 60 * train.slice_minutes
        start.check(recipe, self.world.size)
        base = start.find_base(recipe)
        start.check_tokenizer(recipe, base)
        start.check_amount(recipe)
        self.rows, self.valid = training_rows(recipe), start.held_out_rows(recipe)
        self._make_folder(resume)
        self.model = start.network(recipe, base, self.world.device)
        adapter = adapters.adapter_of(self.model)
        settings = recipe.optimizer
        adam = torch.optim.AdamW(
            adapter.parameters(), settings.learning_rate, settings.betas, weight_decay=0.0, fused=True
        )
        self.state = TrainingState(adapter, optim.Ema(adapter, settings.ema), [adam])
        if resume:
            self._resume()
        config = self.model.config
        assert config.mask_token_id is not None
        assert config.null_token_id is not None
        self.tokens = Tokens(config.mask_token_id, config.null_token_id, config.eos_token_ids)
        self.objective = AdaptationObjective(self.model, recipe.losses, train.flex)
        self._make_it_fit()
        self.work = Work.of(self.model)
        self.begin(self.state.seconds)
        self.micro_rows = train.micro_rows or self._probe()
        if train.peak_tflops:
            self.reporter.message(FORMULA)

    def _make_it_fit(self) -> None:
        """Compiles layers, lets them run twice and shares them out, as the recipe says."""
        train = self.recipe.train
        if train.compile:
            for layer in self.model.model.layers:
                layer.forward = torch.compile(layer.forward)
        if train.recompute:
            sharding.recompute(self.model)
        self.sharded = train.shard and self.world.size > 1
        if self.sharded:
            sharding.shard(self.model, self.world)

    def _resume(self) -> None:
        """The average is what a checkpoint shows of itself; the weights being trained lie beside it."""
        folder, adapter = complete(self.folder)[-1], self.state.model
        stored = Stored.read(folder)
        adapters.read_into(adapter, folder / ADAPTER_WEIGHTS)
        self.state.ema.shadow = {k: v.detach().clone() for k, v in adapter.state_dict().items()}
        try:
            adapter.load_state_dict(stored.weights or adapter.state_dict())
        except RuntimeError:
            raise RequestError(f"{folder} is of another adapter than the recipe's: start anew") from None
        stored.restore(self.state)
        if self.world.first:
            metrics.drop_after(self.folder, self.state.step)
        self.reporter.message(f"resumed {folder}")

    # -- one step ---------------------------------------------------------------------------------------------

    @property
    def factors(self) -> dict[str, float]:
        """Of the losses at this point of the run."""
        return self.recipe.losses.at(self.progress)

    def batch(self, rows: range) -> AdaptBatch:
        """These rows of the step."""
        return self._build(self.rows, self.state.step, rows, self.recipe.train.batch_rows)

    def _build(
        self, data: Rows, step: int, rows: range, batch_rows: int, kind: int | None = None
    ) -> AdaptBatch:
        recipe = self.recipe
        return build(
            data,
            recipe.canvas,
            recipe.losses,
            self.tokens,
            self.model.config.shift,
            step=step,
            rows=rows,
            batch_rows=batch_rows,
            seed=recipe.train.seed,
            kind=kind,
        )

    def step(self) -> dict[str, float]:
        """One optimizer step. Its metrics: losses by slot, accept (1 - total variation: the chance that a draft is
        accepted), agree (drafts whose likeliest token is the AR self's), rows by kind."""
        recipe, state = self.recipe, self.state
        factor = optim.rate(self.progress + 0.5 / recipe.train.steps, recipe.optimizer)
        batch = self.batch(self.world.share(recipe.train.batch_rows))
        weight, taught, fill = self.world.sum(list(batch.divisors()))
        sums = self._gradients(batch, (weight, taught, fill))
        rows = batch.tokens, batch.canvas_rows, batch.supervised
        parameters = list(state.model.parameters())
        self.world.add_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, recipe.optimizer.clip))
        totals = self.world.sum([*map(float, sums), *map(float, rows), self.seconds])
        self.agreed_seconds = totals[-1] / self.world.size
        told = self._told(totals)
        if not math.isfinite(told["loss"] + norm):
            raise RedraftError(self._diverged())
        for group in state.optimizers[0].param_groups:
            group["lr"] = recipe.optimizer.learning_rate * factor
        state.optimizers[0].step()
        state.optimizers[0].zero_grad(set_to_none=True)
        state.ema.update(state.model)
        state.step += 1
        return told | {"grad_norm": norm, "lr": factor}

    def _gradients(self, batch: AdaptBatch, divisors: tuple[float, float, float]) -> np.ndarray:
        """Accumulates the step's gradients; sums of the losses. With too many rows for the memory it starts over with
        half as many at a time."""
        while True:
            try:
                return self._accumulate(batch, divisors)
            except torch.OutOfMemoryError:
                self.state.optimizers[0].zero_grad(set_to_none=True)
                if self.sharded:  # the other processes wait for this one's share in the pass that failed
                    raise RedraftError(
                        f"out of memory with {self.micro_rows} rows at a time: set train.micro_rows lower and go on "
                        "with --resume"
                    ) from None
                if self.micro_rows == 1:
                    raise RedraftError(
                        "one row of clean text with its canvases doesn't fit into memory: lower train.row_length or "
                        "canvas.per_row"
                    ) from None
            self.micro_rows = max(1, self.micro_rows // 2)
            if self.world.device.type == "cuda":
                torch.cuda.empty_cache()
            self.reporter.message(f"out of memory: going on with {self.micro_rows} rows at a time")

    def _accumulate(self, batch: AdaptBatch, divisors: tuple[float, float, float]) -> np.ndarray:
        sums, rows = np.zeros(len(NAMES)), len(batch.clean)
        for first in range(0, rows, self.micro_rows):
            with self._autocast():
                found = self.objective(batch.part(first, first + self.micro_rows))
                self.objective.total(found, divisors, self.factors).backward()
            sums += found.detached()
        return sums

    def _told(self, totals: list[float]) -> dict[str, float]:
        """Metrics of a step from its sums over all processes."""
        sums = dict(zip(NAMES, totals, strict=False))
        clean, canvas, supervised = totals[len(NAMES) : len(NAMES) + 3]
        divisors = sums["weight"], sums["taught"], sums["fill_count"]
        found = Sums(*map(torch.tensor, sums.values()))
        weight, taught, fill_count = (max(x, 1e-9) for x in divisors)
        return {
            "loss": float(self.objective.total(found, divisors, self.factors)),
            "ce": sums["ce"] / weight,
            "kl": sums["kl"] / taught,
            "accept": 1 - sums["rejected"] / taught,
            "agree": sums["agreed"] / max(sums["against"], 1.0),
            "fill": sums["fill"] / fill_count,
            "tokens": clean,
            "canvas_rows": canvas,
            "supervised": supervised,
            "taught": sums["against"],
        }

    def derived(self, window: list[dict[str, float]], seconds: float) -> dict[str, float]:
        """Canvas rows a second, and the share of the device's peak that they come to where the recipe tells it."""
        rows = {k: sum(m[k] for m in window) for k in ("tokens", "canvas_rows", "taught", "supervised")}
        out = {"canvas_rows_per_second": rows["canvas_rows"] / seconds}
        peak = self.recipe.train.peak_tflops
        if peak:
            done = self.work.flops(rows["tokens"], rows["canvas_rows"], rows["taught"], rows["supervised"])
            out["mfu"] = done / seconds / (peak * 1e12 * self.world.size)
        return out

    def _probe(self) -> int:
        """On a GPU the rows that a pass forward and back takes without running out of memory, by doubling."""
        rows = len(self.world.share(self.recipe.train.batch_rows))
        if self.world.device.type != "cuda" or self.sharded:
            return rows
        fits, self.micro_rows = 1, 1
        while True:
            try:
                self._accumulate(self.batch(range(self.micro_rows)), (1.0, 1.0, 1.0))
                fits = self.micro_rows
            except torch.OutOfMemoryError:
                break
            finally:
                self.state.optimizers[0].zero_grad(set_to_none=True)
            if 2 * self.micro_rows > rows:
                break
            self.micro_rows *= 2
        torch.cuda.empty_cache()
        self.reporter.message(f"{fits} rows at a time fit into memory")
        return fits

    def train(self, sampler: Any = None) -> Path:
        """As Loop.train; a run that begins is measured before its first step."""
        if self.state.step == 0:
            self.evaluate(None)
        return super().train(sampler)

    # -- beside the steps -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The average in the adapter's place."""
        adapter = self.state.model
        kept = {k: v.detach().clone() for k, v in adapter.state_dict().items()}
        adapter.load_state_dict(self.state.ema.shadow)
        try:
            yield
        finally:
            adapter.load_state_dict(kept)

    def evaluate(self, sampler: Sampler | None) -> None:
        """Of the average, on held-out text: accepted drafts in a row of canvases that show nothing, and cross-entropy
        of holes; then the recipe's prompts answered and verified. On the first process alone."""
        with sharding.whole(self.model):
            if self.world.first:
                with self.averaged(), torch.no_grad():
                    self._evaluate(sampler)
            self.world.wait()

    def _evaluate(self, sampler: Sampler | None) -> None:
        record: dict[str, Any] = {"step": self.state.step, "seconds": round(self.seconds, 1)}
        if self.valid is not None:
            runs = np.concatenate([accepted(self.objective, b) for b in self._held_out(DRAFT)])
            holes = [self.objective(b) for b in self._held_out(HOLE)]
            fill, count = (sum(float(getattr(h, n)) for h in holes) for n in ("fill", "fill_count"))
            record["valid_accepted"] = float(runs.mean()) if len(runs) else 0.0
            record["valid_fill"] = fill / max(count, 1.0)
            self.reporter.message(
                f"step {self.state.step}: held-out drafts accepted in a row {record['valid_accepted']:.2f} of "
                f"{self.recipe.canvas.length - 1}, holes {record['valid_fill']:.3f} nats a slot"
            )
        prompts = self.recipe.train.sample_prompts
        answers = sampler(self.model, prompts) if sampler else []
        record["samples"] = [answer.text for answer in answers]
        if answers:
            record["tokens_per_forward"] = float(np.mean([a.tokens_per_forward for a in answers]))
        for prompt, answer in zip(prompts, answers, strict=False):
            told = f"({answer.tokens_per_forward:.2f} tokens an evaluation)"
            self.reporter.message(f"  {prompt} → {answer.text} {told}")
        metrics.append(self.folder, record)

    def _held_out(self, kind: int) -> Iterator[AdaptBatch]:
        assert self.valid is not None
        rows = self.recipe.train.evaluate_rows
        for first in range(0, rows, self.micro_rows):
            part = range(first, min(first + self.micro_rows, rows))
            yield self._build(self.valid, 0, part, rows, kind)

    def save(self) -> None:
        """A checkpoint: the averaged adapter, and what a resumed run needs."""
        if self.world.first:
            state = replace(self.state, seconds=self.seconds)
            weights = {k: v.detach().clone() for k, v in state.model.state_dict().items()}

            def fill(part: Path) -> None:
                adapters.save(state.model, self.model.config, part)
                checkpoints.copy_tokenizer(Path(self.recipe.data), part)
                checkpoints.write_state(state, weights, part, self.resolved)

            with self.averaged():
                checkpoints.write_step(self.folder, state.step, self.recipe.train.keep, fill)
            if self.recipe.train.portable:
                carried = partial(
                    portable.fill, state, self.model.config, Path(self.recipe.data), self.resolved
                )
                checkpoints.write_step(self.folder / portable.FOLDER, state.step, 1, carried)
        self.world.wait()


def _answers(recipe: AdaptRecipe, reporter: Reporter) -> None:
    """The corpus of the AR self's answers, or as much of it as a slice has time for."""
    assert recipe.answers is not None
    train = recipe.train
    start.check(recipe, int(os.environ.get("WORLD_SIZE", "1")))
    start.check_tokenizer(recipe, base := start.find_base(recipe))
    if train.threads:
        torch.set_num_threads(train.threads)
    model = start.network(recipe, base, device_for(train.device))
    limit = None if train.slice_minutes is None else 60 * train.slice_minutes
    sources, data = recipe.prompt_sources(), Path(recipe.data)
    barred = recipe.prepare.exclude if recipe.prepare else []
    if not make_answers(model, data, recipe.answers, sources, train.seed, limit, reporter.message, barred):
        reporter.message(f"{recipe.answers.out} isn't complete yet: run the same command again")


def adapt(
    recipe: AdaptRecipe,
    folder: str | Path | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Adapts by a recipe into `folder` (runs/NAME by default) and returns the last checkpoint's folder.

    Raises RequestError for what the recipe, the base or the data get wrong, RedraftError when the run itself fails.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if recipe.answers is not None:
        make_once(recipe.answers.out, lambda: _answers(recipe, reporter or Silent()))
        if not (Path(recipe.answers.out) / "train.json").exists():  # this session's time was over
            return Path(recipe.answers.out)
    run = Adaptation(recipe, folder or Path("runs") / recipe.name, resume, reporter)
    return run.train(sampler(recipe))
