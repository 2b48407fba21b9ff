"""bench adaptive: does the work follow the difficulty, and does correcting errors pay at equal work?

Four measurements on held-out dialogues: evaluations a token on the hardest and the easiest tenth of replies
(difficulty.py), canvases of fixed and of changing length (lengths.py), generation with and without error correction at
equal budgets, and real text of which 5 % has been swapped for wrong tokens, to be mended (correction.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.errors import RequestError
from redraft.evaluation.correction import correction, mending
from redraft.evaluation.difficulty import MEASURES, difficulty
from redraft.evaluation.lengths import lengths
from redraft.evaluation.prompts import LONGEST, Dialogues, Reply, pick_prompts
from redraft.evaluation.writing import DIFFUSION, Progress, Way, machine

DRAFTED = 8  # slots of verified's canvases where work by difficulty is counted, so that easy text has room


@dataclass(frozen=True)
class Adaptive:
    """replies: how many are ranked by difficulty. length: tokens written on each, the same for all; a canvas's slots.
    prompts, tokens: for error correction on and off. canvases: how many are damaged and mended. sized: prompts on which
    canvas lengths are compared."""

    replies: int = 400
    length: int = 16
    prompts: int = 40
    tokens: int = 64
    canvases: int = 240
    sized: int = 12
    batch: int = 8
    diffusion: Way = DIFFUSION
    seed: int = 0


def adaptive(
    model: Model, dialogues: Dialogues, settings: Adaptive, progress: Progress = lambda text: None
) -> dict[str, Any]:
    """The object of `redraft bench adaptive --json`. Raises RequestError when there are too few dialogues."""
    batch, seed, length = settings.batch, settings.seed, settings.length
    way = replace(settings.diffusion, canvas=settings.diffusion.canvas or length)
    progress("work by difficulty")
    replies = long_replies(model, dialogues, length, settings.replies, seed)
    verified = Way("verified", temperature=0.0, canvas=min(DRAFTED, length))
    ways = {"verified": verified}
    if model.config.layout == "causal_context":
        ways["verified, branches"] = replace(verified, draft_layout="branches")
    if model.config.mask_token_id is not None:
        ways["diffusion"] = way
    found = difficulty(model, replies, length, ways, batch, seed)
    context = model.config.max_position_embeddings
    prompts = pick_prompts(dialogues, settings.prompts, settings.tokens, seed, context)
    progress("canvas lengths")
    sized = lengths(model, prompts[: settings.sized], settings.tokens, way, seed)
    progress("error correction at equal budgets")
    corrected = correction(model, prompts, settings.diffusion, length, settings.tokens, batch, seed)
    progress("mending damaged canvases")
    damaged = long_replies(model, dialogues, length, settings.canvases, seed + 1)
    return machine(model) | {
        "settings": settings.diffusion.told(model),
        "step_costs": dict(model.defaults.step_costs),
        "difficulty": found,
        "lengths": sized,
        "correction": corrected,
        "mending": mending(model, damaged, length, batch, seed),
    }


def long_replies(model: Model, dialogues: Dialogues, length: int, count: int, seed: int) -> list[Reply]:
    """`count` replies (or as many as there are) of at least `length` tokens behind a prompt of usual length.

    Raises RequestError when there is none."""
    longest = min(LONGEST, model.config.max_position_embeddings - 2 * length)
    fitting = [r for r in dialogues.all() if len(r.text) >= length and 0 < len(r.prompt) <= longest]
    if not fitting:
        raise RequestError(f"no reply in {dialogues.source} has {length} tokens: give a smaller --canvas")
    order = np.random.default_rng(seed).permutation(len(fitting))
    return [fitting[i] for i in order[:count]]


def lines(told: dict[str, Any]) -> list[str]:
    """The report for a person."""
    d, m = told["difficulty"], told["mending"]
    out = [
        f"{told['model']} on {told['backend']}, {told['device']}",
        f"evaluations a token over {d['length']} tokens, hardest against easiest tenth of {d['replies']} replies "
        "(their AR nll)",
    ]
    for row in d["rows"]:
        hard, easy = row["hardest"], row["easiest"]
        out.append(
            f"  {row['way']}, {row['measure']}: {hard['nfe_per_token']:.3f} ({hard['ar_nll']:.2f}) against "
            f"{easy['nfe_per_token']:.3f} ({easy['ar_nll']:.2f}), ratio {row['ratio']:.2f} "
            f"{_span(row['ratio_interval'])}"
        )
    out += [f"  {name}: {text}" for name, text in MEASURES.items()]
    out.append("canvas length: evaluations a token, rows an evaluation, tokens by cost (AR: 1)")
    for row in told["lengths"]:
        out.append(
            f"  {row['way']}, {row['length']}: {row['nfe_per_token']:.3f}, {row['rows']:.1f}, "
            f"{row['tokens_by_cost']:.2f}"
        )
    out.append(
        "error correction at equal budgets: AR nll (distinct-3, evaluations a token), difference to off with its "
        "95 % interval"
    )
    for row in told["correction"]:
        off = row["off"]
        cells = [f"off {off['ar_nll']:.3f} ({off['distinct_3']:.3f}, {off['nfe_per_token']:.2f})"]
        for name in [n for n, r in row.items() if isinstance(r, dict) and "difference" in r]:
            r = row[name]
            cells.append(
                f"{name} {r['ar_nll']:.3f} ({r['distinct_3']:.3f}, {r['nfe_per_token']:.2f}) "
                f"{r['difference']:+.3f} {_span(r['interval'], '+')}"
            )
        out.append(f"  {row['nfe_per_canvas']:>2} a canvas: " + "; ".join(cells))
    out.append(
        f"mending {m['swapped']} wrong of {m['tokens']} tokens: AR nll {m['ar_nll_before']:.3f} before, "
        f"{m['ar_nll_damaged']:.3f} damaged"
    )
    for row in m["ways"]:
        out.append(
            f"  {row['name']}: {100 * row['repaired']:.0f} % repaired, "
            f"{100 * row['otherwise']:.0f} % changed otherwise, "
            f"{100 * row['spoiled']:.1f} % of right ones spoiled, AR nll {row['ar_nll']:.3f}, difference "
            f"{row['difference']:+.3f} {_span(row['interval'], '+')}, {row['nfe_per_canvas']:.1f} evaluations"
        )
    return out


def _span(interval: tuple[float, float], sign: str = "") -> str:
    """[low, high]"""
    return f"[{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"
