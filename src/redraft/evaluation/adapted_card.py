"""The README.md of a model that is an adapter on a base: what was measured on it, what it learned from, what that cost.

    python -m redraft.evaluation.adapted_card RESULTS.json --runs RUN … --card adapters/redraft-135m

RESULTS.json is what `redraft eval acceptance --json` printed. Everything else is read from the runs' recipe.yaml and
metrics.jsonl, or from what `keep_run` kept of them, and from the adapter's own configs. Run folders need PyYAML.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from redraft.denoiser.adapter_config import ADAPTER_WEIGHTS, AdapterConfig
from redraft.errors import RedraftError, RequestError
from redraft.evaluation.card import About, front_matter
from redraft.evaluation.report import training_cost
from redraft.evaluation.tables import Results, table, where
from redraft.files import renew_manifest, write_atomically
from redraft.hub.catalogue import BASES

# Of the files that recipes name, by how they begin: what they are and under which licence.
SOURCES = {
    "dialogues": ("Schema-Guided Dialogue, training split", "CC BY-SA 4.0"),
    "textbooks_openstax": ("OpenStax textbooks", "CC BY 4.0"),
    "math_openstax_exercises": ("OpenStax exercises", "CC BY 4.0"),
    "math_gsm8k": ("GSM8K, training split", "MIT"),
    "books_classic_subset": ("classic books", "public domain"),
    "docs_peps": ("Python Enhancement Proposals", "public domain"),
    "docs_tldr": ("tldr-pages", "CC BY 4.0"),
    "docs_rust_book": ("The Rust Programming Language", "MIT or Apache-2.0"),
    "docs_react": ("react.dev", "CC BY 4.0"),
    "docs_exercism_python": ("Exercism's Python track", "MIT"),
    "docs_factbook": ("World Factbook", "CC0"),
    "rewrite_wikisplit": ("WikiSplit", "CC BY-SA 4.0"),
    "instruct_oasst_code": ("code instructions of OctoPack", "MIT or Apache-2.0"),
    "*": ("Python packages, as their wheels hold them", "each package's own: MIT, BSD or Apache-2.0"),
}


def card(results: Results, runs: Sequence[Mapping[str, Any]], settings: AdapterConfig, size: int) -> str:
    """The text. results: of eval acceptance; runs: of `read_run`, a stage each, none to leave the training out; size:
    bytes of the adapter's file."""
    told, base = results["acceptance"], BASES[settings.base]
    name = results["model"]
    sources = list(dict.fromkeys(source for run in runs for source in _sources(run["recipe"])))
    shared = any("SA" in licence for _, _, licence in sources)
    about = About(
        licence="cc-by-sa-4.0" if shared else base.licence,
        datasets=(),
        tags=("diffusion", "text-diffusion", "redraft", "lora", "speculative-decoding"),
    )
    head = front_matter(about, base.repository)
    intro = (
        f"A diffusion language model made of {base.repository}: a gated adapter of {size / 2**20:.1f} MiB (rank "
        f"{settings.rank}, canvases of {settings.canvas_length}) that acts on canvas rows alone{_heads(settings)}. "
        f"{_entry(settings)}The "
        "AR model inside is the base, bit for bit; decode `verified` writes its token ids with fewer evaluations, "
        "decode `diffusion` and `fill` write from the canvas by itself."
    )
    use = (
        f"```sh\nredraft models pull {name}\n"
        f'redraft run --model {name} --decode verified "Write a Python function that reverses a string."\n```'
    )
    parts = [
        head,
        f"# {name}",
        intro,
        "## Use",
        use,
        "## Drafts that its AR self confirms",
        _acceptance(told),
    ]
    parts += ["## Speed", _speed(told), "## Plain diffusion", _diffusion(told), where(told)]
    parts += [f"Measured by `{results['command']}`."]
    if runs:
        parts += [
            "## Training",
            _training(runs),
            "## Data and licences",
            _data(sources, base.repository, base.licence, shared),
        ]
    parts += ["## Limits", _limits(base.repository)]
    return "\n\n".join(parts) + "\n"


def _each(told: Results) -> list[tuple[str, Mapping[str, Any]]]:
    return [*told["domains"].items(), ("all", told["overall"])]


def _acceptance(told: Results) -> str:
    longest = max(len(d["places"]) for _, d in _each(told))
    rows = []
    for name, d in _each(told):
        shares = [
            f"{100 * p['share']:.0f} [{100 * p['interval'][0]:.0f}, {100 * p['interval'][1]:.0f}]"
            for p in d["places"]
        ]
        rows.append([name, *shares, *[""] * (longest - len(shares)), f"{d['accepted_in_a_row']:.2f}"])
    head = ["domain", *(f"place {i}" for i in range(1, longest + 1)), "in a row"]
    sources = "; ".join(f"{name}: {d['prompts']} of {d['source']}" for name, d in told["domains"].items())
    return table(head, rows) + (
        "\n\nOf drafted tokens whose predecessors in the draft were all right, those that the AR self chose too, % "
        "with 95 % Wilson intervals (they count tokens as independent, which those of one answer aren't); in a row: "
        f"mean over drafts. Greedy answers of up to {told['tokens_at_most']} tokens. Prompts, none trained on: "
        f"{sources}."
    )


