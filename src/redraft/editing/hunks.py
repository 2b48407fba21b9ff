"""What an edit changed, in the original's own coordinates; the new text is made from the hunks, so that what lies
outside them can't have changed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Part:
    """Bytes start to end (half-open) of the original's UTF-8 and what stands in their place; probability: of the
    least sure token in it. lossy: bytes that are no character may be left out, as of a text that is written anew;
    otherwise the change is left out."""

    start: int
    end: int
    after: bytes
    probability: float = 1.0
    lossy: bool = False


@dataclass(frozen=True)
class Hunk:
    """One change. start, end: half-open offsets in code points of the original; before, after: the text there and
    what took its place; confidence: the model's probability of the least sure token in it."""

    start: int
    end: int
    before: str
    after: str
    confidence: float


@dataclass(frozen=True)
class Edit:
    """An edited text. hunks: its changes from left to right. nfe: network evaluations after the prompts' own;
    seconds: wall time; time_to_first_hunk: until the first window with a change had settled, None without one."""

    text: str
    hunks: tuple[Hunk, ...]
    nfe: int
    seconds: float
    original: str = field(repr=False)
    seed: int = 0
    time_to_first_hunk: float | None = None

    def diff(self, name: str = "text", context: int = 3) -> str:
        """A unified diff from the original, empty without changes; `name` stands in its head."""
        before, after = (_lines(text) for text in (self.original, self.text))
        return "".join(difflib.unified_diff(before, after, name, name, n=context))

    def to_json(self) -> dict[str, Any]:
        """What `redraft edit --json` prints."""
        return {
            "text": self.text,
            "hunks": [vars(hunk) for hunk in self.hunks],
            "nfe": self.nfe,
            "seconds": self.seconds,
            "time_to_first_hunk": self.time_to_first_hunk,
            "seed": self.seed,
        }


def _lines(text: str) -> list[str]:
    """Lines for a diff; one without an end says so, as `diff` does."""
    lines = text.split("\n")
    ended = [line + "\n" for line in lines[:-1]]
    return [*ended, lines[-1] + "\n\\ No newline at end of file\n"] if lines[-1] else ended


def hunks_of(text: str, parts: Iterable[Part]) -> tuple[Hunk, ...]:
    """The changes that disjoint parts make, from left to right: neighbours joined, widened to whole characters. One
    that would not be valid UTF-8 is mended or left out (see Part.lossy)."""
    data = text.encode()
    found: list[Part] = []
    for part in sorted(parts, key=lambda p: (p.start, p.end)):
        if part.after == data[part.start : part.end]:
            continue
        touches = found and (
            found[-1].end == part.start or _whole(data, found[-1]).end > _whole(data, part).start
        )
        if touches:
            part = _joined(data, found.pop(), part)
        found.append(part)
    hunks, at, point = [], 0, 0  # byte and code point up to which offsets have been counted
    for part in (_whole(data, part) for part in found):
        point += len(data[at : part.start].decode())
        at = part.start
        hunk = _hunk(data, part, point)
        if hunk is not None:
            hunks.append(hunk)
    return tuple(hunks)


def apply(text: str, hunks: Sequence[Hunk]) -> str:
    """The text with the hunks' changes."""
    out, at = [], 0
    for hunk in hunks:
        out += [text[at : hunk.start], hunk.after]
        at = hunk.end
    return "".join([*out, text[at:]])


def _joined(data: bytes, first: Part, second: Part) -> Part:
    between = data[first.end : second.start]
    after = first.after + between + second.after
    sure, lossy = min(first.probability, second.probability), first.lossy and second.lossy
    return Part(first.start, second.end, after, sure, lossy)


def _whole(data: bytes, part: Part) -> Part:
    """Widened to whole characters of the original."""
    start, end = part.start, part.end
    while 0 < start < len(data) and data[start] & 0xC0 == 0x80:
        start -= 1
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end += 1
    after = data[start : part.start] + part.after + data[part.end : end]
    return Part(start, end, after, part.probability, part.lossy)


def _hunk(data: bytes, part: Part, point: int) -> Hunk | None:
    """`point`: the code point at which the part starts. None when nothing changes or it is no text."""
    before = data[part.start : part.end].decode()
    try:
        after = part.after.decode(errors="ignore" if part.lossy else "strict")
    except UnicodeDecodeError:
        return None
    if before == after:
        return None
    same = 0
    if after.startswith(before) or before.startswith(after):  # a pure insertion or deletion says so
        same = min(len(before), len(after))
    start, before, after = point + same, before[same:], after[same:]
    return Hunk(start, point + same + len(before), before, after, float(part.probability))
