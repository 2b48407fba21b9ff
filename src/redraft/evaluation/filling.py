"""eval filling: gaps in held-out text, filled by diffusion, which sees both sides, and by the AR self, which can't.

A gap is some words in the middle of a turn. It is filled with its length unknown, once as `Model.fill` does (fills of
several lengths are compared), once with several of each and once with the nulls alone to tell it; with as many tokens
as it really has (the oracle length, no slot may stay empty), of which one fill is made, or as many are compared as of
every length that is tried; and by AR, greedy, which goes on from the text before it for as many
tokens. Measured are exact matches, and how likely the AR self finds what fills the gap together with the text behind
it: a fill that doesn't join on makes what follows unlikely. Fills are compared by that same likelihood, for the most
part, so that it flatters the ways that compare; exact matches don't.

How much of the oracle's matches could be found at unknown length? In turns that the AR self has written itself, at
temperature 1, its likelihood is the true one: fills are compared by as good a judge as there can be. Gaps in such turns
show what it is worth to know the length, whoever compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.engine.completion import Completion
from redraft.engine.likelihood import likelihood
from redraft.errors import RequestError
from redraft.evaluation.damaged import turns
from redraft.evaluation.intervals import wilson
from redraft.evaluation.writing import Progress, machine, write_all

MOST = 32  # tokens of a gap whose length is unknown
SEVERAL = 4  # ways to fill a gap at each length
FROM_THE_LEFT = "AR from the left"
UNKNOWN, ORACLE = "unknown length", "oracle length"
OWN = "own text, "  # before the ways that gaps in what the AR self wrote are filled in
LONGEST = 80  # tokens of a turn that it writes
AT_ONCE = 8  # of them
# Options of a fill; without max_tokens it is told the true length.
WAYS: dict[str, dict[str, Any]] = {
    UNKNOWN: {"max_tokens": MOST},
    "unknown, 4 fills a length": {"max_tokens": MOST, "fills": SEVERAL, "temperature": 0.0},
    "unknown, by nulls": {"max_tokens": MOST, "candidates": 1},
    ORACLE: {},
    "oracle length, 4 fills": {"fills": SEVERAL, "temperature": 0.0},
    FROM_THE_LEFT: {},
}
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
    fit = _long_enough(turns(documents, model.tokenizer), words)
    if len(fit) < count:
        raise RequestError(
            f"there are {len(fit)} turns long enough to have a gap, not {count}: lower --limit"
        )
    return [_gap(text, rng, words) for text in rng.sample(fit, count)]


def own_gaps(model: Model, count: int, words: tuple[int, int], seed: int) -> list[Gap]:
    """The same in a user's first turns as the AR self writes them, drawn as they come; none for a model without turns,
    fewer where it writes too few that are long enough."""
    user = model.tokenizer.special_ids.get("<|user|>")
    if user is None:
        return []
    rng, found = Random(f"own gaps {seed}"), list[str]()
    for _ in range(4):
        requests = [
            model.request(
                np.array([user]), decode="ar", temperature=1.0, max_tokens=LONGEST, seed=rng.getrandbits(31)
            )
            for _ in range(count)
        ]
        tickets = write_all(model, [replace(request, watched=False) for request in requests], AT_ONCE)
        written = (np.array(t.writer.output.tokens, np.int64) for t in tickets if t.writer is not None)
        said = (next(turns([tokens], model.tokenizer), "") for tokens in written)
        found = _long_enough([*found, *said], words)
        if len(found) >= count:
            break
    return [_gap(text, rng, words) for text in found[:count]]


def _long_enough(texts: Iterable[str], words: tuple[int, int]) -> list[str]:
    """Those that have room for a gap, each once."""
    return [t for t in dict.fromkeys(texts) if len(t.split()) >= words[1] + 6]


def _gap(text: str, rng: Random, words: tuple[int, int]) -> Gap:
    found = list(_WORD.finditer(text))
    size = rng.randint(*words)
    first = rng.randint(3, len(found) - size - 3)
    start, end = found[first - 1].end(), found[first + size - 1].end()
    return Gap(text[:start], text[start:end], text[end:])


def filled(model: Model, gap: Gap, way: str) -> Completion:
    size = len(model.tokenizer.encode(gap.middle))
    if way == FROM_THE_LEFT:
        said = _as_turn(model, gap.prefix)
        return model.generate(said, decode="ar", temperature=0.0, max_tokens=size, ignore_eos=True, seed=0)
    given = WAYS[way]
    known = {} if "max_tokens" in given else {"slots": size, "max_tokens": size}
    return model.fill(gap.prefix, gap.suffix, seed=0, **known, **given)


def nats(model: Model, gap: Gap, middle: str) -> tuple[float, int]:
    """-log p by the AR self of the middle and what follows, behind the prefix; and of how many tokens."""
    ids, before = _as_turn(model, gap.prefix + middle + gap.suffix), _as_turn(model, gap.prefix)
    bound = likelihood(model.backend, ids, replicates=0, given=len(before))
    assert bound.ar_nll is not None
    return bound.ar_nll, len(ids) - len(before)


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
    """For each way the share of exact matches with its 95 % Wilson interval, -log p by AR of gap and suffix in nats a
    gap (ar_nats) and a token (ar_nll), length over true length (tokens), evaluations and seconds a gap; "true text" has
    the likelihood of the text itself. found_of_oracle: exact matches at unknown length over those at the oracle length,
    in text held out and of its own (missing where there are none)."""
    chosen = gaps(documents, model, count, words, seed)
    told: dict[str, Any] = {}
    for way in WAYS:
        progress(f"{count} gaps, {way}")
        told[way] = _filled_all(model, chosen, way)
    own = own_gaps(model, count, words, seed)
    for way in (UNKNOWN, ORACLE) if own else ():
        progress(f"{len(own)} gaps in its own text, {way}")
        told[OWN + way] = _filled_all(model, own, way)
    told["true text"] = _measured(model, chosen, [gap.middle for gap in chosen]) | {
        "nfe": 0.0,
        "seconds": 0.0,
    }
    about = {"gaps": count, "own_gaps": len(own), "words": list(words)}
    return machine(model) | about | {"found_of_oracle": _found_of_oracle(told), "ways": told}


def _found_of_oracle(told: dict[str, Any]) -> dict[str, float]:
    both = {whose: [told.get(whose + way) for way in (UNKNOWN, ORACLE)] for whose in ("", OWN)}
    return {
        "own" if whose else "held_out": unknown["exact"] / oracle["exact"]
        for whose, (unknown, oracle) in both.items()
        if unknown and oracle and oracle["exact"]
    }


def _filled_all(model: Model, chosen: Sequence[Gap], way: str) -> dict[str, Any]:
    made = [filled(model, gap, way) for gap in chosen]
    cost = {
        "nfe": float(np.mean([one.nfe for one in made])),
        "seconds": float(np.mean([one.seconds for one in made])),
    }
    return _measured(model, chosen, [one.text for one in made]) | cost


def _measured(model: Model, chosen: Sequence[Gap], texts: Sequence[str]) -> dict[str, Any]:
    size = [len(model.tokenizer.encode(gap.middle)) for gap in chosen]
    exact = sum(text == gap.middle for text, gap in zip(texts, chosen, strict=True))
    found = [nats(model, gap, text) for text, gap in zip(texts, chosen, strict=True)]
    return {
        "exact": exact / len(chosen),
        "interval": list(wilson(exact, len(chosen))),
        "ar_nats": float(np.mean([total for total, _ in found])),
        "ar_nll": float(np.mean([total / tokens for total, tokens in found])),
        "length_ratio": sum(len(model.tokenizer.encode(text)) for text in texts) / sum(size),
    }


def lines(told: dict[str, Any]) -> list[str]:
    out = [
        f"{told['model']}: {told['gaps']} gaps of {told['words'][0]} to {told['words'][1]} words",
        f"{'way':<26} {'exact %':>8} {'95 %':>13} {'AR nats':>8} {'a token':>8} {'length':>7} {'evaluations':>12} "
        f"{'ms':>7}",
    ]
    for way, m in told["ways"].items():
        low, high = (100 * end for end in m["interval"])
        out.append(
            f"{way:<26} {100 * m['exact']:8.1f} {f'{low:.1f} to {high:.1f}':>13} {m['ar_nats']:8.2f} "
            f"{m['ar_nll']:8.3f} {m['length_ratio']:7.2f} {m['nfe']:12.1f} {1000 * m['seconds']:7.1f}"
        )
    return out
