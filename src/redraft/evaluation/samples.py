"""Samples for a model card, good and bad: the ends of a ranking of a fixed set, never picked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.engine import Ticket
from redraft.evaluation.prompts import Dialogues, pick_prompts
from redraft.evaluation.text import continuation_nll
from redraft.evaluation.writing import write_all

SHORTEST = 5  # tokens: a reply of a word or two is always likely


def samples(
    model: Model, dialogues: Dialogues, prompts: int = 40, tokens: int = 64, shown: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Replies to a fixed set of prompts with the model's own defaults, ranked by AR negative log-likelihood a token:
    the `shown` likeliest ("best") and unlikeliest ("worst"), each with the end of its prompt."""
    chosen = pick_prompts(dialogues, prompts, tokens, seed, model.config.max_position_embeddings)
    requests = [model.request(p, max_tokens=tokens, seed=seed) for p in chosen]
    written = [_tokens(t) for t in write_all(model, requests, batch=8)]
    nll = continuation_nll(model.backend, chosen, written)
    mean = np.array([n.mean() if len(n) else np.inf for n in nll])
    ranked = [i for i in np.argsort(mean, kind="stable").tolist() if len(written[i]) >= SHORTEST]

    def told(indices: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {
                "prompt": last_turn(model, chosen[i]),
                "reply": model.tokenizer.decode(written[i]).strip(),
                "ar_nll": float(mean[i]),
            }
            for i in indices
        ]

    few = min(shown, len(ranked) // 2)
    return {
        "prompts": len(chosen),
        "source": dialogues.source,
        "seed": seed,
        "best": told(ranked[:few]),
        "worst": told(ranked[len(ranked) - few :][::-1]),
    }


def last_turn(model: Model, prompt: np.ndarray) -> str:
    """What was said last before the reply: the text between the last two special tokens of the prompt."""
    specials = set(model.tokenizer.special_ids.values())
    marks = [i for i, token in enumerate(prompt.tolist()) if token in specials]
    if len(marks) < 2:
        return model.tokenizer.decode(prompt).strip()
    return model.tokenizer.decode(prompt[marks[-2] + 1 : marks[-1]]).strip()


def _tokens(ticket: Ticket) -> tuple[int, ...]:
    assert ticket.writer is not None
    return tuple(ticket.writer.output.tokens)
