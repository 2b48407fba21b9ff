"""Step times of the CPU backends, interleaved in one run so that whatever else the machine does hits all alike.

    python benchmarks/backends.py                      # random weights, shaped like redraft-tiny
    python benchmarks/backends.py --shape 135m
    python benchmarks/backends.py --model FOLDER --json

A step denoises T rows over a context (T = 1 also encodes: an AR step), with logits for all of them. Times are
milliseconds of wall clock, the least of --rounds and the median; CPU seconds are those of all threads. Ratios are
between the least times: torch eager ÷ backend, and each width ÷ the same backend's AR step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from redraft.denoiser import families
from redraft.denoiser.checkpoint import state_dict
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.transformer import Denoiser
from redraft.engine.backend import Backend, Pass
from redraft.engine.backends.onnx_backend import OnnxBackend
from redraft.engine.backends.torch_backend import TorchBackend

SHAPES = {
    "tiny": (4096, 256, 768, 6, 4, 2, 64),
    "135m": (32768, 576, 1536, 24, 9, 3, 64),
}
WIDTHS = (1, 8, 16, 32)
REPEATS = 3


def random_model(shape: str) -> Denoiser:
    vocab, hidden, wide, layers, heads, kv_heads, size = SHAPES[shape]
    torch.manual_seed(0)
    return Denoiser(
        DenoiserConfig(vocab, hidden, wide, layers, heads, kv_heads, size, mask_token_id=0)
    ).eval()


def backends(model: Denoiser, threads: int, spinning: bool) -> dict[str, Backend]:
    torch.set_num_threads(threads)
    tensors = {k: v.float().numpy() for k, v in state_dict(model).items()}
    out: dict[str, Backend] = {"torch": TorchBackend(model)}
    for precision in ("fp32", "int8"):
        out[f"onnx-{precision}"] = OnnxBackend(model.config, tensors, precision, threads, spinning)
    return out


def steps(backend: Backend, length: int) -> dict[str, Callable[[], object]]:
    """An AR step and denoising steps of each width, over a context of `length` tokens."""
    rng = np.random.default_rng(0)
    vocab = backend.config.vocab_size
    context = backend.new_context(length + max(WIDTHS))
    for start in range(0, length, 128):
        backend.forward([Pass(context, rng.integers(0, vocab, min(128, length - start)))])
    nothing, rows = np.empty(0, np.int64), rng.integers(0, vocab, max(WIDTHS))

    def encode() -> None:
        context.truncate(length)
        backend.forward([Pass(context, rows[:1], "last")])

    def denoise(width: int) -> Callable[[], None]:
        def run() -> None:
            context.truncate(length)
            backend.forward([Pass(context, nothing, canvas=rows[:width])])

        return run

    return {"ar": encode, **{str(width): denoise(width) for width in WIDTHS}}


def measure(runs: dict[str, dict[str, Callable[[], object]]], rounds: int) -> dict[str, dict[str, Any]]:
    """For each backend and step: least and median wall milliseconds, least CPU milliseconds."""
    walls: dict[tuple[str, str], list[float]] = {}
    cpus: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for step in next(iter(runs.values())):
            for name, by_step in runs.items():
                by_step[step]()  # brings this backend's weights back into the processor's caches
                for _ in range(REPEATS):
                    wall, cpu = time.perf_counter(), time.process_time()
                    by_step[step]()
                    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                    walls.setdefault((name, step), []).append(1000 * wall)
                    cpus.setdefault((name, step), []).append(1000 * cpu)
    return {
        name: {
            step: {
                "ms": min(walls[name, step]),
                "median_ms": statistics.median(walls[name, step]),
                "cpu_ms": min(cpus[name, step]),
            }
            for step in by_step
        }
        for name, by_step in runs.items()
    }


def report(times: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'backend':<12}{'rows':>5}{'ms':>9}{'median':>9}{'cpu ms':>9}{'torch ÷':>9}{'÷ ar':>7}"]
    for name, by_step in times.items():
        for step, t in by_step.items():
            against_torch = times["torch"][step]["ms"] / t["ms"]
            against_ar = t["ms"] / by_step["ar"]["ms"]
            numbers = (
                f"{t['ms']:9.2f}{t['median_ms']:9.2f}{t['cpu_ms']:9.2f}{against_torch:9.2f}{against_ar:7.2f}"
            )
            lines.append(f"{name:<12}{step:>5}{numbers}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a model's folder; random weights without it")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--context", type=int, default=256, help="tokens before the canvas")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-spinning", action="store_true", help="idle threads sleep between operators")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = families.load(options.model) if options.model else random_model(options.shape)
    all_backends = backends(model, options.threads, not options.no_spinning)
    runs = {name: steps(backend, options.context) for name, backend in all_backends.items()}
    times = measure(runs, options.rounds)
    print(json.dumps(times, indent=2) if options.json else report(times))


if __name__ == "__main__":
    main()
