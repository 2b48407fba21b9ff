"""Editors side by side on the same damaged texts: a model's own, and what it has to beat."""

from __future__ import annotations

import importlib.resources
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from redraft.errors import RequestError
from redraft.evaluation.proofread import Counts, Triple, changes, count, pieces, score, score_by_kind
from redraft.evaluation.tables import table
from redraft.evaluation.writing import Progress
from redraft.hub.tokenizer import Tokenizer

Editor = Callable[[str], str]
ByThreshold = Callable[[str, float], str]
MOST_FALSE = 0.02  # of the texts without error
OUTCOMES = ("mended", "wrong", "missed", "false")
EXAMPLES = 20  # of each outcome
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
VALID, TEST = "proofread_valid.jsonl", "proofread_test.jsonl"
_WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")


class Rewriter(Protocol):
    """What is asked of a redraft.Model here."""

    def generate(self, prompt: Any, **options: Any) -> Any: ...


class Proofreader(Rewriter, Protocol):
    """A redraft.Model that edits: `edit` returns what has `text`."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def edit(self, text: str, **options: Any) -> Any: ...


@dataclass(frozen=True)
class Pair:
    """A text with its error; kind "" and damaged == original where there is none."""

    original: str
    damaged: str
    kind: str = ""


def load_pairs(path: Path) -> list[Pair]:
    """From JSON lines {"original", "damaged", "kind"}. Raises RequestError for anything else."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} can't be read: {error}") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        try:
            told = json.loads(line)
            pair = Pair(told["original"], told["damaged"], told.get("kind", ""))
            if not all(isinstance(v, str) for v in (pair.original, pair.damaged, pair.kind)):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RequestError(f"{path}, line {number}: needs original, damaged and kind, as text") from None
        pairs.append(pair)
    if not pairs:
        raise RequestError(f"{path} holds no texts")
    return pairs


# Baselines


def nothing(text: str) -> str:
    """Leaves every text as it is."""
    return text


def spelling(distance: int = 2) -> Editor:
    """symspellpy with its own English dictionary: a word that isn't in it becomes the most frequent of the nearest
    words within an edit distance of 1 or 2; case is kept, and so is all that is no word. Needs redraft[eval]."""
    try:
        from symspellpy import SymSpell, Verbosity
    except ImportError:
        raise RequestError("the spelling baseline needs symspellpy: pip install 'redraft[eval]'") from None
    checker = SymSpell(max_dictionary_edit_distance=distance)
    words = importlib.resources.files("symspellpy").joinpath("frequency_dictionary_en_82_765.txt")
    with importlib.resources.as_file(words) as path:
        if not checker.load_dictionary(str(path), 0, 1, encoding="utf-8"):
            raise RequestError("symspellpy has lost its dictionary: install it anew")

    def mended(match: re.Match[str]) -> str:
        word = match[0]
        if len(word) < 2 or not word.isascii() or "'" in word or word.lower() in checker.words:
            return word
        found = checker.lookup(word, Verbosity.TOP, distance, transfer_casing=True)
        return str(found[0].term) if found else word

    return lambda text: _WORD.sub(mended, text)


def rewriting(model: Rewriter, prompt: Callable[[str], Any], **options: Any) -> Editor:
    """The model's AR self writes the whole text again, greedily. prompt: what makes it do so for a text, as for
    Model.generate; options likewise. White space around the text stays as it was."""

    def rewrite(text: str) -> str:
        bare = text.strip()
        if not bare:
            return text
        told = {"decode": "ar", "temperature": 0.0, "seed": 0} | options
        return text.replace(bare, model.generate(prompt(text), **told).text.strip(), 1)

    return rewrite


def rewrite_prompt(tokenizer: Tokenizer, text: str) -> Any:
    """Asks for the text without its mistakes: as an instruction where the model was taught such (`<|edit|>`), else as
    a message."""
    told = "Correct the mistakes."
    names = tokenizer.special_ids
    if "<|edit|>" in names and "<|assistant|>" in names:
        asked = tokenizer.encode(f"{told}\n{text}").tolist()
        return np.array([names["<|edit|>"], *asked, names["<|assistant|>"]], dtype=np.int64)
    return [{"role": "user", "content": f"{told}\n{text}"}]


# Measuring


@dataclass(frozen=True)
class Choice:
    """An operating point, and what it came to on the texts that it was chosen on."""

    threshold: float
    counts: Counts


def edited(editor: Editor, pairs: Sequence[Pair]) -> list[Triple]:
    return [Triple(p.original, p.damaged, editor(p.damaged), p.kind) for p in pairs]


def choose_threshold(
    editor: ByThreshold, pairs: Sequence[Pair], thresholds: Sequence[float], most_false: float = MOST_FALSE
) -> Choice | None:
    """Of the thresholds at which at most `most_false` of the texts without error are edited, the one of highest
    correction F0.5, the stricter (higher) of equals; None where there is none. To be chosen on validation texts."""
    good = []
    for threshold in thresholds:
        counts = score(edited(lambda text, t=threshold: editor(text, t), pairs))  # type: ignore[misc]
        if (counts.false_edits or 0.0) <= most_false:
            good.append(Choice(threshold, counts))
    return max(good, key=lambda c: (c.counts.correction[2], c.threshold), default=None)


