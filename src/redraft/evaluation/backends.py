"""bench backends: what the engine's graphs gain over torch eager in a step, and how often they agree with it.

Steps are timed in turns, so that whatever else the machine does hits all alike. The baseline is the plain network in
torch: `Denoiser.forward` over kept keys and values, scaled dot-product attention in float32, nothing padded.
Agreement is teacher-forced on whole dialogues: every row of every backend reads the same tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from redraft.api import Model
from redraft.denoiser import families
from redraft.denoiser.adapter_config import ADAPTER_CONFIG
from redraft.engine.agreement import agreement
from redraft.engine.backend import Backend, Pass
from redraft.engine.backends.onnx_backend import OnnxBackend, choose_precision, physical_cores
from redraft.engine.backends.onnx_graph import PRECISIONS
from redraft.errors import RequestError
from redraft.evaluation.prompts import Dialogues
from redraft.evaluation.writing import Progress, machine

if TYPE_CHECKING:
    from redraft.denoiser.transformer import Denoiser

TORCH = "torch"
STEPS = ("ar", "canvas")
Step = Callable[[], object]


@dataclass(frozen=True)
class Backends:
    """What to measure: slots of a canvas, tokens before it, rounds of timing; texts of at most `longest` tokens to
    agree on. threads: 0 for one on each core. cpu_time: all threads' processor time in place of the wall's, which on a
    busy machine says more."""

    slots: int = 16
    context: int = 128
    rounds: int = 40
    texts: int = 24
    longest: int = 256
    threads: int = 0
    cpu_time: bool = False


def backends(
    model: Model,
    folder: Path,
    dialogues: Dialogues,
    settings: Backends,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """The object of `redraft bench backends --json`: see `compare`; chosen: the precision that redraft takes itself.

    Raises RequestError without torch, and for an adapter, which is no network of its own.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        raise RequestError("bench backends needs torch: pip install 'redraft[train]'") from None
    if (folder / ADAPTER_CONFIG).exists():
        raise RequestError(f"{folder} is an adapter: measure its base")
    network = families.load(folder)
    engines = {
        f"onnx-{precision}": OnnxBackend.load(folder, precision, settings.threads) for precision in PRECISIONS
    }
    texts = whole_texts(dialogues, settings.texts, settings.longest, model.config.max_position_embeddings)
    told = compare(network, engines, texts, settings, progress)
    return machine(model) | {"chosen": f"onnx-{choose_precision(network.config)}"} | told


def whole_texts(dialogues: Dialogues, count: int, longest: int, context: int) -> list[np.ndarray]:
    """The beginnings of `count` dialogues, int64 each, with room for a canvas in the context."""
    last = [replies[-1] for replies in dialogues.replies[:count]]
    return [np.concatenate((r.prompt, r.text))[: min(longest, context - 1)] for r in last]


