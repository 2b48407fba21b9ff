"""How well two backends agree on the same tokens, and how many rows a backend needs to agree with itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from redraft.engine.backend import Backend, Pass

PROBE_ROWS = 16


@dataclass(frozen=True)
class Agreement:
    """Over `rows` rows of logits: the largest absolute difference, the share of rows whose argmax is the same, and,
    among the other rows, the widest lead that the first backend gave its choice over the second's (0 if none):
    near ties show as a small `widest_lead`."""

    rows: int
    max_difference: float
    argmax_share: float
    widest_lead: float


def _compare(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Agreement:
    rows = same = 0
    difference = lead = 0.0
    for a, b in pairs:
        if not len(a):
            continue
        best, other = a.argmax(-1), b.argmax(-1)
        at = np.arange(len(a))
        rows, same = rows + len(a), same + int((best == other).sum())
        difference = max(difference, float(np.abs(a - b).max()))
        lead = max(lead, float((a[at, best] - a[at, other]).max()))
    return Agreement(rows, difference, same / rows if rows else 1.0, lead)


def _rows(backend: Backend, tokens: np.ndarray) -> Iterable[np.ndarray]:
    """AR logits of every token, then a canvas of masks over the last of them, given those before."""
    config = backend.config
    context = backend.new_context(len(tokens) + config.canvas_length)
    if config.layout != "full":
        yield backend.forward([Pass(context, tokens, "all")])[0].encode
    if config.mask_token_id is None:
        return
    slots = min(config.canvas_length, len(tokens))
    anchor = max(0, context.length - slots) // config.canvas_length * config.canvas_length
    # With a shift the clean row before a canvas predicts its first slot: a block is read again with it.
    context.truncate(max(0, anchor - config.canvas_length) if config.shift else anchor)
    canvas = tokens[anchor:][:slots].copy()
    canvas[::2] = config.mask_token_id
    result = backend.forward([Pass(context, tokens[context.length : anchor], canvas=canvas)])[0].canvas
    assert result is not None
    yield result


def agreement(first: Backend, second: Backend, sequences: Sequence[np.ndarray]) -> Agreement:
    """Teacher-forced comparison on int64 token sequences: each row of both backends reads the same tokens.

    Both roles are compared: AR logits after every token, and a half-masked canvas over the end of each sequence.
    """
    tokens = [np.asarray(s, np.int64) for s in sequences]
    return _compare(pair for s in tokens for pair in zip(_rows(first, s), _rows(second, s), strict=True))


def smallest_exact_rows(backend: Backend, most: int = 8) -> int:
    """The fewest encode rows a pass must hold so that each row's logits are those of a longer pass, bit for bit.

    Measured, on random tokens: kernels may compute few rows in another order than many (DESIGN decision 5).
    Returns `most` when even that many differ, which test suites should treat as "not exact".
    """
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, backend.config.vocab_size, 2 * PROBE_ROWS)
    context = backend.new_context(len(tokens))
    backend.forward([Pass(context, tokens[:PROBE_ROWS])])
    reference = backend.forward([Pass(context, tokens[PROBE_ROWS:], "all")])[0].encode
    for count in range(1, most):
        context.truncate(PROBE_ROWS)
        if all(
            np.array_equal(
                backend.forward([Pass(context, tokens[PROBE_ROWS + i :][:count], "all")])[0].encode,
                reference[i : i + count],
            )
            for i in range(0, PROBE_ROWS - count + 1, count)
        ):
            return count
    return most
