"""What all training runs share: the run's folder, the clock, and the loop of steps, evaluations and checkpoints."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml

from redraft.denoiser import checkpoint
from redraft.errors import RedraftError, RequestError
from redraft.hub.runs import complete
from redraft.training import metrics
from redraft.training.data import make_folder
from redraft.training.distributed import join
from redraft.training.interrupt import Interrupt
from redraft.training.memory import keep_freed_memory


class Reporter(Protocol):
    """Shows progress; cli.progress has one for terminals and logs."""

    def update(self, step: int, metrics: dict[str, float]) -> None: ...

    def message(self, text: str) -> None: ...


class Silent:
    def update(self, step: int, metrics: dict[str, float]) -> None: ...

    def message(self, text: str) -> None: ...


class Settings(Protocol):
    """The section `train` of a recipe, as far as the loop goes by it."""

    @property
    def steps(self) -> int: ...
    @property
    def minutes(self) -> float | None: ...
    @property
    def threads(self) -> int | None: ...
    @property
    def device(self) -> str: ...
    @property
    def log_every(self) -> int: ...
    @property
    def evaluate_every(self) -> int: ...
    @property
    def save_every(self) -> int: ...


class Loop(ABC):
    """A run; what a step, an evaluation and a checkpoint are is for the kinds of runs to say.

    resolved: the recipe as plain data. pause_after: seconds after which a session ends with a checkpoint, None: never.
    """

    state: Any  # checkpoints.TrainingState
    pause_after: float | None = None

    def __init__(
        self, settings: Settings, resolved: dict[str, Any], folder: str | Path, reporter: Reporter | None
    ) -> None:
        self.settings, self.resolved = settings, resolved
        self.folder, self.reporter = Path(folder), reporter or Silent()
        self.world = join(settings.device)
        if self.world.device.type == "cpu":
            keep_freed_memory()
        if settings.threads:
            torch.set_num_threads(settings.threads)

    def begin(self, seconds: float) -> None:
        """Starts the clock; seconds: trained before."""
        self.session_start = time.perf_counter()
        self.seconds_before = self.agreed_seconds = seconds

    @abstractmethod
    def step(self) -> dict[str, float]:
        """One optimizer step; its metrics, `tokens` among them."""

    @abstractmethod
    def evaluate(self, sampler: Any) -> None:
        """Measures the averaged weights on held-out text; sampler: writes the samples."""

    @abstractmethod
    def save(self) -> None:
        """Writes a checkpoint, whole or not at all."""

    def derived(self, window: list[dict[str, float]], seconds: float) -> dict[str, float]:
        """Metrics of several steps together, which took so many seconds."""
        return {}

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
        resolved = yaml.safe_dump(self.resolved, sort_keys=False)
        try:
            checkpoint.write_atomically(self.folder / "recipe.yaml", resolved.encode())
            if not resume:  # of a run that ended before its first checkpoint
                (self.folder / metrics.METRICS).unlink(missing_ok=True)
        except (RedraftError, OSError) as error:
            raise RequestError(f"run folder {self.folder} can't be written: {error}") from None

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.session_start

    @property
    def progress(self) -> float:
        """0..1: by steps, or by the clock where the recipe sets a budget in minutes; all processes see the same."""
        by_steps = self.state.step / self.settings.steps
        minutes = self.settings.minutes
        return by_steps if minutes is None else max(by_steps, self.agreed_seconds / 60 / minutes)

    @property
    def done(self) -> bool:
        return self.state.step >= self.settings.steps or self.progress >= 1

    def _diverged(self) -> str:
        good = complete(self.folder)
        then = f"{good[-1]} is good: resume from it" if good else "start again"
        return (
            f"the loss is not finite at step {self.state.step}; {then} with a lower optimizer.learning_rate"
        )

    def _autocast(self) -> Any:
        """bfloat16 on a GPU; on a CPU where the recipe asks for it, since most can't multiply it fast."""
        if self.world.device.type == "cuda" or getattr(self.settings, "bfloat16", False):
            return torch.autocast(self.world.device.type, torch.bfloat16)
        return nullcontext()

    # -- the run ----------------------------------------------------------------------------------------------

    def train(self, sampler: Any = None) -> Path:
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

    def _loop(self, sampler: Any, interrupt: Interrupt) -> None:
        train = self.settings
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
            pausing = self._pausing()
            if self.state.step % train.save_every == 0 or self.done or stopping or pausing:
                self.save()
            if stopping:
                self.reporter.message(f"stopped at step {self.state.step}; go on with --resume")
                raise KeyboardInterrupt
            if pausing:
                self.reporter.message(f"this session ends at step {self.state.step}; go on with --resume")
                return
            outside += time.perf_counter() - pause

    def _pausing(self) -> bool:
        if self.pause_after is None or self.done:
            return False
        return self.world.any(time.perf_counter() - self.session_start >= self.pause_after)

    def _log(self, window: list[dict[str, float]], seconds: float) -> None:
        mean = {k: float(np.mean([m[k] for m in window])) for k in window[0] if k != "tokens"}
        mean["tokens_per_second"] = sum(m["tokens"] for m in window) / seconds
        mean |= self.derived(window, seconds)
        mean["eta_seconds"] = self.seconds / max(self.progress, 1e-9) * (1 - self.progress)
        mean["progress"] = self.progress
        if self.world.first:
            metrics.append(self.folder, {"step": self.state.step, "seconds": round(self.seconds, 1), **mean})
            self.reporter.update(self.state.step, mean)
