"""A model's README.md: what it is, what it learned from and at what cost, and what was measured on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.evaluation import tables
from redraft.evaluation.tables import Results
from redraft.files import renew_manifest, write_atomically


@dataclass(frozen=True)
class About:
    """What no measurement says. licence: an id of Hugging Face's list; data: one paragraph on what the model learned
    from; datasets: ids for the front matter; recipe: what trains it, a sentence."""

    licence: str = "cc-by-sa-4.0"
    data: str = (
        "The training split of the Schema-Guided Dialogue dataset (google-research-datasets/"
        "dstc8-schema-guided-dialogue, https://github.com/google-research-datasets/dstc8-schema-guided-dialogue), "
        "dialogues between a user and an assistant of a customer-service kind, under CC BY-SA 4.0. 300 dialogues of it "
        "were held out (`valid` below); the dataset's dev and test splits were never trained on, and the test split "
        "has services that the training split lacks."
    )
    terms: str = (
        "The weights, and the words of that text with their counts (words.txt, by which proofreading knows what was "
        "ever written), are under CC BY-SA 4.0 like the text they were trained on: name the dataset, and pass on what "
        "you make of them under the same licence. The program that runs them is under Apache-2.0."
    )
    datasets: tuple[str, ...] = ("schema_guided_dstc8",)
    language: str = "en"
    tags: tuple[str, ...] = ("diffusion", "text-diffusion", "redraft", "dialogue")
    recipe: str = (
        "`recipes/release.py` in the redraft repository: tiny.yaml from scratch, tiny-edit.yaml (dialogue goes on, and "
        "canvases that start from text with errors, or from text that an instruction changes, join it, and the first "
        "drafts), tiny-distill.yaml (the canvas learns the AR self's greedy continuations behind a draft token). The "
        "shipped weights are 0.75 of the last stage's and 0.25 of the one before; the draft token is the last one's. "
        "All of it was one command, `make tiny`, beside which tests of the package ran at low priority."
    )


def write_card(results: Results, folder: Path, about: About | None = None) -> Path:
    """Writes README.md into a model's folder, and its manifest anew where it has one; returns the README's path."""
    path = folder / "README.md"
    write_atomically(path, card(results, about or About()).encode())
    renew_manifest(folder)
    return path


def card(results: Results, about: About) -> str:
    """The text. Every number comes from `results`; what they don't hold is left out."""
    parts = [front_matter(about), f"# {results['model']}", _intro(results)]
    parts += ["## Use", _use(results)]
    parts += ["## Data and licence", about.data, about.terms]
    if results.get("training"):
        recipe = f"Recipe: {about.recipe}"
        parts += ["## Training", tables.training(results), recipe]
    if results.get("likelihood"):
        note = (
            "Of dialogues that were not trained on. AR: the encode role, exact. NELBO: the denoise role, an upper "
            "bound on its negative log-likelihood, estimated by Monte Carlo (± its standard error)."
        )
        parts += ["## Likelihood", tables.likelihood(results), note]
    parts += _frontiers(results)
    if "speed" in results:
        parts += ["## Speed", tables.speed(results)]
    if "samples" in results:
        parts += ["## Samples", _samples(results["samples"])]
    parts += ["## Limits", _limits(results)]
    return "\n\n".join(parts) + "\n"


def front_matter(about: About, base: str | None = None) -> str:
    """YAML that Hugging Face reads; strings are quoted as JSON, which YAML contains. base: the repository of the model
    that this one is made of."""

    def listed(values: tuple[str, ...]) -> str:
        return "".join(f"\n- {json.dumps(v)}" for v in values)

    lines = [
        "---",
        "library_name: redraft",
        "pipeline_tag: text-generation",
        f"license: {about.licence}",
        f"language:{listed((about.language,))}",
        *([f"datasets:{listed(about.datasets)}"] if about.datasets else []),
        *([f"base_model: {json.dumps(base)}"] if base else []),
        f"tags:{listed(about.tags)}",
        "---",
    ]
    return "\n".join(lines)


def _intro(results: Results) -> str:
    size = f" of {results['parameters'] / 1e6:.1f}M parameters" if results.get("parameters") else ""
    return (
        f"A diffusion language model{size} for short dialogues, trained from scratch with redraft: text is written by "
        "denoising a canvas of several tokens at once, and the same weights also write token by token (AR)."
    )


def _use(results: Results) -> str:
    name = results["model"]
    return (
        "```sh\n"
        "pip install redraft\n"
        f'redraft run --model {name} "Hi, I need a table for two in San Jose tonight."\n'
        "```\n\n"
        "```python\n"
        "import redraft\n\n"
        f'model = redraft.load("{name}")\n'
        'print(model.generate([{"role": "user", "content": "Hi, I need a table for two."}]).text)\n'
        "```"
    )


def _frontiers(results: Results) -> list[str]:
    """Quality beside speed, before distillation too where that was measured."""
    if "frontier" not in results:
        return []
    parts = [
        "## Quality beside speed",
        "TPF: tokens committed per network evaluation, commits counted. AR NLL: nats a token of what was written, "
        "under the model's own AR role at temperature 1. Over AR's frontier: how much higher a point's AR NLL is than "
        "that of AR, swept over temperature, at equal distinct-3, with a 95 % interval. All over equally many tokens.",
        tables.frontier(results),
    ]
    if "frontier_before" in results:
        parts += [
            "Before distillation, the same prompts:",
            tables.frontier(results, "frontier_before"),
            _gain(results),
        ]
    return parts


def _gain(results: Results) -> str:
    """What distillation did to the points that both tables have."""
    before = {p["name"]: p for p in results["frontier_before"]["points"]}
    rows = [
        [
            p["name"],
            f"{before[p['name']]['tokens_per_forward']:.2f} → {p['tokens_per_forward']:.2f}",
            f"{before[p['name']]['ar_nll']:.3f} → {p['ar_nll']:.3f}",
            f"{before[p['name']]['distinct_3']:.3f} → {p['distinct_3']:.3f}",
            f"{before[p['name']]['entropy']:.2f} → {p['entropy']:.2f}",
        ]
        for p in results["frontier"]["points"]
        if p["name"] in before
    ]
    return "Before → after:\n\n" + tables.table(["point", "TPF", "AR NLL", "distinct-3", "entropy"], rows)


def _samples(told: Mapping[str, Any]) -> str:
    few = len(told["best"])
    parts = [
        f"Replies to {told['prompts']} prompts ({told['source']}; seed {told['seed']}) with the model's default "
        f"settings, ranked by AR NLL a token: the {few} likeliest and the {few} unlikeliest, not picked by hand."
    ]
    for title, key in (("Likeliest", "best"), ("Unlikeliest", "worst")):
        lines = [f"**{title}**"]
        for sample in told[key]:
            lines.append(
                f"> {_line(sample['prompt'])}\n>\n> **→ {_line(sample['reply'])}** "
                f"({sample['ar_nll']:.2f} nats a token)"
            )
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts)


def _line(text: str) -> str:
    """Model text in one line of Markdown: nothing in it is markup."""
    flat = " ".join(text.split())
    return "".join("\\" + c if c in "\\`*_[]<>#|!" else c for c in flat)


def _limits(results: Results) -> str:
    size = f"With {results['parameters'] / 1e6:.1f}M parameters it" if results.get("parameters") else "It"
    return (
        f"{size} knows bookings, weather, media and the like as they occur in its data and little else. It invents "
        "names, times and prices, forgets what was agreed, books nothing, and speaks English only. It is made to show "
        "how diffusion language models work, not to serve customers."
    )
