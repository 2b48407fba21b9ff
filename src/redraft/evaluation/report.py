"""Measures a model from end to end and writes every number that depends on its weights, by one command:

    python -m redraft.evaluation.report results.json --model FOLDER --data DATA --before FOLDER --runs RUN RUN \\
        --card --plots docs/images --docs README.md docs/performance.md

Without --model nothing is measured: card, plots and documents are written anew from results.json. --only renews parts
of it. Everything together takes about 15 minutes on two idle cores with the shipped model; --quick, which only shows
that all of it works, a minute or two.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.errors import RedraftError, RequestError
from redraft.evaluation.benches import BENCHES, Options, run_bench
from redraft.evaluation.card import write_card
from redraft.evaluation.effort import NO_WORSE, step_costs, tuned
from redraft.evaluation.numbers import rewrite_file
from redraft.evaluation.plots import FORMATS, check_plot
from redraft.evaluation.prompts import load_dialogues, pick_prompts
from redraft.evaluation.speed import costs
from redraft.evaluation.writing import machine, unpadded
from redraft.files import renew_manifest, write_atomically
from redraft.hub.generation import GENERATION_CONFIG

if TYPE_CHECKING:
    from redraft.api import Model

SPLITS = ("valid", "test")
AT_LEVEL = (
    "speed",
    "latency",
)  # measured at the fastest level that is as good as AR; the others set their canvases
TUNING_TEXTS = 5000
PROOFREAD_SEED = (
    7  # of the texts that are published; those of smaller seeds were looked at while proofreading was made
)
EDITING = ("proofread", "filling", "instructions")
REPORTED = tuple(name for name in BENCHES if name != "gpu")  # what a CPU can be asked
PARTS = ("likelihood", "samples", *REPORTED, *EDITING, "frontier_before", "training")


def training_cost(run: Path, on: str) -> dict[str, Any]:
    """What a run cost, from its metrics.jsonl: steps, seconds, tokens (by the rate that was logged at each step), and
    the last held-out losses. on: the machine, in words. Raises RequestError when the run left no metrics."""
    path = run / "metrics.jsonl"
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} can't be read: {error}") from None
    logged = [r for r in records if "tokens_per_second" in r]
    if not logged:
        raise RequestError(f"{path} holds no training steps")
    before, tokens = 0.0, 0.0
    for record in logged:
        # A resumed run goes on from its checkpoint's clock, which may lie before the last line logged.
        tokens += record["tokens_per_second"] * max(0.0, record["seconds"] - before)
        before = record["seconds"]
    out: dict[str, Any] = {
        "stage": run.name,
        "steps": logged[-1]["step"],
        "seconds": logged[-1]["seconds"],
        "tokens": round(tokens),
        "machine": on,
    }
    checked = [r for r in records if "valid_ar" in r]
    return out | ({k: checked[-1][k] for k in ("valid_ar", "valid_nelbo")} if checked else {})


def measure(arguments: argparse.Namespace, results: dict[str, Any], say: Callable[[str], None]) -> None:
    """Fills `results` with the wanted parts."""
    import redraft
    from redraft.evaluation.heldout import HeldOutSettings, likelihood
    from redraft.evaluation.samples import samples
    from redraft.hub import resolve
    from redraft.hub.store import parameters

    folder = resolve(arguments.model).path
    model = redraft.load(arguments.model, backend=arguments.backend)
    results |= machine(model) | {"model": arguments.name or model.name, "parameters": parameters(folder)}
    wanted = arguments.only or PARTS
    data = arguments.data
    options = Options(arguments.model, arguments.backend, folder, data, quick=arguments.quick)
    if "proofread" in wanted and arguments.tune and data is not None:
        write_lexicon(folder, model, data)
        model = redraft.load(arguments.model, backend=arguments.backend)
        tune_proofreading(folder, model, data, arguments.quick, say)
        model = redraft.load(arguments.model, backend=arguments.backend)
    if "training" in wanted and arguments.runs:
        on = arguments.machine or f"{results['machine']['cpu']}, {results['machine']['cores']} cores"
        results["training"] = [training_cost(run, on) for run in arguments.runs]
    if "likelihood" in wanted and data is not None:
        few = 4 if arguments.quick else 300
        settings = HeldOutSettings(documents=few, copies=2 if arguments.quick else 4)
        results["likelihood"] = {s: likelihood(folder, data, replace(settings, split=s), say) for s in SPLITS}
    if "samples" in wanted:
        size = {"prompts": 6, "tokens": 16, "shown": 1} if arguments.quick else {}
        results["samples"] = samples(model, load_dialogues(model.tokenizer, data), **size)
    if arguments.tune and "frontier" in wanted:
        tuned_costs = {"step_costs": _costs_here(model, data)}
        tune(folder, lambda raw: raw | tuned_costs)
        model = redraft.load(arguments.model, backend=arguments.backend)
    for name in sorted(
        REPORTED, key=lambda name: name != "frontier"
    ):  # the others run at the points it finds
        if name not in wanted:
            continue
        say(f"bench {name}")
        chosen = replace(options, effort=_no_worse(model)) if name in AT_LEVEL else options
        results[name] = _bench(name, chosen) | {"model": results["model"]}
        if name == "frontier" and arguments.tune:
            tune(folder, partial(tuned, frontier=results[name]))
            model = redraft.load(arguments.model, backend=arguments.backend)
    if data is not None:
        _edits(model, data, wanted, arguments.quick, results, say)
    if "frontier_before" in wanted and arguments.before is not None:
        say("bench frontier, before distillation")
        told = _bench("frontier", replace(options, model=str(arguments.before), folder=arguments.before))
        results["frontier_before"] = told | {"model": f"{results['model']} before distillation"}


def _bench(name: str, options: Options) -> dict[str, Any]:
    """A bench in a process of its own, as its command runs it: threads that other measurements have left behind don't
    take its cores."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(_measured, name, options).result()


