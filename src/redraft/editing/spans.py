"""Which parts of a text are to be edited: character spans, lines or what a regular expression finds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from redraft.errors import RequestError

Span = tuple[int, int]


def checked(text: str, spans: Iterable[Span]) -> list[Span]:
    """Spans in order. Raises RequestError for one outside the text and for two that overlap."""
    found: list[Span] = []
    for span in spans:
        try:
            start, end = span
        except (TypeError, ValueError):
            raise RequestError(f"a span is two offsets (start, end), not {span!r}") from None
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (start, end))
        if not (whole and 0 <= start <= end <= len(text)):
            raise RequestError(
                f"span {start}:{end} is no part of the text, which has {len(text)} characters (count from 0)"
            )
        found.append((start, end))
    found.sort()
    for one, other in itertools.pairwise(found):
        if other[0] < one[1] or other == one:
            raise RequestError(f"spans {one[0]}:{one[1]} and {other[0]}:{other[1]} overlap: join them")
    return found


def lines(text: str, first: int, last: int) -> Span:
    """Lines first to last, counted from 1 and both included, without the last one's end (\\n or \\r\\n). Raises
    RequestError for lines that the text doesn't have."""
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    if starts[-1] == len(text) and len(starts) > 1:
        starts.pop()  # a newline ends the last line and begins none
    if not 1 <= first <= last <= len(starts):
        raise RequestError(
            f"lines {first}:{last} are no part of the text, which has lines 1 to {len(starts)}"
        )
    end = starts[last] - 1 if last < len(starts) else len(text) - text.endswith("\n")
    start = starts[first - 1]
    return start, end - (end > start and text[end - 1] == "\r" and text[end : end + 1] == "\n")


def matches(text: str, pattern: str) -> list[Span]:
    """What a regular expression (Python's) finds, empty matches left out. Raises RequestError for a pattern that
    isn't one and for one that finds nothing."""
    try:
        found = [match.span() for match in re.finditer(pattern, text, re.MULTILINE)]
    except re.error as error:
        raise RequestError(f"the regular expression {pattern!r} can't be read: {error}") from None
    found = [(start, end) for start, end in found if start < end]
    if not found:
        raise RequestError(f"the regular expression {pattern!r} finds nothing in the text")
    return found


def chosen(
    text: str, spans: Iterable[Span] | None, between: tuple[int, int] | None, regex: str | None
) -> list[Span]:
    """All that spans, lines (first, last) and a regular expression select, in order; empty when none is given.
    Raises RequestError, also for spans that overlap."""
    found = [] if spans is None else list(spans)
    if between is not None:
        found.append(lines(text, *between))
    if regex is not None:
        found += matches(text, regex)
    return checked(text, found)