def _speed(told: Results) -> str:
    rows = []
    for name, d in _each(told):
        ar, verified = d["modes"]["ar"], d["modes"]["verified"]
        low, high = d["ratio_interval"]["verified"]
        rows.append(
            [
                name,
                f"{verified['tokens_per_forward']:.2f}",
                f"{d['strided_tokens_per_forward']:.2f}",
                f"{ar['tokens_per_second']:.0f}",
                f"{verified['tokens_per_second']:.0f}",
                f"{d['ratio']['verified']:.2f} [{low:.2f}, {high:.2f}]",
                f"{100 * d['same_as_ar']:.0f} %",
            ]
        )
    head = [
        "domain",
        "TPF",
        "TPF, whole drafts",
        "AR, tokens/s",
        "verified, tokens/s",
        "× AR",
        "same token ids",
    ]
    return table(head, rows) + (
        "\n\nTPF: tokens an evaluation, by the drafts' default layout and with every canvas proposed whole. AR: the "
        "base's own, by the fastest loop of the same engine. × AR: of tokens a second, with a 95 % interval over "
        "prompts."
    )


def _diffusion(told: Results) -> str:
    rows = []
    for name, d in _each(told):
        for mode in ("ar", "diffusion"):
            m = d["modes"][mode]
            rows.append(
                [
                    f"{name}, {mode}",
                    f"{m['tokens_per_forward']:.2f}",
                    f"{m['tokens_per_second']:.0f}",
                    f"{m['ar_nll']:.3f}",
                    f"{m['entropy']:.2f}",
                    f"{m['distinct_3']:.3f}",
                    f"{m['repetition_4']:.3f}",
                ]
            )
    head = ["domain, mode", "TPF", "tokens/s", "AR NLL", "entropy", "distinct-3", "repetition-4"]
    return table(head, rows) + (
        "\n\nAR NLL: nats a token under the AR self at temperature 1, of equally many tokens of each mode, both at "
        "temperature 0; likelihood alone flatters text that repeats itself, so variety stands beside it."
    )


def _entry(settings: AdapterConfig) -> str:
    if settings.canvas_entry is None:
        return ""
    return f"Open slots enter behind the base's first {settings.canvas_entry} layers. "


def _heads(settings: AdapterConfig) -> str:
    told = [f"a Markov head of rank {settings.markov_rank}"] if settings.markov_rank else []
    told += ["a confidence head"] if settings.confidence else []
    return f", with {' and '.join(told)} for its drafts" if told else ""


def _training(runs: Sequence[Mapping[str, Any]]) -> str:
    lines = [_stage(run) for run in runs]
    return "\n\n".join(
        [*lines, "The base's weights were frozen. Recipes: as resolved in each run's recipe.yaml."]
    )


def _stage(run: Mapping[str, Any]) -> str:
    cost, recipe = run["cost"], run["recipe"]
    canvas, rate = recipe["canvas"], cost["tokens"] / max(cost["seconds"], 1e-9)
    slots = canvas.get("slots") or canvas["length"]
    out = (
        f"`{recipe['name']}`: {cost['steps']} steps in {cost['seconds'] / 60:.0f} minutes on {cost['machine']}: "
        f"{cost['tokens'] / 1e6:.2f} million clean tokens ({rate:.0f} a second), with {canvas['per_row']} canvases of "
        f"{slots} slots over every {recipe['train']['row_length']}."
    )
    first, last = run.get("first"), run.get("last")
    accepted = partial(_accepted, heads=recipe.get("adapter", {}).get("markov_rank", 0) > 0)
    if first and last:
        out += (
            f" Held-out drafts accepted in a row: {accepted(first)} before, {accepted(last)} after; holes: "
            f"{first['valid_fill']:.2f} and {last['valid_fill']:.2f} nats a slot."
        )
    return out


def _accepted(measured: Mapping[str, Any], heads: bool) -> str:
    """heads: whether there is a Markov head, with which drafts are live."""
    alone, live = measured["valid_accepted"], measured.get("valid_accepted_live")
    return f"{alone:.2f}" + ("" if live is None or not heads else f" (with the Markov head {live:.2f})")


