"""What a draft is worth, in AR steps: where layout "auto" denoises canvases, and what it proposes.

An evaluation that verifies m tokens costs 1 + m * row and brings 1 + t of them, t of the m being likely to hold. With a
token worth w, that is w (1 + t) - 1 - m * row more than beginning anew with one token and a canvas, which brings back
just what it costs if w is what a token of this answer has cost so far. It would be 1 - w more if as good a canvas came
beside the proposal; a share of that is counted. A canvas is worth what the proposal is that it makes in each case,
times the chances of the cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# By what the first token of a proposal is less likely to hold where the one before it wasn't foreseen, or was not known
# to the canvas (measured on redraft-tiny and redraft-135m: 0.65 to 0.85).
UNFORESEEN = 0.75
# The share of a canvas behind nothing that one beside a proposal is worth, which may stand behind a mistake (of 0, 0.3
# and 0.6, over several prices of rows and canvases, 0.3 and 0.6 brought most tokens an AR step).
BESIDE = 0.4


@dataclass(frozen=True)
class Prices:
    """token: what a token is worth; row: cost of one more row that verifies; slot: of one more canvas row; canvas: what
    a canvas costs besides its rows. In AR steps."""

    token: float
    row: float
    slot: float
    canvas: float

    def worth(self, tokens: float, rows: float) -> float:
        """Of a proposal of `rows` tokens, of which `tokens` are likely to hold; less than 0: begin anew."""
        return self.token * (1 + tokens) - 1 - self.row * rows + BESIDE * (1 - self.token)


def starts(sure: Sequence[float], drafted: int, rows: int, luck: float, prices: Prices) -> list[int]:
    """Behind how many tokens of a proposal to denoise canvases, which draft so many tokens with so many rows, in the
    evaluation that verifies it: ascending; none where no canvas is worth its cost.

    sure: chances of the proposal's tokens, each if those before it hold. luck: the same of a canvas's usual token. A
    canvas further to the front is lost in fewer cases, and has fewer slots left behind what is accepted.
    """
    most, at_least = len(sure), 1.0
    exactly = []  # chances that just so many tokens hold
    for own in (*sure, 0.0):
        exactly.append(at_least * (1 - own))
        at_least *= own
    left = [max(drafted - late, 0) for late in range(most + 1)]  # so many tokens behind a canvas's start
    worth = [prices.worth(UNFORESEEN * _in_a_row(luck, count), count) for count in left]
    # By start and by how many tokens hold.
    brings = [[0.0] * start + worth[: most + 1 - start] for start in range(most + 1)]
    brings[most][most] = prices.worth(_in_a_row(luck, drafted), drafted)
    chosen: set[int] = set()
    have, cost = [0.0] * (most + 1), prices.canvas + prices.slot * rows
    while len(chosen) <= most:
        gains = [
            sum(p * max(new - old, 0.0) for p, new, old in zip(exactly, row, have, strict=True))
            for row in brings
        ]
        best = max(range(most + 1), key=gains.__getitem__)
        if best in chosen or gains[best] < cost:
            break
        chosen.add(best)
        have, cost = list(map(max, have, brings[best])), prices.slot * rows
    return sorted(chosen)


def _in_a_row(luck: float, count: int) -> float:
    """Of `count` tokens that hold with this chance each if all before did, how many do, on average."""
    return count if luck >= 1 else luck * (1 - luck**count) / (1 - luck)
