"""redraft fill: text for the gaps of a file, seen from both sides."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import typer

from redraft.cli import options as o
from redraft.cli import texts
from redraft.cli.texts import Source
from redraft.errors import RequestError
from redraft.hub import DEFAULT_MODEL

GAP = "<FILL>"


def fill(
    file: Annotated[
        str | None, typer.Argument(help=f"A text with {GAP} wherever text is missing; - for stdin.")
    ] = None,
    prefix: Annotated[str | None, typer.Option(help="A file with the text before one gap.")] = None,
    suffix: Annotated[str | None, typer.Option(help="A file with the text behind it.")] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write the result into FILE; FILE~ keeps it.")
    ] = False,
    pin: Annotated[
        list[str] | None, typer.Option(help="SLOT:TEXT: words that stand from that slot of the gap on.")
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(help="Lengths tried at first, of which the likeliest stays; 1: empty slots tell it."),
    ] = None,
    fills: Annotated[
        int | None,
        typer.Option(
            help="Ways to fill a gap that are compared at each length (1; greedy fills before a text alone)."
        ),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Slots a gap starts with.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most slots of a gap.")] = None,
    stop: o.Stop = None,
    model: o.Model = DEFAULT_MODEL,
    effort: o.Effort = None,
    seed: o.Seed = None,
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    threshold: o.Threshold = None,
    steps: o.Steps = None,
    backend: o.Backend = "auto",
    as_json: o.Json = False,
) -> int:
    """Fill each <FILL> of FILE, or the gap between --prefix and --suffix, and print the whole text.

    A gap sees all text before it (its last part where the context is too short for it) and the first 16 tokens behind.
    """
    sampling = o.SamplingOptions(
        effort=effort,
        seed=seed,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop=tuple(stop or ()),
        threshold=threshold,
        steps=steps,
    )
    o.at_least("--slots", slots, 1)
    o.at_least("--candidates", candidates, 1)
    o.at_least("--fills", fills, 1)
    o.one_of("--backend", backend, o.BACKENDS)
    pins = _pins(pin or [])
    parts = _parts(file, prefix, suffix, apply)

    import redraft
    from redraft.cli.terminal import say, write
    from redraft.cli.watching import finish

    loaded = redraft.load(model, backend=backend)
    stream = loaded.fill_stream(
        parts.around,
        pins=pins,
        slots=slots,
        candidates=candidates,
        fills=fills,
        **o.editing_arguments(sampling, "max_tokens", "stop"),
    )
    interrupted = finish(stream, loaded.tokenizer, live=not as_json)
    done = stream.result
    if as_json:
        write(json.dumps(done.to_json()) + "\n")
    elif not apply:
        texts.put(done.full_text)
    if interrupted:
        say("interrupted: nothing was written" if apply else "interrupted")
        return 130
    if apply:
        assert parts.source is not None
        backup = texts.apply(parts.source, done.full_text)
        say(f"{parts.source.name}: {len(done.texts)} filled, the former text is in {backup.name}")
    return 0


def _pins(given: list[str]) -> dict[int, str]:
    pins: dict[int, str] = {}
    for pin in given:
        slot, colon, text = pin.partition(":")
        if not colon or not slot.isdecimal() or not text:
            raise RequestError(f"--pin must be SLOT:TEXT, such as '3: at noon', not {pin!r}")
        if int(slot) in pins:
            raise RequestError(f"--pin: slot {slot} is pinned twice")
        pins[int(slot)] = text
    return pins


@dataclass(frozen=True)
class _Parts:
    """The texts around the gaps, and the file they come from if that is one."""

    around: list[str]
    source: Source | None = None


def _parts(file: str | None, prefix: str | None, suffix: str | None, apply: bool) -> _Parts:
    """Raises RequestError for files that can't be read and for a text without a gap."""
    if file is not None and (prefix is not None or suffix is not None):
        raise RequestError("give FILE or --prefix and --suffix, not both")
    if file is None and prefix is None and suffix is None:
        raise RequestError(f"give a file with {GAP} in it, or --prefix and --suffix")
    if file is None:
        if apply:
            raise RequestError("--apply needs FILE: with --prefix and --suffix the result is printed")
        if prefix == suffix == texts.STDIN:
            raise RequestError("--prefix and --suffix can't both be stdin")
        ends = ["" if name is None else texts.read(name, empty=True).text for name in (prefix, suffix)]
        if not any(ends):
            raise RequestError("--prefix and --suffix are both empty: there is nothing to go by")
        return _Parts(ends)
    source = texts.read(file)
    if apply:
        texts.check_writable(source)
    around = source.text.split(GAP)
    if len(around) < 2:
        raise RequestError(f"{file} has no {GAP}: put it where text is missing")
    return _Parts(around, source)
