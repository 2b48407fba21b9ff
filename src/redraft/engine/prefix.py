"""Contexts of finished answers, kept so that a prompt which goes on from one of them need not be read
again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.engine.backend import Context


@dataclass(frozen=True)
class Kept:
    """An idle context: the tokens it holds and the rows it may occupy."""

    tokens: tuple[int, ...]
    context: Context
    rows: int


class PrefixStore:
    """At most `most` idle contexts, the least recently used given up first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: list[Kept] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def rows(self) -> int:
        return sum(kept.rows for kept in self._kept)

    def put(self, kept: Kept) -> None:
        """Keeps a context; one that holds the beginning of the same text is given up."""
        if not kept.tokens or self.most < 1:
            return
        self._kept = [old for old in self._kept if kept.tokens[: len(old.tokens)] != old.tokens]
        self._kept.append(kept)
        del self._kept[: max(0, len(self._kept) - self.most)]

    def take(self, prompt: Sequence[int], most: int, block: int) -> tuple[Kept, int] | None:
        """The context that shares the longest beginning with `prompt`, and how much of it to keep: at most
        `most` tokens and a multiple of `block`. None when no context would keep at least half of what it
        holds: it belongs to another conversation, which may go on."""
        best, length = None, 0
        for kept in self._kept:
            shared = min(shared_length(kept.tokens, prompt), most) // block * block
            if shared > length and 2 * shared >= len(kept.tokens):
                best, length = kept, shared
        if best is None:
            return None
        self._kept.remove(best)
        return best, length

    def evict(self) -> bool:
        """Gives up the least recently used context; False when there is none."""
        if not self._kept:
            return False
        del self._kept[0]
        return True


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
