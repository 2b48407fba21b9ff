"""Runs requests through the engine with a watch on it: what was written, in what time, and where the time went."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from redraft.api import Model
from redraft.engine import Commit, Engine, Request, Ticket
from redraft.engine.backend import Backend, Context, Pass, PassResult
from redraft.engine.writers.base import Event

Progress = Callable[[str], None]


class WatchedBackend:
    """A backend whose evaluations are timed; seconds and calls count since it was made."""

    def __init__(self, backend: Backend) -> None:
        self.inner = backend
        self.config, self.name = backend.config, backend.name
        self.seconds, self.calls = 0.0, 0

    def new_context(self, capacity: int) -> Context:
        return self.inner.new_context(capacity)

    def forward(self, passes: Sequence[Pass]) -> list[PassResult]:
        start = time.perf_counter()
        results = self.inner.forward(passes)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return results

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@dataclass(frozen=True)
class Written:
    """One answer. seconds: wall time from the end of the prompt to the last commit; network, sampling: its parts, the
    rest is the engine's own Python. first_draft, first_commit, total: seconds from the request on, prompt included,
    the first two until there was something to be seen. steps: evaluations after the prompt's own."""

    tokens: tuple[int, ...]
    nfe: int
    seconds: float
    network: float
    sampling: float
    prefill: float
    first_draft: float
    first_commit: float
    total: float


@dataclass
class _Watch:
    seconds: float = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


class Bench:
    """An engine for answers one at a time, which keeps no prompt for the next: each is read anew."""

    def __init__(self, model: Model, backend: Backend | None = None) -> None:
        self.backend = WatchedBackend(backend or model.backend)
        self.engine = Engine(self.backend, model.tokenizer.token_bytes, max_batch=1, prefix_contexts=0)

    def write(self, request: Request) -> Written:
        """Runs one request to its end."""
        ticket = self.engine.submit(replace(request, watched=False))
        watch = _Watch()
        first_commit: float | None = None
        before = self.backend.seconds
        while not ticket.done:
            reading = ticket.prompt_read is None
            events = self.engine.step()
            if reading and ticket.prompt_read is not None:
                before = self.backend.seconds  # what follows is writing
                assert ticket.writer is not None
                # On the writer itself: the engine stays as it is, and only what it spends there is counted.
                setattr(ticket.writer, "absorb", watch.around(ticket.writer.absorb))  # noqa: B010
            if first_commit is None and any(isinstance(e, Commit) and e.tokens for _, e in events):
                first_commit = ticket.last_commit
        _raise(ticket)
        return _written(ticket, self.backend.seconds - before, watch.seconds, first_commit)


def _written(ticket: Ticket, network: float, sampling: float, first_commit: float | None) -> Written:
    assert ticket.writer is not None
    start = ticket.submitted
    end = ticket.last_commit or start
    read = ticket.prompt_read or start
    return Written(
        tokens=tuple(ticket.writer.output.tokens),
        nfe=ticket.writer.nfe,
        seconds=end - read,
        network=network,
        sampling=sampling,
        prefill=read - start,
        first_draft=(ticket.first_draft or end) - start,
        first_commit=(first_commit or end) - start,
        total=end - start,
    )


def write_all(
    model: Model, requests: Sequence[Request], batch: int, backend: Backend | None = None
) -> list[Ticket]:
    """Runs requests `batch` at a time, for their text: faster than one by one and the same token ids."""
    engine = Engine(backend or model.backend, model.tokenizer.token_bytes, max_batch=batch, prefix_contexts=0)
    tickets = [engine.submit(request) for request in requests]
    finish(engine, tickets)
    return tickets


def finish(engine: Engine, tickets: Sequence[Ticket]) -> list[tuple[Ticket, Event]]:
    """Runs an engine until it is empty; every event of it. Raises what made an answer fail: a bench has no use for
    the others alone."""
    events = []
    while engine.has_work:
        events += engine.step()
    for ticket in tickets:
        _raise(ticket)
    return events


def _raise(ticket: Ticket) -> None:
    if ticket.error is not None:
        raise ticket.error