def compare(
    network: Denoiser,
    engines: Mapping[str, Backend],
    texts: Sequence[np.ndarray],
    settings: Backends,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """backends: by name, torch first, the step times (ar: one row encoded; canvas: all slots denoised; median and
    least in ms), how many times faster than torch's (of medians), and, on the texts, engine.agreement's numbers."""
    from redraft.engine.backends.torch_backend import TorchBackend

    threads = settings.threads or physical_cores()
    clock = time.process_time if settings.cpu_time else time.perf_counter
    with torch_threads(threads):
        steps = {TORCH: eager_steps(network, settings)}
        steps |= {name: engine_steps(engine, settings) for name, engine in engines.items()}
        progress("timing single steps")
        out: dict[str, dict[str, Any]] = {
            name: {
                f"{step}_{kind}_ms": value
                for step, found in by_step.items()
                for kind, value in (("median", 1000 * median(found)), ("least", 1000 * min(found)))
            }
            for name, by_step in timed(steps, settings.rounds, clock).items()
        }
        reference = TorchBackend(network)
        for name, engine in engines.items():
            progress(f"comparing {name} with torch")
            out[name] |= {
                f"{step}_times_torch": out[TORCH][f"{step}_median_ms"] / out[name][f"{step}_median_ms"]
                for step in STEPS
            }
            if texts:
                out[name]["agreement"] = asdict(agreement(reference, engine, texts))
    return {
        "slots": settings.slots,
        "context": settings.context,
        "threads": threads,
        "clock": "cpu" if settings.cpu_time else "wall",
        "texts": len(texts),
        "backends": out,
    }


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(
    steps: Mapping[str, Mapping[str, Step]], rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every step of every backend, in turns; a call before each brings its weights into the caches."""
    out: dict[str, dict[str, list[float]]] = {
        name: {step: [] for step in by_step} for name, by_step in steps.items()
    }
    for _ in range(rounds):
        for step in STEPS:
            for name, by_step in steps.items():
                by_step[step]()
                start = clock()
                by_step[step]()
                out[name][step].append(clock() - start)
    return out


def _rows(vocab: int, settings: Backends) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens of the context and of the canvas, int64."""
    rng = np.random.default_rng(0)
    return rng.integers(0, vocab, settings.context), rng.integers(0, vocab, settings.slots)


def engine_steps(engine: Backend, settings: Backends) -> dict[str, Step]:
    """An AR step and a denoising step behind the context, with logits of all their rows."""
    text, canvas = _rows(engine.config.vocab_size, settings)
    context = engine.new_context(len(text) + len(canvas))
    engine.forward([Pass(context, text)])

    def ar() -> None:
        context.truncate(len(text))
        engine.forward([Pass(context, canvas[:1], "last")])

    def denoise() -> None:
        context.truncate(len(text))
        engine.forward([Pass(context, text[:0], canvas=canvas)])

    return {"ar": ar, "canvas": denoise}


def eager_steps(network: Denoiser, settings: Backends) -> dict[str, Step]:
    """The same two steps of the plain network in torch."""
    import torch

    from redraft.denoiser.transformer import Visibility

    text, canvas = (torch.from_numpy(a)[None] for a in _rows(network.config.vocab_size, settings))
    length = text.shape[1]

    def all_seen(rows: int) -> Visibility:
        return Visibility(dense=torch.zeros(1, 1, rows, length + rows))

    def run(tokens: torch.Tensor, noisy: bool) -> None:
        rows = tokens.shape[1]
        positions = torch.arange(length, length + rows)[None]
        marked = torch.ones_like(tokens, dtype=torch.bool) if noisy else None
        with torch.inference_mode():
            hidden, _ = network(tokens, positions, all_seen(rows), canvas=marked, past=past)
            network.logits(hidden).numpy()

    with torch.inference_mode():
        causal = Visibility(
            dense=Visibility.additive(torch.ones(1, 1, length, length, dtype=torch.bool).tril())
        )
        _, past = network(text, torch.arange(length)[None], causal)
    return {"ar": lambda: run(canvas[:, :1], False), "canvas": lambda: run(canvas, True)}


def lines(told: dict[str, Any]) -> list[str]:
    """The report for a person."""
    out = [
        f"{told['model']}, {told['device']}, {told['threads']} threads, {told['clock']} time: a step behind "
        f"{told['context']} tokens; redraft chooses {told['chosen']}",
        f"{'backend':<12} {'AR step ms':>10} {'× torch':>8} {str(told['slots']) + ' slots ms':>12} {'× torch':>8} "
        f"{'same token':>11} {'of rows':>8}",
    ]
    for name, b in told["backends"].items():
        cells = [f"{name:<12} {b['ar_median_ms']:10.2f}", f"{b['canvas_median_ms']:12.2f}"]
        ratios = [f"{b[f'{step}_times_torch']:8.2f}" if name != TORCH else f"{'1':>8}" for step in STEPS]
        agreed = b.get("agreement")
        end = f" {100 * agreed['argmax_share']:9.2f} % {agreed['rows']:8}" if agreed else ""
        out.append(f"{cells[0]} {ratios[0]} {cells[1]} {ratios[1]}{end}")
    return out
