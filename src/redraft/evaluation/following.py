"""eval instructions: held-out texts that an instruction in words training never used should change.

What an instruction asks for is made by the templates of training/instructions.py, so that there is one right answer.
Counted are texts that came back exactly so, those changed in every place that had to be, and those changed nowhere
else; and beside the model doing nothing, which is right where an instruction asks for what is already there.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from redraft.errors import RequestError
from redraft.evaluation.damaged import turns
from redraft.evaluation.proofread import Triple, score_instructions
from redraft.evaluation.writing import Progress, machine

if TYPE_CHECKING:
    from redraft.api import Model
    from redraft.training.instructions import Instructed

WORDS = (4, 40)  # of a text
SHOWN = 6  # failures that a report shows


def cases(documents: Sequence[np.ndarray], model: Model, count: int, seed: int) -> list[Instructed]:
    """`count` instructions, each for another turn. Raises RequestError when the turns offer fewer."""
    from redraft.training.instructions import instruct

    rng = Random(f"instructions {seed}")
    texts = [
        t for t in dict.fromkeys(turns(documents, model.tokenizer)) if WORDS[0] <= len(t.split()) <= WORDS[1]
    ]
    rng.shuffle(texts)
    found: list[Instructed] = []
    for text in texts:
        made = instruct(text, rng, held_out=True)
        if made is not None:
            found.append(made)
        if len(found) == count:
            return found
    raise RequestError(f"the texts offer {len(found)} instructions, not {count}: lower --limit")


def following(
    model: Model,
    documents: Sequence[np.ndarray],
    count: int = 200,
    seed: int = 0,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """Scores of the model and of doing nothing, of each family of instructions, and some failures."""
    asked = cases(documents, model, count, seed)
    edited: list[str] = []
    for number, case in enumerate(asked):
        progress(f"instruction {number + 1} of {count}")
        edited.append(str(model.edit(case.before, case.instruction, seed=seed).text))
    triples = [Triple(c.after, c.before, e, c.family) for c, e in zip(asked, edited, strict=True)]
    idle = [Triple(c.after, c.before, c.before, c.family) for c in asked]
    families = sorted({c.family for c in asked})
    failed = [(c, e) for c, e in zip(asked, edited, strict=True) if e != c.after][:SHOWN]
    return machine(model) | {
        "model_edits": score_instructions(triples).told(),
        "nothing": score_instructions(idle).told(),
        "families": {f: score_instructions(t for t in triples if t.kind == f).told() for f in families},
        "failures": [
            {"instruction": c.instruction, "before": c.before, "wanted": c.after, "edited": e}
            for c, e in failed
        ],
    }


def lines(told: dict[str, Any]) -> list[str]:
    """The report for a person."""
    out = [f"{'editor':<12} {'as wanted %':>11} {'all places %':>12} {'nowhere else %':>14} {'kept %':>7}"]
    for name, key in ((told["model"], "model_edits"), ("nothing", "nothing")):
        m = told[key]
        shares = [100 * (m[f"{k}_share"] or 0.0) for k in ("done", "begun", "local", "kept")]
        out.append(
            f"{name:<12} {shares[0]:11.1f} {shares[1]:12.1f} {shares[2]:14.1f} {shares[3]:7.1f}"
            + f"   {m['texts']} texts"
        )
    done = ", ".join(f"{f} {m['done']}/{m['texts']}" for f, m in told["families"].items())
    out.append(f"as wanted, by family: {done}")
    for case in told["failures"]:
        out.append(
            f"  {case['instruction']!r}: {case['before']!r} → {case['edited']!r}, not {case['wanted']!r}"
        )
    return out
