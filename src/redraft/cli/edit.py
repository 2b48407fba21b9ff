"""redraft edit: texts edited in place, shown as a diff first."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from redraft.cli import options as o
from redraft.cli import texts
from redraft.cli.texts import Source
from redraft.errors import RequestError
from redraft.hub import DEFAULT_MODEL

DIFF_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def edit(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE... [INSTRUCTION]", help="Texts (- for stdin), then what to change."),
    ],
    instruction: Annotated[
        str | None, typer.Option(help="What to change; all arguments are files then.")
    ] = None,
    lines: Annotated[str | None, typer.Option(help="A:B: only lines A to B, counted from 1.")] = None,
    span: Annotated[
        list[str] | None,
        typer.Option(help="A:B: only characters A up to B, counted from 0; may be repeated."),
    ] = None,
    regex: Annotated[str | None, typer.Option(help="Only what this regular expression finds.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="Share of a selection that is written anew, 1 for all.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Probability from which another token is put in place of one.")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write the files; FILE~ keeps the former text.")
    ] = False,
    model: o.Model = DEFAULT_MODEL,
    effort: o.Effort = None,
    seed: o.Seed = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most slots that a selection may grow by.")] = None,
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    steps: o.Steps = None,
    backend: o.Backend = "auto",
    as_json: o.Json = False,
) -> int:
    """Edit texts in place and show a diff; --apply writes them.

    With an INSTRUCTION it is carried out. With --lines, --span or --regex alone the selection is written anew. With
    neither the text is proofread. What lies outside a selection stays byte for byte. From stdin the edited text is
    printed, not a diff.
    """
    sampling = o.SamplingOptions(
        effort=effort,
        seed=seed,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        threshold=threshold,
        steps=steps,
    )
    o.one_of("--backend", backend, o.BACKENDS)
    names, instruction = _told(files, instruction)
    where = {
        "lines": _pair("--lines", lines),
        "spans": [_pair("--span", s) for s in span or []],
        "regex": regex,
    }
    sources = _sources(names, apply, where)

    import redraft

    loaded = redraft.load(model, backend=backend)
    arguments = where | {"instruction": instruction, "strength": strength}
    arguments |= o.editing_arguments(sampling, "max_tokens")
    told = []
    for source in sources:
        interrupted, result = _edit(loaded, source, arguments, apply, as_json)
        told.append({"file": source.name} | result.to_json())
        if interrupted:
            break
    if as_json:
        from redraft.cli.terminal import write

        write(json.dumps({"files": told} if len(sources) > 1 else result.to_json()) + "\n")
    return 130 if interrupted else 0


def _edit(
    loaded: Any, source: Source, arguments: dict[str, Any], apply: bool, as_json: bool
) -> tuple[bool, Any]:
    """Edits one text and shows or writes it: whether it was interrupted, and the Edit."""
    from redraft.cli.terminal import say
    from redraft.cli.watching import finish

    stream = loaded.edit_stream(source.text, **arguments)
    interrupted = finish(stream, loaded.tokenizer, live=not as_json)
    result = stream.result
    if not (as_json or apply):
        if source.name == texts.STDIN:
            texts.put(result.text)
        else:
            _show(result.diff(source.name))
    count = f"{source.name}: {len(result.hunks)} changes · NFE {result.nfe}"
    if interrupted:
        say(f"{count} · interrupted" + (", nothing was written" if apply else ""))
    elif apply and result.hunks:
        backup = texts.apply(source, result.text)
        say(f"{count} · the former text is in {backup.name}")
    elif not as_json:
        say(count)
    return interrupted, result


def _show(diff: str) -> None:
    """A diff to stdout, in colours on a terminal."""
    from redraft.cli.terminal import console, is_terminal, safe

    if not is_terminal(sys.stdout):
        texts.put(diff)
        return
    from rich.text import Text

    out = console(sys.stdout)
    for line in diff.splitlines():
        out.print(Text(safe(line), DIFF_STYLES.get(line[:1], "none"), overflow="fold"))


def _told(files: list[str], instruction: str | None) -> tuple[list[str], str | None]:
    """Files and instruction: the last of several arguments is one if it is no file and has white space in it."""
    last = files[-1]
    # An empty one is no file, though Path takes it for the present folder.
    if instruction is None and len(files) > 1 and last != "-" and not (last and Path(last).exists()):
        if not re.search(r"\s", last.strip()) and last.strip():
            raise RequestError(f"there is no file {last} (an instruction of one word: --instruction {last})")
        files, instruction = files[:-1], last
    if instruction is not None and not instruction.strip():
        raise RequestError("the instruction is empty: say what to change")
    twice = next((name for at, name in enumerate(files) if name in files[:at]), None)
    if twice is not None:
        raise RequestError(f"{twice} is named twice")
    return files, instruction


def _pair(flag: str, given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", given)
    if match is None:
        raise RequestError(f"{flag} must be A:B with whole numbers, not {given!r}")
    return int(match[1]), int(match[2])


def _sources(names: list[str], apply: bool, where: dict[str, Any]) -> list[Source]:
    """All texts, read and checked before any is edited."""
    from redraft.editing import spans

    sources = []
    for name in names:
        source = texts.read(name)
        if apply:
            texts.check_writable(source)
        spans.chosen(source.text, where["spans"], where["lines"], where["regex"])
        sources.append(source)
    return sources