@dataclass(frozen=True)
class Way:
    """One way of writing that is measured: a decode mode and its settings, None for the model's own defaults.

    sharp, draft_steps, draft_layout: as in Request; check: its check_ratio, 0 for none. sampler: further settings.
    """

    decode: str
    temperature: float | None = None
    threshold: float | None = None
    canvas: int | None = None
    effort: str | None = None
    slide: int | None = None
    sharp: bool | None = None
    check: float | None = None
    draft_steps: int = 1
    draft_layout: str = "auto"
    sampler: dict[str, Any] = field(default_factory=dict, hash=False)

    def request(self, model: Model, prompt: Any, tokens: int, seed: int = 0) -> Request:
        """Exactly `tokens` tokens: past the end of a turn, and never past the end of the document, behind which
        training has shown no text (one logit bias, the same in every mode)."""
        made = model.request(
            prompt,
            max_tokens=tokens,
            seed=seed,
            temperature=self.temperature,
            decode=self.decode,
            effort=self.effort,
            canvas=self.canvas,
            threshold=self.threshold,
            slide=self.slide,
            check=self.check if self.decode == "diffusion" else None,
            ignore_eos=True,
        )
        ends = model.config.eos_token_ids[:1]
        bias = tuple((t, -1e6) for t in ends)
        return replace(
            made,
            sampler=replace(made.sampler, logit_bias=bias, **self.sampler),
            sharp=self.sharp,
            draft_steps=self.draft_steps,
            draft_layout=self.draft_layout,
        )

    def told(self, model: Model) -> dict[str, Any]:
        """The settings that count for this mode, for a report."""
        request = self.request(model, _anything(model), 1)
        sampler = request.sampler
        out: dict[str, Any] = {"decode": self.decode, "temperature": sampler.temperature}
        if self.decode != "ar":
            out["canvas"] = sampler.canvas_length if request.step_costs is None else "auto"
        if request.drafts:
            out |= {"draft_steps": self.draft_steps, "draft_layout": self.draft_layout}
        if self.decode == "diffusion":
            out |= {"threshold": sampler.threshold, "edit_threshold": sampler.edit_threshold}
            out |= {"sharp": self.sharp, "slide": request.slide, "check_ratio": request.check_ratio}
        return out


DIFFUSION, GREEDY, VERIFIED = Way("diffusion"), Way("ar", temperature=0.0), Way("verified", temperature=0.0)


def _anything(model: Model) -> Any:
    import numpy as np

    return np.array([model.config.eos_token_ids[0] if model.config.eos_token_ids else 0])


def unpadded(backend: Backend) -> Backend:
    """The same weights without the rows that pad a matrix for exactness (DESIGN decision 5): AR's fast path, whose
    token ids may differ from verified's where two logits all but tie. A backend that pads says how to do without by a
    method `unpadded`; one that has none is taken as it is."""
    own = getattr(backend, "unpadded", None)
    if callable(own):
        made: Backend = own()
        return made
    return backend


def fastest_ar(model: Model, request: Request, repeats: int = 3) -> tuple[Backend, bool]:
    """The faster of the padded and the unpadded AR loop on this request, and whether it is the unpadded one: no
    baseline is slowed by a choice made elsewhere."""
    bare = unpadded(model.backend)
    if bare is model.backend:
        return bare, False
    loops = [Bench(model, model.backend), Bench(model, bare)]
    best = [float("inf")] * 2
    for _ in range(repeats):
        for i, loop in enumerate(loops):
            best[i] = min(best[i], loop.write(request).seconds)
    return (bare, True) if best[1] <= best[0] else (model.backend, False)


def machine(model: Model) -> dict[str, Any]:
    """What the numbers were measured on: `model`, `backend` and `device` as in every report, and the machine."""
    device = str(getattr(model.backend, "device", "cpu"))
    about = {"cpu": _cpu_name(), "cores": os.cpu_count() or 1, "python": platform.python_version()}
    if device.startswith("cuda"):
        import torch

        about["gpu"] = torch.cuda.get_device_name(device)
    return {"model": model.name, "backend": model.backend.name, "device": device, "machine": about}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
