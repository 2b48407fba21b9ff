"""What the length of a canvas costs and brings, and what a length that follows the text makes of it.

Counted, not timed: evaluations and the rows of each, put together by the model's step_costs. The result is tokens by
cost, where an AR step costs 1 and brings a token: the speed-up over AR that would come out if nothing but the network
took time and every evaluation cost what the table says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.engine import Engine
from redraft.engine.adaptive import StepCosts
from redraft.engine.backend import Backend, Context, Pass, PassResult
from redraft.evaluation.writing import Way

LENGTHS = (3, 5, 8, 16)
CHECK = 0.5


class RowWatch:
    """A backend that remembers how many rows its last evaluation had."""

    def __init__(self, backend: Backend) -> None:
        self.inner, self.config, self.name = backend, backend.config, backend.name
        self.rows = 0

    def new_context(self, capacity: int) -> Context:
        return self.inner.new_context(capacity)

    def forward(self, passes: Sequence[Pass]) -> list[PassResult]:
        self.rows = sum(len(p.encode) + (0 if p.canvas is None else len(p.canvas)) for p in passes)
        return self.inner.forward(passes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def lengths(
    model: Model, prompts: Sequence[np.ndarray], tokens: int, plain: Way, seed: int
) -> list[dict[str, Any]]:
    """For verified decoding, checked diffusion and `plain` canvases, at each of LENGTHS, and for plain ones at "auto":
    evaluations a token, rows an evaluation, and tokens by cost."""
    ways = {
        "verified": Way("verified", temperature=0.0),
        f"checked {CHECK:g}": Way("diffusion", temperature=0.0, check=CHECK),
        "unchecked": plain,
    }
    costs = StepCosts.of(model.defaults.step_costs)
    watch = RowWatch(model.backend)
    engine = Engine(watch, model.tokenizer.token_bytes, max_batch=1, prefix_contexts=1)
    cases: list[tuple[str, int | str]] = [(name, length) for name in ways for length in LENGTHS]
    cases.append(("unchecked", "auto"))
    counts = {case: np.zeros(4) for case in cases}
    for prompt in prompts:
        for (name, length), count in counts.items():
            slots = length if isinstance(length, int) else None
            way = replace(ways[name], canvas=slots or costs.longest)
            request = replace(way.request(model, prompt, tokens, seed), watched=False)
            ticket = engine.submit(replace(request, step_costs=costs if slots is None else None))
            while not ticket.done:
                writing = ticket.prompt_read is not None
                engine.step()
                if writing:
                    count += 1, watch.rows, costs.at(watch.rows), 0
            if ticket.error is not None:
                raise ticket.error
            count[3] += tokens
    return [
        {
            "way": name,
            "length": length,
            "nfe_per_token": float(count[0] / count[3]),
            "rows": float(count[1] / count[0]),
            "tokens_by_cost": float(count[3] / count[2]),
        }
        for (name, length), count in counts.items()
    ]
