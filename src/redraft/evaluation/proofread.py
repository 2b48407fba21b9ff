"""How well errors are found and mended, and how much else is touched: a pure scorer of texts.

A text is cut into words and marks, each with the white space before it. An error is what differs between the damaged
text and the original, an edit what differs between the damaged text and the edited one, both as spans of the damaged
text. Errors and edits that overlap belong together: the error is found; it is mended, and the edit right, if both make
the same text of all they cover. This is the grammar-correction field's count (precision, recall, F0.5; Ng et al. 2014,
ERRANT), but an error mended by two edits, or two by one, counts as mended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any

from redraft.evaluation.intervals import wilson

BETA = 0.5  # precision counts twice as much as recall: a false correction annoys more than a missed error
_PIECE = re.compile(r"\s*(?:\w+(?:['’]\w+)*|[^\w\s])|\s+\Z")


@dataclass(frozen=True)
class Triple:
    """One text: as it should be, as it was given, as it came back. kind: of its error, "" where there is none."""

    original: str
    damaged: str
    edited: str
    kind: str = ""


@dataclass(frozen=True)
class Change:
    """Pieces start … stop - 1 become `new`; an empty span is an insertion before `start`."""

    start: int
    stop: int
    new: tuple[str, ...]


@dataclass(frozen=True)
class Counts:
    """errors there were, found and mended of them; edits made, placed (at an error) and right of them; untouched texts
    that had no error, and those of them that were edited all the same."""

    errors: int = 0
    found: int = 0
    mended: int = 0
    edits: int = 0
    placed: int = 0
    right: int = 0
    untouched: int = 0
    falsely_edited: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    @property
    def detection(self) -> tuple[float | None, float | None, float]:
        """Precision, recall, F0.5; a share of nothing is None."""
        return _scores(self.placed, self.edits, self.found, self.errors)

    @property
    def correction(self) -> tuple[float | None, float | None, float]:
        return _scores(self.right, self.edits, self.mended, self.errors)

    @property
    def false_edits(self) -> float | None:
        """Share of the texts without error that were edited."""
        return _share(self.falsely_edited, self.untouched)

    def told(self) -> dict[str, Any]:
        """For JSON: the counts and what follows from them, the false edits with their 95 % Wilson interval."""
        names = ("precision", "recall", "f05")
        return asdict(self) | {
            "detection": dict(zip(names, self.detection, strict=True)),
            "correction": dict(zip(names, self.correction, strict=True)),
            "mended_of_found": _share(self.mended, self.found),
            "false_edits": self.false_edits,
            "false_edits_interval": list(wilson(self.falsely_edited, self.untouched)),
        }


def pieces(text: str) -> list[str]:
    """Words and marks, each with the white space before it; joined they are the text."""
    return _PIECE.findall(text)


def changes(before: Sequence[str], after: Sequence[str]) -> list[Change]:
    """What to do to `before` so that it becomes `after`; an insertion or deletion that could stand in several places
    (one of two equal words) stands in the first."""
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    found: list[Change] = []
    for tag, i, j, k, n in matcher.get_opcodes():
        if tag != "equal":
            floor = found[-1].stop if found else 0
            found.append(_first_place(Change(i, j, tuple(after[k:n])), before, floor))
    return found


def count(triple: Triple) -> Counts:
    """One text's counts."""
    if triple.original == triple.damaged:
        return Counts(
            edits=len(changes(pieces(triple.damaged), pieces(triple.edited))),
            untouched=1,
            falsely_edited=int(triple.edited != triple.damaged),
        )
    given = pieces(triple.damaged)
    errors = changes(given, pieces(triple.original))
    edits = changes(given, pieces(triple.edited))
    total = Counts(errors=len(errors), edits=len(edits))
    for some_errors, some_edits in _together(errors, edits):
        if not some_errors or not some_edits:
            continue
        same = _applied(given, some_errors, some_edits) == _applied(given, some_edits, some_errors)
        e, d = len(some_errors), len(some_edits)
        total += Counts(found=e, placed=d, mended=e if same else 0, right=d if same else 0)
    return total


def score(triples: Iterable[Triple]) -> Counts:
    return sum(map(count, triples), Counts())