def compare(
    editors: Mapping[str, Editor], pairs: Sequence[Pair], unseen: Sequence[str] = ()
) -> dict[str, Any]:
    """Each editor on the same texts: all kinds together, those in training, those not (`unseen`), and each alone.

    seconds: of the editor, a text, on average; examples: texts to be looked at, see `examples`.
    """
    out = {}
    for name, editor in editors.items():
        start = time.perf_counter()
        triples = edited(editor, pairs)
        seconds = (time.perf_counter() - start) / max(1, len(pairs))
        strange = [t for t in triples if t.kind in unseen]
        familiar = [t for t in triples if t.kind not in unseen]
        out[name] = {
            "seconds": seconds,
            "all": score(triples).told(),
            "seen": score(familiar).told(),
            "unseen": score(strange).told(),
            "kinds": {kind: counts.told() for kind, counts in score_by_kind(triples).items()},
            "examples": examples(triples),
        }
    return {"texts": len(pairs), "errors": sum(bool(p.kind) for p in pairs), "editors": out}


def examples(triples: Sequence[Triple], most: int = EXAMPLES) -> dict[str, list[dict[str, str]]]:
    """The first texts of each outcome, at most `most`: mended; wrong (edited at the error, but not mended); missed
    (left as they were, or edited elsewhere); false (edited without an error: also what is wrong in the corpus
    itself)."""
    out: dict[str, list[dict[str, str]]] = {name: [] for name in OUTCOMES}
    for triple in triples:
        counts = count(triple)
        if triple.original == triple.damaged:
            name = "false" if counts.falsely_edited else None
        else:
            name = "mended" if counts.mended else "wrong" if counts.found else "missed"
        if name is not None and len(out[name]) < most:
            told = {"text": triple.damaged, "edited": triple.edited}
            out[name].append(told | ({"right": triple.original, "kind": triple.kind} if triple.kind else {}))
    return out


def proofreading(
    model: Proofreader,
    valid: Sequence[Pair],
    test: Sequence[Pair],
    progress: Progress = lambda text: None,
    threshold: float | None = None,
) -> dict[str, Any]:
    """`compare` on test texts: the model at `threshold`, or else at the one that the validation texts choose, against
    doing nothing, its AR self rewriting the text, and a spelling dictionary where symspellpy is installed.

    Kinds of error that the validation texts lack count as not seen. In what is told threshold is None where every one
    edits too many right texts; the model then stands with the strictest.
    """

    def at(text: str, threshold: float) -> str:
        return str(model.edit(text, threshold=threshold).text)

    best = threshold
    if best is None:
        progress(f"choosing a threshold on {len(valid)} texts")
        choice = choose_threshold(at, valid, THRESHOLDS)
        best = None if choice is None else choice.threshold
    limit = THRESHOLDS[-1] if best is None else best
    editors: dict[str, Editor] = {
        "nothing": nothing,
        "diffusion": lambda text: at(text, limit),
        "AR rewriting": rewriting(model, lambda text: rewrite_prompt(model.tokenizer, text)),
    }
    if find_spec("symspellpy") is not None:
        editors["symspellpy"] = spelling()
    progress(f"{len(editors)} editors on {len(test)} texts")
    unseen = sorted({p.kind for p in test} - {p.kind for p in valid})
    chosen = {"threshold": best, "most_false": MOST_FALSE, "unseen": unseen}
    return chosen | compare(editors, test, unseen)


def lines(told: Mapping[str, Any]) -> list[str]:
    """A Markdown table of what `compare` found, one row an editor and group of kinds."""
    head = ["editor", "found: P", "R", "F0.5", "mended: P", "R", "F0.5", "mended of found", "false edits"]
    rows = []
    for name, measured in told["editors"].items():
        for part in ("seen", "unseen"):
            counts = measured[part]
            if part == "unseen" and not counts["errors"]:
                continue
            cells = [
                counts[w][k] for w in ("detection", "correction") for k in ("precision", "recall", "f05")
            ]
            shown = [*cells, counts["mended_of_found"], counts["false_edits"]]
            rows.append([name if part == "seen" else f"{name}, kinds not seen", *map(_percent, shown)])
    out = [f"{told['texts']} texts, {told['errors']} with an error", "", *table(head, rows).splitlines()]
    if "threshold" in told:
        found = told["threshold"]
        out += [
            "",
            f"threshold {found:g}, chosen on validation texts"
            if found
            else "no threshold keeps to the limit",
        ]
    return out


def example_lines(told: Mapping[str, Any], most: int = 6, editor: str = "diffusion") -> list[str]:
    """A Markdown list of what an editor made of some texts: a few of each outcome, the changed part in context."""
    out = []
    for name, texts in told["editors"][editor].get("examples", {}).items():
        for text in texts[:most]:
            wanted = f" (right: {_shown(text['right'])})" if name in ("wrong", "missed") else ""
            made = _shown(text["text"]) if name == "missed" else _difference(text["text"], text["edited"])
            out.append(f"- {name}: {made}{wanted}")
    return out


def _shown(text: str) -> str:
    """As code in Markdown, on one line."""
    return "`` " + " ".join(text.split()).replace("``", "` `") + " ``"


def _difference(before: str, after: str, around: int = 3) -> str:
    """Both texts where they differ, with some pieces around."""
    old, new = pieces(before), pieces(after)
    found = changes(old, new)
    first, last = max(0, found[0].start - around), found[-1].stop + around
    behind = max(0, len(old) - last)
    return f"{_shown(''.join(old[first:last]))} → {_shown(''.join(new[first : len(new) - behind]))}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