def _sources(recipe: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Use, what, licence of each file that the recipe reads, each once."""
    answers = recipe.get("answers") or {}
    given = [("text", s) for s in (recipe.get("prepare") or {}).get("sources", [])]
    given += [("prompts, answered by the base", s) for s in answers.get("sources", [])]
    found: dict[tuple[str, str, str], None] = {}
    for use, source in given:
        stem = Path(source["path"]).name.partition(".")[0]
        known = next((told for begin, told in SOURCES.items() if stem.startswith(begin)), (stem, "not known"))
        found[(use, *known)] = None
    return list(found)


def _data(sources: Sequence[tuple[str, str, str]], repository: str, licence: str, shared: bool) -> str:
    rows = [[what, use, terms] for use, what, terms in sources]
    told = table(["source", "used as", "licence"], rows, numbers=False)
    terms = f"The base, {repository}, is under {licence} and no part of this folder. "
    if shared:
        terms += (
            "Text under CC BY-SA was among the training text: this adapter is under CC BY-SA 4.0; name the sources, "
            "and pass on what you make of it under the same licence. "
        )
    return f"{told}\n\n{terms}The program that runs it is under Apache-2.0."


def _limits(repository: str) -> str:
    return (
        f"It knows what {repository} knows, and errs as that does: it is a small model. Drafts are worth most where "
        "text is predictable; where few are confirmed, `verified` may be slower than `ar`. What the canvas writes by "
        "itself (`diffusion`, `fill`) is no better than the table above says. Trained on the base as it was fetched: "
        "on another quantization of it `ar` and `verified` are still that base's, and fewer drafts may be confirmed."
    )


def read_run(run: Path, machine: str) -> dict[str, Any]:
    """A run's recipe, cost and first and last measurement; run: its folder, or a file that `keep_run` wrote. Raises
    RequestError for what is neither."""
    if run.is_file():
        return _kept(run)
    cost = training_cost(run, machine)
    import yaml

    try:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RequestError(f"{run / 'recipe.yaml'} can't be read: {error}") from None
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    measured = [record for line in lines if "valid_accepted" in (record := json.loads(line))]
    ends = {"first": measured[0], "last": measured[-1]} if measured else {}
    return {"recipe": recipe, "cost": cost} | ends


def keep_run(run: Path, machine: str, folder: Path) -> Path:
    """Writes what `read_run` reads of a run, which outlives its folder, to folder/NAME.json, by its recipe's name.
    Where on a machine its files lay isn't kept."""
    told = _without_places(read_run(run, machine))
    path = folder / f"{told['recipe']['name']}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def _without_places(told: Any) -> Any:
    """With the last two names of absolute paths in their place."""
    if isinstance(told, dict):
        return {name: _without_places(value) for name, value in told.items()}
    if isinstance(told, list):
        return [_without_places(value) for value in told]
    if isinstance(told, str) and Path(told).is_absolute():
        return "/".join(Path(told).parts[1:][-2:])
    return told


def _kept(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} can't be read: {error}") from None
    if not isinstance(told, dict) or not {"recipe", "cost"} <= told.keys():
        raise RequestError(f"{path} holds no record of a run")
    return told


def main(given: Sequence[str] | None = None) -> int:
    """Exit status as for `redraft`."""
    parser = argparse.ArgumentParser(prog="python -m redraft.evaluation.adapted_card", description=__doc__)
    parser.add_argument("results", type=Path, help="what redraft eval acceptance --json printed")
    parser.add_argument("--card", type=Path, required=True, metavar="FOLDER", help="the adapter's folder")
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        default=[],
        help="a run's folder or record for each stage: cost and data",
    )
    parser.add_argument("--machine", help="where it was trained, in words; else as the measurement says")
    arguments = parser.parse_args(given)
    try:
        print(
            f"wrote {write(arguments.results, arguments.card, arguments.runs, arguments.machine)}",
            file=sys.stderr,
        )
    except RedraftError as error:
        print(f"adapted_card: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def write(results: Path, folder: Path, runs: Sequence[Path] = (), machine: str | None = None) -> Path:
    """Writes README.md into an adapter's folder, and its manifest anew where it has one; returns the README's path.

    Raises RequestError for results of another measurement, or of another model than the folder's.
    """
    try:
        told = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{results} can't be read: {error}") from None
    if not isinstance(told, dict) or "acceptance" not in told:
        raise RequestError(f"{results} is no result of redraft eval acceptance --json")
    if told["model"] != folder.name:
        raise RequestError(f"{results} was measured on {told['model']}, not on {folder.name}")
    settings = AdapterConfig.read(folder)
    if settings.base not in BASES:
        raise RequestError(f"{folder} goes on {settings.base}, which has no name that others know")
    on = told["acceptance"]["machine"]
    trained = [read_run(run, machine or f"{on['cpu']}, {on['cores']} cores") for run in runs]
    path = folder / "README.md"
    text = card(told, trained, settings, (folder / ADAPTER_WEIGHTS).stat().st_size)
    write_atomically(path, text.encode())
    renew_manifest(folder)
    return path


if __name__ == "__main__":
    sys.exit(main())