def score_by_kind(triples: Sequence[Triple]) -> dict[str, Counts]:
    """Counts of each kind of error, most frequent first; texts without error belong to none."""
    kinds: dict[str, list[Triple]] = {}
    for triple in triples:
        if triple.kind:
            kinds.setdefault(triple.kind, []).append(triple)
    return {k: score(kinds[k]) for k in sorted(kinds, key=lambda k: (-len(kinds[k]), k))}


@dataclass(frozen=True)
class Instructed:
    """texts: how many; done: those that came back exactly as wanted; begun: those changed in every place that had to
    be; local: those changed nowhere else. kept: pieces that were to stay, kept of them."""

    texts: int = 0
    done: int = 0
    begun: int = 0
    local: int = 0
    to_keep: int = 0
    kept: int = 0

    def told(self) -> dict[str, Any]:
        out: dict[str, Any] = asdict(self)
        for name in ("done", "begun", "local"):
            out[f"{name}_share"] = _share(out[name], self.texts)
            out[f"{name}_interval"] = list(wilson(out[name], self.texts))
        return out | {"kept_share": _share(self.kept, self.to_keep)}


def score_instructions(triples: Iterable[Triple]) -> Instructed:
    """Success and locality of edits by instruction: original is what was wanted, damaged what was given."""
    texts = done = begun = local = to_keep = kept = 0
    for triple in triples:
        given = pieces(triple.damaged)
        wanted, made = changes(given, pieces(triple.original)), changes(given, pieces(triple.edited))
        groups = list(_together(wanted, made))
        texts += 1
        done += triple.edited == triple.original
        begun += all(edits for errors, edits in groups if errors)
        local += all(errors for errors, edits in groups if edits)
        staying = set(range(len(given))) - {i for c in wanted for i in range(c.start, c.stop)}
        to_keep += len(staying)
        kept += len(staying - {i for c in made for i in range(c.start, c.stop)})
    return Instructed(texts, done, begun, local, to_keep, kept)


def _first_place(change: Change, before: Sequence[str], floor: int) -> Change:
    """As far left as it makes the same text, and not past `floor`, where the change before it ends."""
    start, stop, new = change.start, change.stop, list(change.new)
    if not new:
        while start > floor and before[start - 1] == before[stop - 1]:
            start, stop = start - 1, stop - 1
    elif start == stop:
        while start > floor and before[start - 1] == new[-1]:
            new = [new[-1], *new[:-1]]
            start, stop = start - 1, stop - 1
    return Change(start, stop, tuple(new))


def _meet(a: Change, b: Change) -> bool:
    """Whether spans overlap; an insertion meets a span that it lies in or beside."""
    if a.start == a.stop or b.start == b.stop:
        return a.start <= b.stop and b.start <= a.stop
    return max(a.start, b.start) < min(a.stop, b.stop)


def _together(
    errors: Sequence[Change], edits: Sequence[Change]
) -> Iterable[tuple[list[Change], list[Change]]]:
    """Groups of errors and edits that are linked by overlaps; alone, an error missed or an edit out of place."""
    left = [(e, True) for e in errors] + [(d, False) for d in edits]
    while left:
        group, grown = [left.pop(0)], True
        while grown:
            near = [x for x in left if any(x[1] != g[1] and _meet(x[0], g[0]) for g in group)]
            left = [x for x in left if x not in near]
            group += near
            grown = bool(near)
        yield [c for c, wrong in group if wrong], [c for c, wrong in group if not wrong]


def _applied(given: Sequence[str], some: Sequence[Change], others: Sequence[Change]) -> str:
    """The text of all that both cover, after the changes of the first."""
    start = min(c.start for c in (*some, *others))
    stop = max(c.stop for c in (*some, *others))
    out, at = [], start
    for change in sorted(some, key=lambda c: (c.start, c.stop)):
        out += [*given[at : change.start], *change.new]
        at = max(at, change.stop)
    return "".join([*out, *given[at:stop]])


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _scores(right: int, made: int, found: int, there: int) -> tuple[float | None, float | None, float]:
    """Precision, recall and F of beta 0.5, (1 + β²) P R / (β² P + R), 0 where nothing is right."""
    precision, recall = _share(right, made), _share(found, there)
    if not precision or not recall:
        return precision, recall, 0.0
    return precision, recall, (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)
