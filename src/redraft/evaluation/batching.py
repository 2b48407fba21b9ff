"""bench batch: throughput and what it costs the processor, by how many answers are written at once.

Diffusion computes many rows for each token that it keeps, which is free only while the machine idles. The table says
where that ends: from which batch size on AR, or verified, writes more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.engine import Engine, Request
from redraft.engine.backend import Backend
from redraft.evaluation.writing import (
    DIFFUSION,
    GREEDY,
    VERIFIED,
    Progress,
    WatchedBackend,
    Way,
    fastest_ar,
    finish,
    machine,
)

SIZES = (1, 2, 4, 8)
WIDE = 16  # slots of the canvas that is measured beside the one that is asked for, which may be short


@dataclass(frozen=True)
class Batch:
    """sizes: answers at once. tokens: length of each. repeats: of everything, in turns; the fastest counts."""

    tokens: int = 128
    sizes: tuple[int, ...] = SIZES
    repeats: int = 2
    diffusion: Way = DIFFUSION
    verified: Way = VERIFIED
    seed: int = 0


@dataclass(frozen=True)
class Load:
    """One run: all prompts with so many at once. cpu: processor seconds of this process, all its threads; network:
    seconds in the network, which on a GPU are its busy time."""

    tokens: int
    seconds: float
    cpu: float
    network: float


def batch(
    model: Model, prompts: Sequence[np.ndarray], settings: Batch, progress: Progress = lambda text: None
) -> dict[str, Any]:
    """The object of `redraft bench batch --json`.

    modes.*.sizes.*: tokens_per_second (prompts included: at a full batch reading and writing overlap),
    cpu_seconds_per_1000_tokens and the same in the network (on a GPU its seconds), and gain: throughput over that at
    one at a time. better_from: for ar and verified the smallest size from which on it writes more a second than
    diffusion at every size measured, None if at none.
    """
    ways = ways_of(model, prompts[0], settings)
    ar_backend, bare = fastest_ar(model, ways["ar"].request(model, prompts[0], min(32, settings.tokens)))
    runs: dict[tuple[str, int], Load] = {}
    for repeat in range(settings.repeats):
        for size in settings.sizes:
            for mode in ways:
                progress(f"round {repeat + 1} of {settings.repeats}: {mode}, {size} at once")
                backend = ar_backend if mode == "ar" else model.backend
                made = run(model, backend, ways[mode], prompts, size, settings)
                if (mode, size) not in runs or made.seconds < runs[mode, size].seconds:
                    runs[mode, size] = made
    modes = {
        mode: {str(size): _told(runs, mode, size, settings.sizes[0]) for size in settings.sizes}
        for mode in ways
    }
    return machine(model) | {
        "prompts": len(prompts),
        "tokens_per_prompt": settings.tokens,
        "ar_unpadded": bare,
        "settings": {mode: way.told(model) for mode, way in ways.items()},
        "modes": {mode: {"sizes": sizes} for mode, sizes in modes.items()},
        "better_from": {
            mode: better_from(settings.sizes, _throughput(modes[mode]), _throughput(modes["diffusion"]))
            for mode in ("ar", "verified")
        },
    }


def ways_of(model: Model, prompt: np.ndarray, settings: Batch) -> dict[str, Way]:
    """What is measured, by name: AR, diffusion as asked for and with a canvas of WIDE slots, verified."""
    ways = {"ar": GREEDY, "diffusion": settings.diffusion, "verified": settings.verified}
    if settings.diffusion.request(model, prompt, 1).sampler.canvas_length != WIDE:
        ways[f"diffusion, canvas {WIDE}"] = replace(settings.diffusion, canvas=WIDE)
    return ways


def run(
    model: Model, backend: Backend, way: Way, prompts: Sequence[np.ndarray], size: int, settings: Batch
) -> Load:
    """Writes on all prompts, `size` at once and nobody watching; the engine is fresh, its first evaluation out of the
    count."""

    def request(prompt: np.ndarray, tokens: int) -> Request:
        return replace(way.request(model, prompt, tokens, settings.seed), watched=False)

    watched = WatchedBackend(backend)
    engine = Engine(watched, model.tokenizer.token_bytes, max_batch=size, prefix_contexts=0)
    first = [engine.submit(request(prompt, min(4, settings.tokens))) for prompt in prompts[:size]]
    finish(engine, first)
    tickets = [engine.submit(request(prompt, settings.tokens)) for prompt in prompts]
    start, cpu, network = time.perf_counter(), time.process_time(), watched.seconds
    finish(engine, tickets)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return Load(
        sum(len(t.writer.output.tokens) for t in tickets if t.writer), seconds, cpu, watched.seconds - network
    )


def better_from(sizes: Sequence[int], throughput: Sequence[float], diffusion: Sequence[float]) -> int | None:
    """The smallest size from which on `throughput` is above diffusion's, at that size and all larger ones."""
    found = None
    for size, own, other in reversed(list(zip(sizes, throughput, diffusion, strict=True))):
        if own <= other:
            break
        found = size
    return found


def _told(runs: dict[tuple[str, int], Load], mode: str, size: int, first: int) -> dict[str, float]:
    load, single = runs[mode, size], runs[mode, first]
    return {
        "tokens_per_second": load.tokens / load.seconds,
        "cpu_seconds_per_1000_tokens": 1000 * load.cpu / load.tokens,
        "network_seconds_per_1000_tokens": 1000 * load.network / load.tokens,
        "gain": load.tokens / load.seconds / (single.tokens / single.seconds),
    }


def _throughput(sizes: dict[str, dict[str, float]]) -> list[float]:
    return [told["tokens_per_second"] for told in sizes.values()]


def lines(told: dict[str, Any]) -> list[str]:
    """The report for a person."""
    sizes = list(told["modes"]["ar"]["sizes"])
    out = [
        f"{told['model']} on {told['backend']}, {told['device']}: {told['prompts']} answers of "
        f"{told['tokens_per_prompt']} tokens; tokens/s (CPU seconds per 1,000 tokens)",
        f"{'at once':<21}" + "".join(f"{size:>15}" for size in sizes) + f"{sizes[-1] + ' / ' + sizes[0]:>8}",
    ]
    for mode, m in told["modes"].items():
        cells = [
            f"{m['sizes'][s]['tokens_per_second']:.0f} ({m['sizes'][s]['cpu_seconds_per_1000_tokens']:.1f})"
            for s in sizes
        ]
        gain = f"{m['sizes'][sizes[-1]]['gain']:.2f}"
        out.append(f"{mode:<21}" + "".join(f"{cell:>15}" for cell in cells) + f"{gain:>8}")
    for mode, size in told["better_from"].items():
        out.append(
            f"{mode} writes more than diffusion "
            + ("at none of these sizes" if size is None else f"from {size} at once on")
        )
    return out
