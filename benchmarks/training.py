"""How fast a recipe trains here, against what this machine's matrix products reach in the same run.

    python benchmarks/training.py --recipe recipes/tiny.yaml --steps 20
    python benchmarks/training.py --recipe recipes/tiny.yaml --set train.batch_rows=16 --json

One process. Without prepared data a corpus is made up. tokens: clean tokens of the batch, padding not counted.
share: floating-point operations that the step needs (weights, attention as laid out, head; forward and twice that for
backward) a second ÷ the rate of the same layers' matrix products alone, measured before and after the steps. overhead:
what a step spends outside forward, backward and optimizers (drawing and corrupting the batch, clipping, the average).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from redraft.errors import RedraftError
from redraft.training.batch import Batch
from redraft.training.data import prepare
from redraft.training.objective import slot_weights
from redraft.training.recipe import Prepare, Recipe, Source, load
from redraft.training.run import Run

WARM_UP = 2
GEMM_SECONDS = 0.5


def made_up(folder: Path, vocab_size: int) -> Path:
    """Prepares dialogues of random words, as long as the recipe's rows can hold a few of."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, int(n))) for n in rng.integers(3, 9, 6000)]
    with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
        for _ in range(400):
            said = [" ".join(rng.choice(words, int(rng.integers(5, 20)))) for _ in range(12)]
            turns = [f"{'User' if i % 2 == 0 else 'Assistant'}: {t}" for i, t in enumerate(said)]
            file.write(json.dumps({"text": "\n".join(turns)}) + "\n")
    source = Source(path=str(folder / "text.jsonl"), format="dialogue")
    prepare(Prepare(sources=[source], vocab_size=vocab_size, holdout=4), folder / "data")
    return folder / "data"


class Clock:
    """Seconds by what they went into."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            out = call(*args, **kwargs)
            self.spent[part] += self.now() - start
            return out

        return run


class TimedLoss:
    """Stands for the loss between forward and backward."""

    def __init__(self, loss: torch.Tensor, clock: Clock) -> None:
        self.backward = clock.timed("backward", loss.backward)


def instrument(run: Run, clock: Clock) -> list[Batch]:
    """Times the parts of run.step; the list returned always holds the batches of the last step."""
    batches: list[Batch] = []
    draw, forward = run.micro_batches, clock.timed("forward", run.parallel)

    def drawn() -> list[Batch]:
        batches[:] = draw()
        return batches

    def objective(*args: Any) -> Any:
        losses = forward(*args)
        return replace(losses, total=TimedLoss(losses.total, clock))

    run.micro_batches = clock.timed("batch", drawn)  # type: ignore[method-assign]
    run.parallel = objective
    for optimizer in run.state.optimizers:
        optimizer.step = clock.timed("optimizer", optimizer.step)  # type: ignore[method-assign]
    ema = run.state.ema
    ema.update = clock.timed("average", ema.update)  # type: ignore[method-assign]
    return batches


def layers(run: Run) -> list[tuple[int, int]]:
    """(in, out) of every matrix that all rows go through."""
    named = run.state.model.named_parameters()
    return [(p.shape[1], p.shape[0]) for n, p in named if p.dim() == 2 and ".layers." in n]


def operations(run: Run, batch: Batch) -> float:
    """Floating-point operations of a batch's forward and backward pass."""
    config = run.state.model.config
    rows, length = batch.clean.shape
    canvases, slots = batch.noisy.shape[1:]
    every = rows * (length + canvases * slots)
    linear = sum(2 * a * b for a, b in layers(run)) * every
    pairs = rows * (length**2 + canvases * slots * (length + slots))
    attention = 4 * pairs * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    weights = slot_weights(batch, run.process, run.recipe.objective)
    said = int((weights > 0).sum()) + int((batch.next_token >= 0).sum())
    return 3.0 * (linear + attention + 2 * said * config.hidden_size * config.vocab_size)


def gemm_rate(run: Run, rows: int) -> float:
    """Operations a second of the layers' products alone: forward, and backward's two, at `rows` rows."""
    device, cuda = run.world.device, run.world.device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    config = run.state.model.config
    shapes = [
        *layers(run)[: len(layers(run)) // config.num_hidden_layers],
        (config.hidden_size, config.vocab_size),
    ]
    operands = [
        tuple(torch.randn(s, device=device, dtype=dtype) for s in ((rows, a), (b, a), (rows, b)))
        for a, b in shapes
    ]
    clock = Clock(device)
    done, start = 0.0, clock.now()
    first = True
    while first or clock.now() - start < GEMM_SECONDS:
        for x, weight, grad in operands:
            x @ weight.T, grad @ weight, grad.T @ x
            done += 6.0 * rows * weight.numel()
        if first:  # not counted: threads and caches warm up
            first, done, start = False, 0.0, clock.now()
    return done / (clock.now() - start)


def peak_memory(device: torch.device) -> float:
    """MiB: of the GPU's tensors, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(recipe: Recipe, steps: int, folder: Path) -> dict[str, Any]:
    if not (Path(recipe.data) / "train.json").exists():
        vocab = recipe.prepare.vocab_size if recipe.prepare else 4096
        recipe = recipe.model_copy(update={"data": str(made_up(folder, vocab)), "mixture": []})
    run = Run(recipe, folder / "run", resume=False)
    clock = Clock(run.world.device)
    batches = instrument(run, clock)
    for _ in range(WARM_UP):
        run.step()
    clock.spent.clear()
    rows = sum(b.positions.size for b in batches) // len(batches)
    rates = [gemm_rate(run, rows)]
    tokens = needed = seconds = 0.0
    for _ in range(steps):
        start = clock.now()
        tokens += run.step()["tokens"]
        seconds += clock.now() - start
        needed += sum(operations(run, b) for b in batches)
    rates.append(gemm_rate(run, rows))
    machine = sum(rates) / len(rates)
    inside = sum(clock.spent[part] for part in ("forward", "backward", "optimizer"))
    return {
        "recipe": recipe.name,
        "device": str(run.world.device),
        "threads": torch.get_num_threads(),
        "parameters": run.state.model.parameter_count(),
        "steps": steps,
        "tokens_per_second": tokens / seconds,
        "step_ms": 1000 * seconds / steps,
        "parts_ms": {part: 1000 * spent / steps for part, spent in sorted(clock.spent.items())},
        "overhead": 1 - inside / seconds,
        "peak_memory_mib": peak_memory(run.world.device),
        "gflop_per_step": needed / steps / 1e9,
        "gflops": needed / seconds / 1e9,
        "gemm_gflops": machine / 1e9,
        "share": needed / seconds / machine,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="recipes/tiny.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="an override, as in redraft train"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = measure(load(options.recipe, options.set), max(1, options.steps), Path(folder))
    except RedraftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(report))
        return 0
    parts = ", ".join(f"{name} {ms:.1f}" for name, ms in report["parts_ms"].items())
    print(
        f"{report['recipe']}: {report['parameters']:,} parameters on {report['device']}, {report['threads']} threads"
    )
    print(f"  {report['tokens_per_second']:,.0f} tokens/s, {report['step_ms']:.1f} ms a step ({parts})")
    print(f"  {report['overhead']:.1%} of a step outside forward, backward and optimizers")
    reached, alone = report["gflops"], report["gemm_gflops"]
    print(f"  {reached:.1f} GFLOP/s of the {alone:.1f} of matrix products alone: {report['share']:.0%}")
    print(f"  {report['peak_memory_mib']:,.0f} MiB at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