def _measured(name: str, options: Options) -> dict[str, Any]:
    import redraft

    return run_bench(name, redraft.load(options.model, backend=options.backend), options, say)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _edits(
    model: Model,
    data: Path,
    wanted: Sequence[str],
    quick: bool,
    results: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """How well it proofreads, fills gaps and follows instructions."""
    if "proofread" in wanted:
        from redraft.evaluation.damaged import pairs_of
        from redraft.evaluation.editors import proofreading

        valid, test = pairs_of(data, model.tokenizer, 4 if quick else 2000, seed=PROOFREAD_SEED)
        stored = model.defaults.proofread.get("threshold")
        results["proofread"] = proofreading(model, valid, test, say, stored) | machine(model)
    if "filling" in wanted or "instructions" in wanted:
        from redraft.evaluation.filling import filling
        from redraft.evaluation.following import following
        from redraft.training.data import Corpus

        corpus = Corpus(data, "test")
        documents = [corpus[i] for i in range(len(corpus))]
        if "filling" in wanted:
            results["filling"] = filling(model, documents, count=2 if quick else 400, progress=say)
        if "instructions" in wanted and "<|edit|>" in model.tokenizer.special_ids:
            results["instructions"] = following(model, documents, 2 if quick else 200, progress=say)


def tune(folder: Path, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrites the model's generation_config.json, a row of numbers on one line; changed: from what it holds to what
    was measured."""
    path = folder / GENERATION_CONFIG
    raw = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    told = re.sub(
        r"\[[-\d.e,\s]*\]", lambda row: " ".join(row[0].split()), json.dumps(changed(raw), indent=2)
    )
    write_atomically(path, (told + "\n").encode())
    renew_manifest(folder)


def _costs_here(model: Model, data: Path | None) -> dict[str, float]:
    """What an evaluation costs by canvas length on this machine, which canvases of changing length choose by."""
    (prompt,) = pick_prompts(load_dialogues(model.tokenizer, data), 1, 1)
    return step_costs(costs(model, unpadded(model.backend), prompt))


def write_lexicon(folder: Path, model: Model, data: Path) -> None:
    """The words of the training texts, for proofreading; where there are none the folder's stay as they are."""
    from redraft.editing.lexicon import counted, save
    from redraft.evaluation.damaged import split_texts

    if (data / "train.bin").exists():
        save(folder, counted(split_texts(data, "train", model.tokenizer)))
        renew_manifest(folder)


def tune_proofreading(
    folder: Path, model: Model, data: Path, quick: bool, say: Callable[[str], None]
) -> None:
    """Chooses how proofreading weighs what canvas and AR self say, on validation texts."""
    from redraft.evaluation.channel import NothingToLearn, tuned_channel
    from redraft.evaluation.damaged import tuning_pairs

    pairs = tuning_pairs(data, model.tokenizer, 60 if quick else TUNING_TEXTS, seed=1)
    say(f"tuning proofreading on {len(pairs)} texts")
    try:
        tune(folder, lambda raw: tuned_channel(raw, model, pairs))
    except NothingToLearn as error:
        say(f"{error}: it stays as it was")


def _no_worse(model: Model) -> str | None:
    """The level of the fastest text that is as good as AR's, where the model has levels."""
    return NO_WORSE if NO_WORSE in model.defaults.effort else None


def publish(arguments: argparse.Namespace, results: dict[str, Any], say: Callable[[str], None]) -> None:
    """Card, plots and documents from results alone."""
    if arguments.card is not None:
        say(f"wrote {write_card(results, arguments.card)}")
    if arguments.plots is not None:
        for name in [n for n in REPORTED if n in results]:
            path = arguments.plots / f"{name}{arguments.format}"
            BENCHES[name].plot(results[name], path)
            say(f"wrote {path}")
    for path in arguments.docs:
        say(f"{'rewrote' if rewrite_file(path, results) else 'unchanged'} {path}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m redraft.evaluation.report", description=(__doc__ or "").split("\n")[0]
    )
    made.add_argument("results", type=Path, help="the JSON file of all measurements, read if it exists")
    made.add_argument("--model", help="measure this model (a name or folder)")
    made.add_argument("--name", help="what the reports call it; its folder's name otherwise")
    made.add_argument("--backend", default="auto")
    made.add_argument("--data", type=Path, help="a prepared folder with valid and test splits")
    made.add_argument("--before", type=Path, help="the model's folder before distillation")
    made.add_argument(
        "--runs", type=Path, nargs="+", default=[], help="run folders, one a stage, for the cost"
    )
    made.add_argument("--machine", help="where it was trained, in words; this machine otherwise")
    made.add_argument("--only", nargs="+", choices=PARTS, help="measure these parts alone")
    made.add_argument(
        "--tune", action="store_true", help="write the levels that frontier finds into generation_config.json"
    )
    made.add_argument(
        "--quick", action="store_true", help="the least that runs through everything; no result"
    )
    made.add_argument(
        "--card", type=Path, metavar="FOLDER", help="write the model card into this model's folder"
    )
    made.add_argument("--plots", type=Path, metavar="FOLDER", help="draw every bench into this folder")
    made.add_argument("--format", default=".svg", choices=FORMATS, help="of the plots")
    made.add_argument(
        "--docs", type=Path, nargs="+", default=[], help="Markdown files whose numbers are renewed"
    )
    return made


def main(given: Sequence[str] | None = None) -> int:
    """Exit status as for `redraft`: 0 done, 1 it failed, 2 the request is wrong."""
    arguments = parser().parse_args(given)
    try:
        results: dict[str, Any] = {}
        if arguments.results.exists():
            results = _read(arguments.results)
        elif arguments.model is None:
            raise RequestError(f"there is no {arguments.results}: give --model to measure one")
        if arguments.plots is not None:
            check_plot(arguments.plots / f"plot{arguments.format}")
        if arguments.model is not None:
            measure(arguments, results, say)
            write_atomically(
                arguments.results, (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode()
            )
        publish(arguments, results, say)
    except RedraftError as error:
        say(f"{os.path.basename(sys.argv[0])}: {error}")
        return error.exit_code
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} can't be read: {error}") from None
    if not isinstance(results, dict):
        raise RequestError(f"{path} must hold a JSON object")
    return results


if __name__ == "__main__":
    sys.exit(main())
