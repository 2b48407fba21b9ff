"""bench gpu: what a GPU makes of the recorded evaluations, step by step, answer by answer, and of many answers at once.

A step of a small network is over sooner than its kernels can be launched one by one. So a step is timed three ways: as
the engine runs it, by replays of its graph alone (what is left when launching, copying and Python take no time: the
launch-free floor), and unrecorded. Beside them stands the time that the weights take to be read once.
Runs on a CPU as well, where nothing is recorded, to see that it runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from redraft.api import Model
from redraft.engine.backend import Pass
from redraft.evaluation import batching, speed
from redraft.evaluation.writing import DIFFUSION, VERIFIED, Progress, Way, machine

if TYPE_CHECKING:
    from redraft.engine.backends.torch_static import StaticTorchBackend

SIZES = (1, 8, 32, 128)
# A step's clean rows and canvas slots, by name.
STEPS = {"ar": (1, 0), "canvas of 4": (0, 4), "canvas of 16": (0, 16), "16 encoded, canvas of 16": (16, 16)}


@dataclass(frozen=True)
class Gpu:
    """context: tokens behind which single steps are timed. alone: prompts written one at a time. sizes: answers at
    once. tokens: length of each. copied: bytes of the copy that tells the memory's rate."""

    tokens: int = 128
    alone: int = 16
    sizes: tuple[int, ...] = SIZES
    repeats: int = 2
    context: int = 128
    rounds: int = 50
    copied: int = 1 << 28
    diffusion: Way = DIFFUSION
    verified: Way = VERIFIED
    seed: int = 0


def gpu(
    model: Model,
    folder: Path,
    prompts: Sequence[np.ndarray],
    settings: Gpu,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """The object of `redraft bench gpu --json`; prompts: as many as the largest size.

    steps.*: engine_ms, unrecorded_ms, replay_ms (None where nothing is recorded; medians), evaluations_per_second of
    the engine, and of_floor, replay_ms ÷ engine_ms. memory: weight_bytes, bytes_per_second (read and written by a
    copy), floor_ms (one over the other). speed and batch: as of the benches of these names. shapes: how many were
    recorded in all of it.
    """
    from redraft.engine.backends.torch_backend import TorchBackend
    from redraft.engine.backends.torch_static import StaticTorchBackend

    loaded = TorchBackend.load(folder)
    backend = loaded if isinstance(loaded, StaticTorchBackend) else StaticTorchBackend(loaded.model)  # type: ignore[attr-defined]
    here = Model(model.name, backend, model.tokenizer, model.defaults)
    progress("timing single steps")
    steps = {name: step(backend, *rows, settings) for name, rows in STEPS.items()}
    memory = _memory(backend, settings.copied)
    ways = {"diffusion": settings.diffusion, "verified": settings.verified, "seed": settings.seed}
    alone = speed.Speed(settings.tokens, settings.repeats, **ways)  # type: ignore[arg-type]
    many = batching.Batch(settings.tokens, settings.sizes, settings.repeats, **ways)  # type: ignore[arg-type]
    return machine(here) | {
        "context": settings.context,
        "steps": steps,
        "memory": memory,
        "speed": speed.speed(here, prompts[: settings.alone], alone, progress),
        "batch": batching.batch(here, prompts, many, progress),
        "shapes": len(backend.recorded),
    }


def step(backend: StaticTorchBackend, encode: int, slots: int, settings: Gpu) -> dict[str, float | None]:
    """Times of one evaluation of so many clean rows and slots, with the logits of all of them."""
    engine_ms = _median_ms(backend, encode, slots, settings)
    replay = backend.replay_seconds()
    return {
        "engine_ms": engine_ms,
        "unrecorded_ms": _median_ms(backend.unrecorded(), encode, slots, settings),
        "replay_ms": None if replay is None else 1000 * replay,
        "evaluations_per_second": 1000 / engine_ms,
        "of_floor": None if replay is None else 1000 * replay / engine_ms,
    }


def _median_ms(backend: StaticTorchBackend, encode: int, slots: int, settings: Gpu) -> float:
    rng, vocab = np.random.default_rng(settings.seed), backend.config.vocab_size
    length = min(settings.context, backend.config.max_position_embeddings - encode - slots)
    context = backend.new_context(length + encode + slots)
    backend.forward([Pass(context, rng.integers(0, vocab, length))])
    new = rng.integers(0, vocab, encode)
    canvas = rng.integers(0, vocab, slots) if slots else None
    found = []
    for _ in range(settings.rounds + 1):
        context.truncate(length)
        start = time.perf_counter()
        backend.forward(
            [Pass(context, new, "all", canvas)]
        )  # comes back with the logits: nothing is left to wait for
        found.append(time.perf_counter() - start)
    return 1000 * median(found[1:])


def _memory(backend: StaticTorchBackend, copied: int) -> dict[str, float]:
    """The rate of a large copy, and what reading all weights once takes at it."""
    import torch

    def wait() -> None:
        if backend.device.type == "cuda":
            torch.cuda.synchronize(backend.device)

    # An embedding that is not the head's too is read a row a token.
    parameters = dict(backend.model.named_parameters())
    if not backend.config.tie_word_embeddings:
        parameters.pop("model.embed_tokens.weight", None)
    weights = sum(p.numel() * p.element_size() for p in parameters.values())
    source = torch.ones(copied, dtype=torch.uint8, device=backend.device)
    target = torch.empty_like(source)
    rates = []
    for _ in range(10):
        wait()
        start = time.perf_counter()
        target.copy_(source)
        wait()
        rates.append(2 * copied / (time.perf_counter() - start))
    rate = max(rates)
    return {"weight_bytes": weights, "bytes_per_second": rate, "floor_ms": 1000 * weights / rate}


def lines(told: dict[str, Any]) -> list[str]:
    """The report for a person."""
    where = told["machine"].get("gpu", told["device"])
    out = [
        f"{told['model']} on {told['backend']}, {where}: steps behind {told['context']} tokens, ms",
        f"{'step':<26} {'engine':>8} {'replay':>8} {'unrecorded':>10} {'NFE/s':>8} {'of the floor':>12}",
    ]
    for name, s in told["steps"].items():
        replay = "–" if s["replay_ms"] is None else f"{s['replay_ms']:.3f}"
        share = "–" if s["of_floor"] is None else f"{100 * s['of_floor']:.0f} %"
        out.append(
            f"{name:<26} {s['engine_ms']:8.3f} {replay:>8} {s['unrecorded_ms']:10.3f} "
            f"{s['evaluations_per_second']:8.0f} {share:>12}"
        )
    memory = told["memory"]
    out.append(
        f"weights: {memory['weight_bytes'] / 1e6:.0f} MB, read once in {memory['floor_ms']:.3f} ms at "
        f"{memory['bytes_per_second'] / 1e9:.0f} GB/s; {told['shapes']} shapes recorded"
    )
    return [*out, "", *speed.lines(told["speed"]), "", *batching.lines(told["batch"])]
