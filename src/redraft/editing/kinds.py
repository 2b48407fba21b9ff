"""What kind of slip a change undoes: a letter struck wrong, a word said twice, a capital too many."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
SLIPS = (
    *("mark", "mark_less", "capital", "small", "space", "space_less"),
    *("letter", "letters", "repeat", "swap"),
)
_MARK = re.compile(r"[^\w\s]|_")
_INSIDE = re.compile(r"[\w'’]")


@dataclass(frozen=True)
class Hunk:
    """Whole words and marks of a text that become others, and what stands to their left and right."""

    before: str
    after: str
    left: str
    right: str


def hunk_between(old: str, new: str) -> Hunk:
    """The smallest run of whole words outside of which the texts are the same."""
    before, _ = differing(old, new)
    head = _common(old, new)
    tail = len(old) - head - len(before)
    while (
        head and _INSIDE.match(old[head - 1]) and any(_INSIDE.match(t[head : head + 1]) for t in (old, new))
    ):
        head -= 1
    while tail and _INSIDE.match(old[-tail]) and any(_INSIDE.match(_before(t, tail)) for t in (old, new)):
        tail -= 1
    stop, end = len(old) - tail, len(new) - tail
    return Hunk(old[head:stop], new[head:end], old[:head], old[stop:])


def slip_of(hunk: Hunk) -> str | None:
    """The kind of slip that the hunk undoes, one of SLIPS; None where other words take the place of what was written,
    or words come or go: that is a rewrite.

    mark, mark_less: only marks differ, there are fewer; capital, small: only case, there are more capitals or fewer;
    space, space_less: only white space; letter: one letter of a word is another, more, less, or has changed places
    with its neighbour; letters: up to three letters in a row; repeat: a word said twice; swap: two words have changed
    places.
    """
    before, after = hunk.before.strip(), hunk.after.strip()
    if "".join(before.split()) == "".join(after.split()):
        return "space_less" if len(hunk.after) < len(hunk.before) else "space"
    if before.lower() == after.lower():
        return "capital" if _capitals(after) > _capitals(before) else "small"
    if _MARK.sub("", before).strip() == _MARK.sub("", after).strip():
        return "mark_less" if len(after) < len(before) else "mark"
    old, new = WORDS.findall(before.lower()), WORDS.findall(after.lower())
    if len(new) == len(old) - 1:
        around = [*WORDS.findall(hunk.left)[-1:], *old, *WORDS.findall(hunk.right)[:1]]
        said = [word.lower() for word in around]
        if _within(new, old) and any(a == b for a, b in pairwise(said)):
            return "repeat"
    if len(old) == 2 and new == old[::-1]:
        return "swap"
    a, b = differing(before.lower(), after.lower())
    if len(old) == len(new) == 1:
        if one_slip(a, b):
            return "letter"
        if max(len(a), len(b)) <= 3 and min(len(before), len(after)) > max(len(a), len(b)):
            return "letters"
    return None


def differing(a: str, b: str) -> tuple[str, str]:
    """Both without what they begin with and end with in common."""
    head = _common(a, b)
    a, b = a[head:], b[head:]
    tail = _common(a[::-1], b[::-1])
    return a[: len(a) - tail], b[: len(b) - tail]


def one_slip(a: str, b: str) -> bool:
    """Whether differing parts are a letter exchanged, added, left out, or two neighbours swapped."""
    if max(len(a), len(b)) <= 1:
        return a != b
    return len(a) == len(b) == 2 and a == b[::-1]


def _before(text: str, tail: int) -> str:
    """The character before the last `tail`; empty where there is none."""
    at = len(text) - tail
    return text[at - 1 : at] if at else ""


def _common(a: str, b: str) -> int:
    """Characters that both begin with, by bisection."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _capitals(text: str) -> int:
    return sum(character.isupper() for character in text)


def _within(few: list[str], many: list[str]) -> bool:
    """Whether the words stand in the others in their order."""
    rest = iter(many)
    return all(word in rest for word in few)
