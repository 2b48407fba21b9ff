"""bench edit: how long it takes to change a text in place, beside the AR self writing all of it anew.

Texts are stretches of dialogues of about as many tokens as `tokens` says. Each is edited in three ways, in turns, by an
engine that has read none of it before: a selection of some words is written anew; the text, in which errors were made,
is proofread; and the AR self writes the text anew, token by token, behind the instruction to correct it. What AR writes
doesn't count here, only that it must write as many tokens. Reading the text is part of every time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Any

from redraft.api import Model
from redraft.editing.hunks import Edit
from redraft.editing.stream import EditStream
from redraft.engine import Step
from redraft.errors import RequestError
from redraft.evaluation.editors import rewrite_prompt
from redraft.evaluation.prompts import Dialogues
from redraft.evaluation.text import bootstrap_ratio
from redraft.evaluation.writing import Progress, machine
from redraft.sampling.state import SlotState

WAYS = ("selection", "proofread", "ar")
_CHANGED = (SlotState.NEW, SlotState.REVISED)
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Editing:
    """What to measure. texts of `tokens` tokens; `words` of each are selected; `errors` letters of it are swapped."""

    texts: int = 24
    tokens: int = 200
    words: int = 5
    errors: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Timed:
    """One edit. first: seconds until a first changed token was shown, the whole time where nothing changed."""

    seconds: float
    first: float
    nfe: int
    local: bool = True


def editing(
    model: Model, dialogues: Dialogues, settings: Editing, progress: Progress = lambda text: None
) -> dict[str, Any]:
    """The object of `redraft bench edit --json`: for each way median and p95 of the milliseconds an edit takes, and of
    those until its first change, evaluations; ratio: AR's time over a way's, with its 95 % interval over texts; local:
    the share of selections outside of which not a byte changed.

    Raises RequestError when there are too few long dialogues.
    """
    rng = Random(f"edit {settings.seed}")
    texts = long_texts(model, dialogues, settings, rng)
    runs: dict[str, list[Timed]] = {way: [] for way in WAYS}
    for number, text in enumerate([texts[0], *texts]):  # the first only warms up
        progress(f"text {number} of {len(texts)}")
        span, wrong = _selected(text, settings.words, rng), _swapped(text, settings.errors, rng)
        calls: dict[str, Callable[[], Timed]] = {
            "selection": lambda text=text, span=span: _selection(model, text, span),  # type: ignore[misc]
            "proofread": lambda wrong=wrong: _edited(model, model.edit_stream(wrong, seed=0))[0],  # type: ignore[misc]
            "ar": lambda text=text: _rewritten(model, text),  # type: ignore[misc]
        }
        for way in [*WAYS[number % 3 :], *WAYS[: number % 3]]:
            model.engine.forget()
            timed = calls[way]()
            if number:
                runs[way].append(timed)
    return machine(model) | {
        "texts": len(texts),
        "tokens": settings.tokens,
        "ways": {way: _summary(found) for way, found in runs.items()},
        "ratio": {way: _ratio(runs["ar"], runs[way]) for way in WAYS[:-1]},
        "local": sum(run.local for run in runs["selection"]) / len(texts),
    }


def long_texts(model: Model, dialogues: Dialogues, settings: Editing, rng: Random) -> list[str]:
    """Stretches of about `tokens` tokens, one of a dialogue, from its beginning, turns as sentences of one text."""
    special = set(model.tokenizer.special_ids.values())
    found: list[str] = []
    for replies in dialogues.replies:
        last = replies[-1]
        said = [t for t in [*last.prompt.tolist(), *last.text.tolist()] if t not in special]
        if len(said) >= settings.tokens:
            found.append(model.tokenizer.decode(said[: settings.tokens]).strip())
    if len(found) < settings.texts:
        raise RequestError(
            f"there are {len(found)} dialogues of {settings.tokens} tokens in {dialogues.source}, not "
            f"{settings.texts}: ask for fewer with --prompts or shorter ones with --tokens"
        )
    return rng.sample(found, settings.texts)


def _selected(text: str, words: int, rng: Random) -> tuple[int, int]:
    """The span of some words in a row."""
    found = list(_WORD.finditer(text))
    at = rng.randrange(max(1, len(found) - words))
    return found[at].start(), found[min(at + words, len(found)) - 1].end()


def _swapped(text: str, errors: int, rng: Random) -> str:
    """The text with two neighbouring letters swapped in some of its longer words."""
    words = [w for w in _WORD.finditer(text) if len(w.group()) > 4 and w.group().isalpha()]
    out = list(text)
    for word in rng.sample(words, min(errors, len(words))):
        at = word.start() + rng.randrange(1, len(word.group()) - 2)
        out[at], out[at + 1] = out[at + 1], out[at]
    return "".join(out)


def _selection(model: Model, text: str, span: tuple[int, int]) -> Timed:
    timed, made = _edited(model, model.edit_stream(text, spans=[span], seed=0))
    local = made.text.startswith(text[: span[0]]) and made.text.endswith(text[span[1] :])
    return Timed(timed.seconds, timed.first, timed.nfe, local)


def _edited(model: Model, stream: EditStream[Edit]) -> tuple[Timed, Edit]:
    start, first = time.perf_counter(), None
    for event in stream:
        if first is None and isinstance(event, Step) and any(s in _CHANGED for s in event.state.tolist()):
            first = time.perf_counter() - start
    made = stream.result
    seconds = time.perf_counter() - start
    return Timed(seconds, seconds if first is None else first, made.nfe), made


def _rewritten(model: Model, text: str) -> Timed:
    """As many tokens as the text has, by AR, greedy."""
    start = time.perf_counter()
    count = len(model.tokenizer.encode(text))
    prompt = rewrite_prompt(model.tokenizer, text)
    made = model.generate(prompt, decode="ar", temperature=0.0, max_tokens=count, ignore_eos=True, seed=0)
    seconds = time.perf_counter() - start
    return Timed(seconds, seconds if made.time_to_first_draft is None else made.time_to_first_draft, made.nfe)


def _summary(runs: Sequence[Timed]) -> dict[str, float]:
    times = sorted(1000 * run.seconds for run in runs)
    return {
        "ms": median(times),
        "p95_ms": times[min(len(times) - 1, int(0.95 * len(times)))],
        "first_ms": median(1000 * run.first for run in runs),
        "nfe": sum(run.nfe for run in runs) / len(runs),
    }


def _ratio(ar: Sequence[Timed], way: Sequence[Timed]) -> dict[str, Any]:
    import numpy as np

    theirs, ours = np.array([r.seconds for r in ar]), np.array([r.seconds for r in way])
    return {"times": float(theirs.sum() / ours.sum()), "interval": bootstrap_ratio(theirs, ours)}


def lines(told: dict[str, Any]) -> list[str]:
    """The report for a person."""
    out = [
        f"{told['model']} on {told['backend']}, {told['device']}: {told['texts']} texts of {told['tokens']} tokens",
        f"{'way':<12} {'ms':>8} {'p95':>8} {'first ms':>9} {'evaluations':>12}   AR's time over it",
    ]
    for way, m in told["ways"].items():
        ratio = told["ratio"].get(way)
        times = (
            ""
            if ratio is None
            else f"{ratio['times']:.1f} [{ratio['interval'][0]:.1f}, {ratio['interval'][1]:.1f}]"
        )
        out.append(
            f"{way:<12} {m['ms']:8.1f} {m['p95_ms']:8.1f} {m['first_ms']:9.1f} {m['nfe']:12.1f}   {times}"
        )
    out.append(f"text outside a selection unchanged, byte for byte: {100 * told['local']:.1f} %")
    return out
