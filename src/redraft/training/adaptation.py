"""From an AR base to a diffusion model: `redraft adapt RECIPE`.

The base stays as it is and a gated adapter learns to draft what the base would write, and to fill holes; or all weights
of a copy of it learn that (see adaptation_methods). A run's folder holds metrics.jsonl, recipe.yaml (as resolved) and
checkpoints, each an adapter that loads on the base it names, or a model.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redraft.denoiser import adapters, checkpoint
from redraft.errors import RedraftError
from redraft.hub.runs import complete
from redraft.training import adaptation_start as start
from redraft.training import checkpoints, metrics, optim, portable, sharding
from redraft.training.adaptation_batch import AdaptBatch, build
from redraft.training.adaptation_canvases import DRAFT, HOLE, Tokens
from redraft.training.adaptation_heads import measure
from redraft.training.adaptation_methods import METHODS, frozen_base
from redraft.training.adaptation_objective import DIVISORS, NAMES, AdaptationObjective, Sums, accepted
from redraft.training.adaptation_recipe import AdaptRecipe
from redraft.training.adaptation_samples import Sampler, sampler
from redraft.training.checkpoints import Stored, TrainingState
from redraft.training.distributed import make_once
from redraft.training.flops import Work
from redraft.training.loop import Loop, Reporter, Silent
from redraft.training.memory import out_of_memory
from redraft.training.packing import Rows
from redraft.training.start import training_rows


class Adaptation(Loop):
    """One run."""

    state: TrainingState[torch.nn.Module]

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
        self.method = METHODS[recipe.method]
        self.model = self.method.network(recipe, base, self.world.device)
        averaged, stored = self._read() if resume else (None, None)
        self._make_it_fit()
        trained = self.method.trained(self.model)
        self.learning, settings = [p for p in trained.parameters() if p.requires_grad], recipe.optimizer
        shares = self.sharded and recipe.method == "full"
        how: dict[str, bool] = {"foreach": False} if shares else {"fused": True}
        adam = torch.optim.AdamW(
            self.learning, settings.learning_rate, settings.betas, weight_decay=0.0, **how
        )
        self.state = TrainingState(trained, optim.Ema(trained, settings.ema), [adam])
        if stored is not None and averaged is not None:
            self._restore(averaged, stored)
        config = self.model.config
        assert config.mask_token_id is not None
        assert config.null_token_id is not None
        self.tokens = Tokens(config.mask_token_id, config.null_token_id, config.eos_token_ids)
        near = frozen_base(recipe, base, self.world.device)
        frozen = recipe.adapter.frozen
        self.objective = AdaptationObjective(
            self.model, recipe.losses, train.flex, near, frozen, self.sharded
        )
        self.work = Work.of(self.model, frozen)
        self.begin(self.state.seconds)
        self.micro_rows = train.micro_rows or self._probe()
        if train.peak_tflops:
            self.reporter.message(self.work.formula)

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

    def _read(self) -> tuple[dict[str, Tensor], Stored]:
        """The average is what a checkpoint shows of itself; the weights being trained lie beside it."""
        folder, trained = complete(self.folder)[-1], self.method.trained(self.model)
        stored = Stored.read(folder)
        self.method.read(self.model, folder)
        averaged = {k: v.detach().clone() for k, v in trained.state_dict().items()}
        if stored.weights:
            self.method.load(self.model, stored.weights, str(folder))
        self.reporter.message(f"resumed {folder}")
        return averaged, stored

    def _restore(self, averaged: dict[str, Tensor], stored: Stored) -> None:
        shadow = self.state.ema.shadow
        self.state.ema.shadow = {k: sharding.placed(v, averaged[k]) for k, v in shadow.items()}
        stored.restore(self.state)
        if self.world.first:
            metrics.drop_after(self.folder, self.state.step)

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
        sums = self._gradients(batch, self.world.sum(list(batch.divisors())))
        rows = batch.tokens, batch.canvas_rows, batch.supervised
        sharding.add_gradients(self.world, self.learning)
        norm = sharding.clip(self.learning, recipe.optimizer.clip)
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

    def _gradients(self, batch: AdaptBatch, divisors: Sequence[float]) -> np.ndarray:
        """Accumulates the step's gradients; sums of the losses. With too many rows for the memory it starts over with
        half as many at a time."""
        while True:
            try:
                return self._accumulate(batch, divisors)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
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

    def _accumulate(self, batch: AdaptBatch, divisors: Sequence[float]) -> np.ndarray:
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
        divisors = [sums[name] for name in DIVISORS]
        found = Sums(*map(torch.tensor, sums.values()))
        weight, taught, fill_count, ar_count = (max(x, 1e-9) for x in divisors)
        ar = {"ar": sums["ar"] / ar_count, "kept": sums["kept"] / ar_count}
        return (ar if sums["ar_count"] else {}) | {
            "loss": float(self.objective.total(found, divisors, self.factors)),
            "ce": sums["ce"] / weight,
            "kl": sums["kl"] / taught,
            "accept": 1 - sums["rejected"] / taught,
            "agree": sums["agreed"] / max(sums["against"], 1.0),
            "fill": sums["fill"] / fill_count,
            **({"doubt": sums["doubt"] / taught} if self.objective.heads.confidence else {}),
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
                self._accumulate(self.batch(range(self.micro_rows)), [1.0] * len(DIVISORS))
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
        """The average in the trained weights' place."""
        trained = self.state.model
        kept = {k: v.detach().clone() for k, v in trained.state_dict().items()}
        trained.load_state_dict(self.state.ema.shadow)
        try:
            yield
        finally:
            trained.load_state_dict(kept)

    @contextlib.contextmanager
    def measurable(self) -> Iterator[AdaptationObjective]:
        """The averaged network, in which the first process may run passes alone."""
        if self.recipe.method == "full":
            averaged = sharding.gathered(self.state.ema.shadow)
            model = (
                checkpoint.build(self.model.config, averaged, "the average")
                if self.world.first
                else self.model
            )
            yield AdaptationObjective(model.to(self.world.device), self.recipe.losses, self.recipe.train.flex)
            return
        with sharding.whole(self.model), self.averaged():
            yield self.objective

    def evaluate(self, sampler: Sampler | None) -> None:
        """Of the average, on held-out text: accepted drafts in a row of canvases that show nothing, with and without
        the Markov head, and cross-entropy of holes; then the recipe's prompts answered and verified. The confidence
        head is fitted to what was accepted. On the first process alone."""
        fitted: dict[str, Tensor] = {}
        with self.measurable() as objective:
            if self.world.first:
                with torch.no_grad():
                    fitted = self._evaluate(objective, sampler)
            self.world.wait()
        self._take(fitted)

    def _take(self, fitted: dict[str, Tensor]) -> None:
        """Numbers of the heads that were fitted, not trained: into the adapter and its average."""
        for name, value in fitted.items():
            self.state.ema.shadow[f"heads.{name}"].copy_(value)
            adapters.adapter_of(self.model).heads.get_parameter(name).data.copy_(value)

    def _evaluate(self, objective: AdaptationObjective, sampler: Sampler | None) -> dict[str, Tensor]:
        record: dict[str, Any] = {"step": self.state.step, "seconds": round(self.seconds, 1)}
        heads = objective.heads
        fitted: dict[str, Tensor] = {}
        if self.valid is not None:
            runs = np.concatenate([accepted(objective, b) for b in self._held_out(DRAFT)])
            holes = [objective(b) for b in self._held_out(HOLE)]
            sums = {name: sum(float(getattr(h, name)) for h in holes) for name in NAMES}
            record["valid_accepted"] = float(runs.mean()) if len(runs) else 0.0
            record["valid_fill"] = sums["fill"] / max(sums["fill_count"], 1.0)
            if sums["ar_count"]:
                record["valid_ar"] = sums["ar"] / sums["ar_count"]
            self.reporter.message(
                f"step {self.state.step}: held-out drafts accepted in a row {record['valid_accepted']:.2f} of "
                f"{self.recipe.canvas.drawn - 1}, holes {record['valid_fill']:.3f} nats a slot"
                + (f", AR {record['valid_ar']:.3f} a token" if "valid_ar" in record else "")
            )
            if heads.markov or heads.confidence:
                more, fitted = measure(objective, list(self._held_out(DRAFT)))
                record |= more
                self.reporter.message(f"  with the heads, live: {more['valid_accepted_live']:.2f} in a row")
        prompts = self.recipe.train.sample_prompts
        answers = sampler(objective.model, prompts) if sampler else []
        record["samples"] = [answer.text for answer in answers]
        if answers:
            record["tokens_per_forward"] = float(np.mean([a.tokens_per_forward for a in answers]))
        for prompt, answer in zip(prompts, answers, strict=False):
            told = f"({answer.tokens_per_forward:.2f} tokens an evaluation)"
            self.reporter.message(f"  {prompt} → {answer.text} {told}")
        metrics.append(self.folder, record)
        return fitted

    def _held_out(self, kind: int) -> Iterator[AdaptBatch]:
        assert self.valid is not None
        rows = self.recipe.train.evaluate_rows
        for first in range(0, rows, self.micro_rows):
            part = range(first, min(first + self.micro_rows, rows))
            yield self._build(self.valid, 0, part, rows, kind)

    def save(self) -> None:
        """A checkpoint: the averaged weights, and what a resumed run needs."""
        state = replace(self.state, seconds=self.seconds)
        weights, moments = self.method.weights(self.model), checkpoints.moments(state)
        carries = self.recipe.train.portable
        tensors = self.method.tensors(self.model) if carries else {}
        with self.averaged():
            averaged = self.method.tensors(self.model)
        if self.world.first:

            def fill(part: Path) -> None:
                self._write(averaged, part)
                checkpoints.write_state(state, weights, moments, part, self.resolved)

            def carried(part: Path) -> None:
                self._write({k: v.bfloat16() for k, v in tensors.items()}, part)
                portable.fill(state, moments, self.resolved, part)

            checkpoints.write_step(self.folder, state.step, self.recipe.train.keep, fill)
            if carries:
                checkpoints.write_step(self.folder / portable.FOLDER, state.step, 1, carried)
        self.world.wait()

    def _write(self, tensors: dict[str, Tensor], folder: Path) -> None:
        self.method.write(tensors, self.model, folder)
        checkpoints.copy_tokenizer(Path(self.recipe.data), folder)


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
        make_once(recipe.answers.out, lambda: start.write_answers(recipe, (reporter or Silent()).message))
        if not (Path(recipe.answers.out) / "train.json").exists():  # this session's time was over
            return Path(recipe.answers.out)
    run = Adaptation(recipe, folder or Path("runs") / recipe.name, resume, reporter)
    return run.train(sampler(recipe))
