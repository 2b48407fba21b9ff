"""The benches by name. A new one is a file with a function and its report, and an entry in BENCHES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.errors import RequestError
from redraft.evaluation import adaptive, backends, batching, editing, frontier, gpu, latency, plots, speed
from redraft.evaluation.prompts import Dialogues, load_dialogues, pick_prompts
from redraft.evaluation.writing import Progress, Way


@dataclass(frozen=True)
class Options:
    """What a person may say of a bench; None leaves it to the bench. quick: the least that goes through all of it.

    thresholds, temperatures, canvases, effort: of diffusion; the frontier takes several, the others one.
    """

    model: str = ""
    backend: str = "auto"
    folder: Path | None = None
    data: Path | None = None
    split: str = "test"
    prompts: int | None = None
    tokens: int | None = None
    thresholds: tuple[float, ...] = ()
    temperatures: tuple[float, ...] = ()
    canvases: tuple[int, ...] = ()
    effort: str | None = None
    sharp: bool | None = None
    slide: int | None = None
    verified_canvas: int | None = None
    draft_steps: int = 1
    draft_layout: str = "auto"
    peers: bool = True
    quick: bool = False
    seed: int = 0

    def point(self) -> Way:
        """The one diffusion point. Raises RequestError when several are given."""
        for flag, values in (
            ("threshold", self.thresholds),
            ("temperature", self.temperatures),
            ("canvas", self.canvases),
        ):
            if len(values) > 1:
                raise RequestError(
                    f"this bench measures one point: give --{flag} once (bench frontier takes several)"
                )
        return Way(
            "diffusion",
            temperature=_only(self.temperatures),
            threshold=_only(self.thresholds),
            canvas=_only(self.canvases),
            effort=self.effort,
            sharp=self.sharp,
            slide=self.slide,
        )

    def verified(self) -> Way:
        """Verified decoding, greedy, with its own canvas length and drafting."""
        return Way(
            "verified",
            temperature=0.0,
            canvas=self.verified_canvas,
            draft_steps=self.draft_steps,
            draft_layout=self.draft_layout,
        )

    def size(self, usual: tuple[int, int], quick: tuple[int, int]) -> tuple[int, int]:
        """(prompts, tokens a prompt)."""
        prompts, tokens = quick if self.quick else usual
        return self.prompts or prompts, self.tokens or tokens


def _prompts(
    model: Model, dialogues: Dialogues, count: int, tokens: int, options: Options
) -> list[np.ndarray]:
    return pick_prompts(dialogues, count, tokens, options.seed, model.config.max_position_embeddings)


def _only(values: tuple[Any, ...]) -> Any:
    return values[0] if values else None


@dataclass(frozen=True)
class Bench:
    """run: measures and returns the JSON object. lines: that object as a report. plot: as a picture. about: one line
    for a person, usual run time included."""

    about: str
    run: Callable[[Model, Dialogues, Options, Progress], dict[str, Any]]
    lines: Callable[[dict[str, Any]], list[str]]
    plot: Callable[[dict[str, Any], Path], None]


def _speed(model: Model, dialogues: Dialogues, options: Options, progress: Progress) -> dict[str, Any]:
    prompts, tokens = options.size((24, 128), (2, 16))
    settings = speed.Speed(
        tokens=tokens,
        repeats=1 if options.quick else 2,
        diffusion=options.point(),
        verified=options.verified(),
        seed=options.seed,
        peers_folder=options.folder if options.peers else None,
    )
    return speed.speed(model, _prompts(model, dialogues, prompts, tokens, options), settings, progress)


def _latency(model: Model, dialogues: Dialogues, options: Options, progress: Progress) -> dict[str, Any]:
    prompts, tokens = options.size((20, 256), (2, 16))
    settings = latency.Latency(
        tokens=tokens,
        cold_starts=1 if options.quick else 5,
        model=options.model,
        backend=options.backend,
        diffusion=options.point(),
        verified=options.verified(),
        seed=options.seed,
    )
    return latency.latency(model, _prompts(model, dialogues, prompts, tokens, options), settings, progress)


def _batch(model: Model, dialogues: Dialogues, options: Options, progress: Progress) -> dict[str, Any]:
    prompts, tokens = options.size((16, 128), (2, 8))
    settings = batching.Batch(
        tokens=tokens,
        sizes=(1, 2) if options.quick else batching.SIZES,
        repeats=1 if options.quick else 2,
        diffusion=options.point(),
        verified=options.verified(),
        seed=options.seed,
    )
    return batching.batch(model, _prompts(model, dialogues, prompts, tokens, options), settings, progress)


def _frontier(model: Model, dialogues: Dialogues, options: Options, progress: Progress) -> dict[str, Any]:
    prompts, tokens = options.size((80, 128), (3, 16))
    if options.effort is not None:
        raise RequestError("bench frontier sweeps thresholds itself: leave out --effort")
    short = {"thresholds": (0.9, 0.5), "temperatures": (0.0,), "ar_temperatures": (0.0, 0.7, 1.0), "timed": 1}
    chosen: dict[str, Any] = short if options.quick else {}
    given = {
        "thresholds": options.thresholds,
        "temperatures": options.temperatures,
        "canvases": options.canvases,
    }
    chosen |= {name: values for name, values in given.items() if values}
    if options.thresholds or options.canvases:
        chosen |= {"checks": (), "draft_lengths": (None,)}
    settings = frontier.Frontier(tokens=tokens, seed=options.seed, **chosen)
    return frontier.frontier(model, _prompts(model, dialogues, prompts, tokens, options), settings, progress)


def _adaptive(model: Model, dialogues: Dialogues, options: Options, progress: Progress) -> dict[str, Any]:
    prompts, tokens = options.size((40, 64), (2, 16))
    point = options.point()
    if point.threshold is None:  # canvases that settle by themselves: a check leaves nothing to adapt
        point = replace(point, threshold=model.defaults.threshold)
    length = point.canvas or (8 if options.quick else 16)
    many = {"replies": 20, "canvases": 10, "sized": 1} if options.quick else {}
    settings = adaptive.Adaptive(
        length=length, prompts=prompts, tokens=tokens, diffusion=point, seed=options.seed, **many
    )
    return adaptive.adaptive(model, dialogues, settings, progress)


def _edit(model: Model, dialogues: Dialogues, options: Options, progress: Progress) -> dict[str, Any]:
    texts, tokens = options.size((24, 200), (2, 40))
    settings = editing.Editing(texts=texts, tokens=tokens, seed=options.seed)
    return editing.editing(model, dialogues, settings, progress)


def _backends(model: Model, dialogues: Dialogues, options: Options, progress: Progress) -> dict[str, Any]:
    texts, longest = options.size((24, 256), (2, 24))
    slots = options.point().canvas or 16
    settings = backends.Backends(slots, rounds=2 if options.quick else 40, texts=texts, longest=longest)
    assert options.folder is not None
    return backends.backends(model, options.folder, dialogues, settings, progress)


def _gpu(model: Model, dialogues: Dialogues, options: Options, progress: Progress) -> dict[str, Any]:
    _, tokens = options.size((0, 128), (0, 8))
    small: dict[str, Any] = {"alone": 1, "sizes": (1, 2), "repeats": 1, "rounds": 2, "copied": 1 << 20}
    if options.draft_layout == "auto":  # its price of a row is a CPU's
        options = replace(options, draft_layout="branches")
    settings = gpu.Gpu(
        tokens=tokens,
        diffusion=options.point(),
        verified=options.verified(),
        seed=options.seed,
        **(small if options.quick else {}),
    )
    prompts = _prompts(model, dialogues, options.prompts or max(settings.sizes), tokens, options)
    assert options.folder is not None
    return gpu.gpu(model, options.folder, prompts, settings, progress)


BENCHES: dict[str, Bench] = {
    "speed": Bench(
        "tokens/s of diffusion and verified against AR (about 1 minute)",
        _speed,
        speed.lines,
        plots.plot_speed,
    ),
    "latency": Bench(
        "time to the first draft, to the first text and to a whole answer; cold start (about 1 minute)",
        _latency,
        latency.lines,
        plots.plot_latency,
    ),
    "batch": Bench(
        "throughput and CPU seconds by answers at once (about 1 minute)",
        _batch,
        batching.lines,
        plots.plot_batch,
    ),
    "frontier": Bench(
        "quality beside speed, against AR swept over temperature (about 3 minutes)",
        _frontier,
        frontier.lines,
        plots.plot_frontier,
    ),
    "adaptive": Bench(
        "work by difficulty and canvas length; error correction on and off (about 2 minutes)",
        _adaptive,
        adaptive.lines,
        plots.plot_adaptive,
    ),
    "edit": Bench(
        "editing a text in place against AR writing all of it (about 1 minute)",
        _edit,
        editing.lines,
        plots.plot_edit,
    ),
    "backends": Bench(
        "steps of the engine's graphs against torch eager, and how they agree with it (half a minute; needs torch)",
        _backends,
        backends.lines,
        plots.plot_backends,
    ),
    "gpu": Bench(
        "recorded steps, tokens/s and throughput on a GPU (minutes; needs torch; on a CPU only with --quick)",
        _gpu,
        gpu.lines,
        plots.plot_gpu,
    ),
}


def run_bench(
    name: str, model: Model, options: Options, progress: Progress = lambda text: None
) -> dict[str, Any]:
    """Measures; the object of `redraft bench NAME --json`, with where its prompts come from."""
    dialogues = load_dialogues(model.tokenizer, options.data, options.split)
    return BENCHES[name].run(model, dialogues, options, progress) | {"source": dialogues.source}
