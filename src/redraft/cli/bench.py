"""redraft bench: speed, and quality beside speed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli import options as o
from redraft.errors import RequestError
from redraft.hub import DEFAULT_MODEL
from redraft.hub.names import did_you_mean

if TYPE_CHECKING:
    from redraft.evaluation.writing import Progress

NAMES = ("speed", "latency", "batch", "frontier", "adaptive", "edit", "backends", "gpu")

Data = Annotated[
    Path | None,
    typer.Option(help="A prepared folder to take prompts from; without it, redraft's own sample."),
]


def bench(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(NAMES)}.")] = "speed",
    model: o.Model = DEFAULT_MODEL,
    backend: o.Backend = "auto",
    data: Data = None,
    split: Annotated[str, typer.Option(help="The split of --data.")] = "test",
    prompts: Annotated[int | None, typer.Option(help="How many prompts; fewer is faster.")] = None,
    tokens: Annotated[int | None, typer.Option(help="New tokens for each prompt.")] = None,
    threshold: Annotated[
        list[float] | None, typer.Option(help="Of diffusion; frontier takes several (repeat the flag).")
    ] = None,
    temperature: Annotated[list[float] | None, typer.Option(help="Of diffusion; likewise.")] = None,
    canvas: Annotated[list[int] | None, typer.Option(help="Slots denoised together; likewise.")] = None,
    effort: o.Effort = None,
    sharp: Annotated[
        bool | None,
        typer.Option(help="Diffusion from the draft token, or from masks (by default as it suits)."),
    ] = None,
    slide: Annotated[
        int | None, typer.Option(help="Leading settled slots that are committed at once; 0: canvases whole.")
    ] = None,
    verified_canvas: Annotated[int | None, typer.Option(help="Slots that verified drafts at once.")] = None,
    draft_steps: Annotated[int, typer.Option(help="Denoising steps of verified's drafts.")] = 1,
    draft_layout: Annotated[
        str, typer.Option(help="Of verified: auto, strided, branches or separate.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Chooses the prompts and names the noise.")] = 0,
    peers: Annotated[bool, typer.Option(help="speed: also time outside programs, where installed.")] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="The least that runs through everything; no result.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a picture here (.png, .svg or .pdf).")] = None,
    as_json: o.Json = False,
) -> None:
    """Measure a model on this machine: speed, latency, batch, frontier, adaptive, edit, backends or gpu.

    On the shipped model and two cores each takes one to three minutes. Diffusion, verified and AR run in turns on the
    same weights, engine and prompts; let nothing else run beside them.
    """
    if name not in NAMES:
        raise RequestError(f"there is no bench {name!r}{did_you_mean(name, NAMES)} ({', '.join(NAMES)})")
    o.one_of("--backend", backend, o.BACKENDS)
    for flag, count in (
        ("--prompts", prompts),
        ("--tokens", tokens),
        *(("--canvas", c) for c in canvas or ()),
    ):
        o.at_least(flag, count, 1)
    o.at_least("--verified-canvas", verified_canvas, 1)
    o.at_least("--slide", slide, 0)
    o.at_least("--draft-steps", draft_steps, 1)
    o.one_of("--draft-layout", draft_layout, ("auto", "strided", "branches", "separate"))
    for p in threshold or ():
        o.finite("--threshold", p, 0.0, 1.0)
    for t in temperature or ():
        o.finite("--temperature", t, 0.0, float("inf"))
    if plot is not None:
        from redraft.evaluation.plots import check_plot

        check_plot(plot)

    import redraft
    from redraft.evaluation.benches import BENCHES, Options, run_bench
    from redraft.hub import resolve

    options = Options(
        model=model,
        backend=backend,
        folder=resolve(model).path,
        data=data,
        split=split,
        prompts=prompts,
        tokens=tokens,
        thresholds=tuple(threshold or ()),
        temperatures=tuple(temperature or ()),
        canvases=tuple(canvas or ()),
        effort=effort,
        sharp=sharp,
        slide=slide,
        verified_canvas=verified_canvas,
        draft_steps=draft_steps,
        draft_layout=draft_layout,
        peers=peers,
        quick=quick,
        seed=seed,
    )
    watched = progress()
    told = run_bench(name, redraft.load(model, backend=backend), options, watched)
    watched("")
    if plot is not None:
        BENCHES[name].plot(told, plot)
    show(told, BENCHES[name].lines(told), as_json)


def show(told: dict[str, Any], lines: list[str], as_json: bool) -> None:
    """One JSON object, or the report, on stdout."""
    from redraft.cli.terminal import write

    write(json.dumps(told, ensure_ascii=False) + "\n" if as_json else "\n".join(lines) + "\n")


def progress() -> Progress:
    """One line on a terminal's stderr that is written over; nothing where nobody watches."""
    if not sys.stderr.isatty():
        return lambda text: None

    def say(text: str) -> None:
        sys.stderr.write(f"\r\x1b[2K{text}" if text else "\r\x1b[2K")
        sys.stderr.flush()

    return say
