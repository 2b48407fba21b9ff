"""Suggestions for a mistyped name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be, or None."""
    by_folded = {k.casefold(): k for k in known}
    begun = [k for folded, k in by_folded.items() if name and folded.startswith(name.casefold())]
    if len(begun) == 1:
        return begun[0]
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.5)
    return by_folded[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ ", did you mean X?" or nothing."""
    found = nearest(name, known)
    return f", did you mean {found}?" if found else ""
