"""eval filling: gaps in held-out text, filled by diffusion, which sees both sides, and by the AR self, which can't.

A gap is some words in the middle of a turn. It is filled with its length unknown (the model finds it by nulls), with as
many slots as it really has tokens (the oracle length), and by AR, greedy, which goes on from the text before it for as
many tokens. Measured are exact matches and how likely the AR self finds what fills the gap together with the text
behind it: a fill that doesn't join on makes what follows unlikely.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.engine.likelihood import likelihood
from redraft.errors import RequestError
from redraft.evaluation.damaged import turns
from redraft.evaluation.writing import Progress, machine

WAYS = ("unknown length", "oracle length", "AR from the left")
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Gap:
    """prefix + middle + suffix is a turn; the middle begins with the space before its first word."""

    prefix: str
    middle: str
    suffix: str


def gaps(
    documents: Sequence[np.ndarray], model: Model, count: int, words: tuple[int, int], seed: int
) -> list[Gap]:
    """One gap in each of `count` turns, with 3 words left on both sides. Raises RequestError for too few turns."""
    rng = Random(f"gaps {seed}")
    fit = [t for t in dict.fromkeys(turns(documents, model.tokenizer)) if len(t.split()) >= words[1] + 6]
    if len(fit) < count:
        raise RequestError(
            f"there are {len(fit)} turns long enough to have a gap, not {count}: lower --limit"
        )
    return [_gap(text, rng, words) for text in rng.sample(fit, count)]


def _gap(text: str, rng: Random, words: tuple[int, int]) -> Gap:
    found = list(_WORD.finditer(text))
    size = rng.randint(*words)
    first = rng.randint(3, len(found) - size - 3)
    start, end = found[first - 1].end(), found[first + size - 1].end()
    return Gap(text[:start], text[start:end], text[end:])


def filled(model: Model, gap: Gap, way: str) -> tuple[str, int]:
    """The gap's text and the evaluations it took."""
    size = len(model.tokenizer.encode(gap.middle))
    if way == "AR from the left":
        said = _as_turn(model, gap.prefix)
        made = model.generate(said, decode="ar", temperature=0.0, max_tokens=size, ignore_eos=True, seed=0)
        return made.text, made.nfe
    given: dict[str, Any] = (
        {"slots": size, "max_tokens": size} if way == "oracle length" else {"max_tokens": 32}
    )
    filling = model.fill(gap.prefix, gap.suffix, seed=0, **given)
    return filling.text, filling.nfe


def nats(model: Model, gap: Gap, middle: str) -> float:
    """AR nats a token of the middle and what follows, behind the prefix."""
    ids, before = _as_turn(model, gap.prefix + middle + gap.suffix), _as_turn(model, gap.prefix)
    bound = likelihood(model.backend, ids, replicates=0, given=len(before))
    assert bound.ar_nll is not None
    return bound.ar_nll / (len(ids) - len(before))


def _as_turn(model: Model, text: str) -> np.ndarray:
    """int64 [n]: the text as a user's, which is how fill reads a text without context."""
    user = model.tokenizer.special_ids.get("<|user|>")
    return np.concatenate(([] if user is None else [user], model.tokenizer.encode(text))).astype(np.int64)


def filling(
    model: Model,
    documents: Sequence[np.ndarray],
    count: int = 200,
    words: tuple[int, int] = (1, 4),
    seed: int = 0,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """For each way the share of exact matches, AR nats a token of gap and suffix, length over true length (tokens) and
    evaluations; `true` has the nats of the text itself."""
    chosen = gaps(documents, model, count, words, seed)
    told: dict[str, Any] = {}
    for way in WAYS:
        progress(f"{count} gaps, {way}")
        told[way] = _measured(model, chosen, ((filled(model, gap, way)) for gap in chosen))
    told["true text"] = _measured(model, chosen, ((gap.middle, 0) for gap in chosen))
    return machine(model) | {"gaps": count, "words": list(words), "ways": told}


def _measured(model: Model, chosen: Sequence[Gap], made: Iterator[tuple[str, int]]) -> dict[str, float]:
    texts, counts = zip(*made, strict=True)
    size = [len(model.tokenizer.encode(gap.middle)) for gap in chosen]
    return {
        "exact": float(np.mean([t == gap.middle for t, gap in zip(texts, chosen, strict=True)])),
        "ar_nll": float(np.mean([nats(model, gap, t) for t, gap in zip(texts, chosen, strict=True)])),
        "length_ratio": sum(len(model.tokenizer.encode(t)) for t in texts) / sum(size),
        "nfe": float(np.mean(counts)),
    }


def lines(told: dict[str, Any]) -> list[str]:
    out = [
        f"{told['model']}: {told['gaps']} gaps of {told['words'][0]} to {told['words'][1]} words",
        f"{'way':<18} {'exact %':>8} {'AR nll':>7} {'length':>7} {'evaluations':>12}",
    ]
    for way, m in told["ways"].items():
        out.append(
            f"{way:<18} {100 * m['exact']:8.1f} {m['ar_nll']:7.3f} {m['length_ratio']:7.2f} {m['nfe']:12.1f}"
        )
    return out
