"""redraft eval: quality of a model on data that it was not trained on, and the page that shows it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from redraft.cli import options as o
from redraft.cli.bench import progress, show
from redraft.errors import RequestError
from redraft.hub import DEFAULT_MODEL
from redraft.hub.names import did_you_mean

if TYPE_CHECKING:
    from redraft.api import Model
    from redraft.evaluation.tasks.run import TaskSettings
    from redraft.evaluation.writing import Progress

BENCHMARKS = (
    "gsm8k",
    "humaneval",
    "mbpp",
    "infilling-single-line",
    "infilling-multi-line",
    "infilling-random-span",
)
TASKS = ("likelihood", *BENCHMARKS, "acceptance", "proofread", "filling", "instructions")
STYLES = ("auto", "chat", "raw")


def evaluate(
    context: typer.Context,
    tasks: Annotated[
        list[str],
        typer.Argument(help=f"Any of {', '.join(TASKS)}; or report FILE…, results of --json as one page."),
    ],
    model: o.Model = DEFAULT_MODEL,
    backend: o.Backend = "auto",
    data: Annotated[
        Path | None, typer.Option(help="A prepared folder; for benchmarks, the folder of their files.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Benchmarks: so many questions, drawn by --seed (all); acceptance: prompts a domain (12); proofread: "
            "texts (400)."
        ),
    ] = None,
    decode: o.Decode = "diffusion",
    effort: o.Effort = None,
    temperature: o.Temperature = None,
    threshold: o.Threshold = None,
    steps: o.Steps = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Length limit of an answer (the benchmark's own).")
    ] = None,
    style: Annotated[
        str, typer.Option(help="chat, raw (text to be continued), or auto: chat where the model can.")
    ] = "auto",
    split: Annotated[str, typer.Option(help="likelihood: valid, test or train.")] = "valid",
    documents: Annotated[
        int, typer.Option(help="likelihood: so many documents, drawn by --seed (0: all of them).")
    ] = 300,
    copies: Annotated[
        int, typer.Option(help="likelihood: corrupted copies of each canvas; more narrow the error.")
    ] = 4,
    canvas: Annotated[int | None, typer.Option(help="Slots a canvas.")] = None,
    seed: Annotated[int, typer.Option(help="Names the noise; draws documents and questions.")] = 0,
    unsafe: Annotated[
        bool,
        typer.Option(
            "--unsafe-without-sandbox", help="Run the code a model writes as your own, with no sandbox."
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="report: the folder to write index.html and index.md to.")] = Path(
        "report"
    ),
    as_json: o.Json = False,
) -> None:
    """Evaluate a model. likelihood: AR nats and the diffusion bound on a split of prepared data. Benchmarks: pass@1
    with its interval; code runs in a bubblewrap sandbox. acceptance: drafts confirmed by place and domain, tokens/s
    beside AR, without --data on a sample. proofread: errors found and mended, beside baselines.
    filling: gaps filled from both sides, beside AR, which sees one. instructions: texts changed as told.
    report: one page of all results.

    On the shipped model and two cores likelihood of 300 dialogues takes about two minutes.
    """
    if tasks[0] == "report":
        _report([Path(t) for t in tasks[1:]], out, as_json)
        return
    for task in tasks:
        if task not in TASKS:
            raise RequestError(f"there is no task {task!r}{did_you_mean(task, TASKS)} ({', '.join(TASKS)})")
    o.one_of("--backend", backend, o.BACKENDS)
    o.one_of("--style", style, STYLES)
    o.at_least("--documents", documents, 0)
    o.at_least("--copies", copies, 2)
    o.at_least("--limit", limit, 1)
    checked = o.SamplingOptions(
        decode, effort, seed, max_tokens, temperature, threshold=threshold, canvas=canvas, steps=steps
    )
    if data is None and tasks != ["acceptance"]:
        what = "a folder made by `redraft prepare`" if tasks[0] == "likelihood" else "the folder of its file"
        raise RequestError(f"eval {tasks[0]} needs --data, {what}")
    from redraft.hub import resolve

    found = resolve(model)
    watched = progress()
    told: dict[str, Any] = {"model": found.name, "command": command_line(context)}
    report: list[str] = []
    loaded: Model | None = None
    for task in tasks:
        if task == "likelihood":
            assert data is not None
            told[task], said = _likelihood(found.path, data, watched, split, documents, copies, canvas, seed)
        else:
            import redraft

            loaded = loaded or redraft.load(model, backend=backend)
            if task == "acceptance":
                told[task], said = _acceptance(loaded, data, limit, max_tokens, seed, watched)
                report += said
                continue
            assert data is not None
            if task == "proofread":
                told[task], said = _proofread(loaded, data, limit, seed, watched)
            elif task in ("filling", "instructions"):
                told[task], said = _on_turns(task, loaded, data, split, limit, seed, watched)
            else:
                settings = _settings(checked, limit, style, unsafe)
                told[task], said = _benchmark(task, loaded, data, settings, watched)
        report += said
    watched("")
    show(told, report, as_json)


def _likelihood(
    folder: Path,
    data: Path,
    watched: Progress,
    split: str,
    documents: int,
    copies: int,
    canvas: int | None,
    seed: int,
) -> tuple[dict[str, Any], list[str]]:
    from redraft.evaluation import heldout

    settings = heldout.HeldOutSettings(
        split=split, documents=documents or None, copies=copies, canvas=canvas, seed=seed
    )
    told = heldout.likelihood(folder, data, settings, watched)
    return told, heldout.lines(told)


def _settings(checked: o.SamplingOptions, limit: int | None, style: str, unsafe: bool) -> TaskSettings:
    from redraft.evaluation.tasks.run import TaskSettings

    return TaskSettings(
        limit=limit,
        style=cast(Literal["auto", "chat", "raw"], style),
        decode=checked.decode,
        effort=checked.effort,
        temperature=checked.temperature,
        threshold=checked.threshold,
        canvas=None if checked.canvas is None else int(checked.canvas),
        steps=checked.steps,
        max_tokens=checked.max_tokens,
        seed=checked.seed or 0,
        unsafe=unsafe,
    )


def _benchmark(
    name: str, model: Model, data: Path, settings: TaskSettings, watched: Progress
) -> tuple[dict[str, Any], list[str]]:
    from redraft.evaluation.tasks import TASKS as FILES
    from redraft.evaluation.tasks.run import Writer, lines, run_task
    from redraft.evaluation.writing import machine

    chats = model.tokenizer.template is not None
    told = run_task(FILES[name], cast(Writer, model), data, settings, chats, watched) | machine(model)
    return told, lines(told)


def _acceptance(
    model: Model, data: Path | None, limit: int | None, tokens: int | None, seed: int, watched: Progress
) -> tuple[dict[str, Any], list[str]]:
    from redraft.evaluation.acceptance import Acceptance, acceptance, lines
    from redraft.evaluation.domains import load_domains

    settings = Acceptance(tokens=tokens or Acceptance.tokens, seed=seed)
    domains = load_domains(model, limit or 12, settings.tokens, data, seed)
    told = acceptance(model, domains, settings, watched)
    return told, lines(told)


def _proofread(
    model: Model, data: Path, limit: int | None, seed: int, watched: Progress
) -> tuple[dict[str, Any], list[str]]:
    from redraft.evaluation.damaged import pairs_of
    from redraft.evaluation.editors import Proofreader, example_lines, lines, proofreading
    from redraft.evaluation.writing import machine

    valid, test = pairs_of(data, model.tokenizer, limit, seed)
    stored = model.defaults.proofread.get("threshold")
    told = proofreading(cast(Proofreader, model), valid, test, watched, stored) | machine(model)
    return told, [*lines(told), "", *example_lines(told)]


def _on_turns(
    task: str, model: Model, data: Path, split: str, limit: int | None, seed: int, watched: Progress
) -> tuple[dict[str, Any], list[str]]:
    """The tasks on turns of a prepared split."""
    from redraft.evaluation import filling, following
    from redraft.training.data import Corpus

    corpus = Corpus(data, split)
    documents = [corpus[i] for i in range(len(corpus))]
    if task == "filling":
        told = filling.filling(model, documents, limit or 200, seed=seed, progress=watched)
        return told, filling.lines(told)
    told = following.following(model, documents, limit or 200, seed, watched)
    return told, following.lines(told)


def _report(files: list[Path], out: Path, as_json: bool) -> None:
    from redraft.evaluation.page import write_page

    written = write_page(files, out)
    show({"written": [str(p) for p in written]}, [f"wrote {p}" for p in written], as_json)


def command_line(context: typer.Context) -> str:
    """What was asked for, as it could be typed: the arguments and every option that isn't at its default."""
    words = ["redraft", "eval", *context.params["tasks"]]
    for option in context.command.params:
        value = context.params.get(str(option.name))
        if option.param_type_name != "option" or value == option.default or value is None:
            continue
        flag = max(option.opts, key=len)
        words += [flag] if value is True else [flag, str(value)]
    return shlex.join(w for w in words if w != "--json")
