"""A text and its corrected form in the same slots: a null slot after every n tokens makes room for what is missing.

Where a word changes, its slots take the right word's tokens from the left, and nulls stand for what is too much. Where
tokens are missing, those behind them move to the right, as far as the next null slot and no farther.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import accumulate, chain

import numpy as np

Words = Sequence[Sequence[int]]
Block = tuple[int, int, int, int]


def with_nulls(tokens: np.ndarray, every: int, null_id: int) -> np.ndarray:
    """The tokens [n] with a null after each full group of `every`: int64 [n + n // every]."""
    slots = np.full(len(tokens) + len(tokens) // every, null_id, np.int64)
    at = np.arange(len(tokens))
    slots[at + at // every] = tokens
    return slots


def capacity(slots: int, every: int) -> int:
    """Tokens that a canvas of so many slots holds beside its null slots."""
    return slots - slots // (every + 1)


def changed_blocks(before: Words, after: Words) -> list[Block]:
    """(b0, b1, a0, a1): tokens b0..b1 of `before` become a0..a1 of `after`; all else is the same. Compared word by
    word, so that a typo in a word never matches tokens of its neighbours."""
    head = 0
    while head < min(len(before), len(after)) and tuple(before[head]) == tuple(after[head]):
        head += 1
    tail = 0
    while tail < min(len(before), len(after)) - head and tuple(before[-1 - tail]) == tuple(after[-1 - tail]):
        tail += 1
    old = [tuple(w) for w in before[head : len(before) - tail]]
    new = [tuple(w) for w in after[head : len(after) - tail]]
    if not old or not new:
        found = [(0, len(old), 0, len(new))] if old or new else []
    else:
        matcher = SequenceMatcher(None, old, new, autojunk=False)
        found = [code[1:] for code in matcher.get_opcodes() if code[0] != "equal"]
    b_at = [0, *accumulate(map(len, before))]
    a_at = [0, *accumulate(map(len, after))]
    return [(b_at[head + i], b_at[head + j], a_at[head + k], a_at[head + n]) for i, j, k, n in found]


def align(
    before: Words, after: Words, every: int, null_id: int, slots: int | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Noisy and target, int64 of one length, from words of tokens: dropping the nulls of the one gives `before`, of the
    other `after`.

    slots: the length of a canvas: shorter texts are filled up with nulls, longer ones cut at the same place in both.
    None where the correction doesn't fit, or where a change lies across the cut.
    """
    old = np.fromiter(chain.from_iterable(before), np.int64)
    new = np.fromiter(chain.from_iterable(after), np.int64)
    blocks = changed_blocks(before, after)
    noisy = with_nulls(old, every, null_id)
    if slots is not None:
        held = min(capacity(slots, every), len(old))
        blocks_inside = [b for b in blocks if b[0] < held or len(old) == held]
        if any(b[1] > held for b in blocks_inside):
            return None
        new = new[: len(new) if held == len(old) else _follow(held, blocks_inside)]
        noisy = np.concatenate((noisy, np.full(max(0, slots - len(noisy)), null_id)))[:slots]
        blocks = blocks_inside
    target = _place(noisy, new, blocks, every, null_id)
    return None if target is None else (noisy, target)


def _follow(token: int, blocks: Sequence[Block]) -> int:
    """Where in `after` an unchanged token of `before` is, or the boundary before it."""
    return token + sum(a1 - a0 - (b1 - b0) for b0, b1, a0, a1 in blocks if b1 <= token)


def _place(
    noisy: np.ndarray, new: np.ndarray, blocks: Sequence[Block], every: int, null_id: int
) -> np.ndarray | None:
    """Segment by segment; segments are joined where a change spans them or one alone has no room."""
    target = noisy.copy()
    if not blocks:
        return target
    lowest = _lowest(len(new), blocks, every)
    width = every + 1
    ends = [*range(width, len(noisy), width), len(noisy)]
    slot = taken = 0
    for end in ends:
        # Tokens of `before` up to here; what is inserted on the border goes into this segment's null slot.
        border = end - end // width if end < len(noisy) else None
        if border is not None and any(b0 < border < b1 for b0, b1, _, _ in blocks):
            continue
        upto = len(new) if border is None else min(_follow(border, blocks), len(new))
        old = noisy[slot:end]
        if np.array_equal(old[old != null_id], new[taken:upto]):
            slot, taken = end, upto
            continue
        placed = _least_change(old.tolist(), new[taken:upto].tolist(), lowest[taken:upto] - slot, null_id)
        if placed is None:
            continue
        target[slot:end] = placed
        slot, taken = end, upto
    return target if slot == len(noisy) and taken == len(new) else None


def _lowest(count: int, blocks: Sequence[Block], every: int) -> np.ndarray:
    """The leftmost slot that each token of `after` may have, int64 [count]: its own if it stays, that of the first one
    that it replaces, or the slot behind the one that it is put after."""
    own, shift = np.arange(count), 0
    for b0, b1, a0, a1 in blocks:
        own[a0:a1] = b0
        shift += b1 - b0 - (a1 - a0)
        own[a1:] = np.arange(a1, count) + shift
    slots = own + own // every
    for b0, b1, a0, a1 in blocks:
        if b0 == b1 and b0:
            slots[a0:a1] = b0 - 1 + (b0 - 1) // every + 1
    return slots


def _least_change(old: list[int], new: list[int], lowest: np.ndarray, null_id: int) -> list[int] | None:
    """`new` and nulls in the slots of `old` such that the fewest slots change, and everything as far left as can be
    without going below `lowest`.

    least[i][j]: changes in the slots from i on when they hold the tokens from j on; dynamic programming.
    """
    n, m = len(old), len(new)
    if m > n:
        return None
    floor, never = lowest.tolist(), n + 1
    least = [[never] * (m + 1) for _ in range(n)] + [[never] * m + [0]]
    for i in range(n - 1, -1, -1):
        here, below = least[i], least[i + 1]
        empty = old[i] != null_id
        for j in range(max(0, m - n + i), m + 1):
            cost = below[j] + empty
            if j < m and i >= floor[j]:
                cost = min(cost, below[j + 1] + (old[i] != new[j]))
            here[j] = cost
    if least[0][0] >= never:
        return None
    placed, j = [], 0
    for i in range(n):
        if j < m and i >= floor[j] and least[i][j] == least[i + 1][j + 1] + (old[i] != new[j]):
            placed.append(new[j])
            j += 1
        else:
            placed.append(null_id)
    return placed
