"""The words of a model's training texts, and how often each stood there: what proofreading takes for spelt right, and
what a word that it doesn't know may be a slip of.

A model's folder keeps them in words.txt: a line each, count and word in small letters, with a tab between.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from redraft.errors import RequestError
from redraft.files import write_atomically

WORDS_FILE = "words.txt"
LEAST = 2  # times that a word must have stood there to be kept
RARE = 5  # times below which a word may be a slip of another
SURE = 3  # times that the other must have stood there
PART = 50  # times that each of two words must have stood there that may have been joined
OFTEN = 6.0  # log(1 + count) from which a word is as common as can be
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Lexicon:
    """Reads its file when it is first asked; a model without one knows no words, and doubts none."""

    def __init__(self, path: Path | None = None, counts: Mapping[str, int] | None = None) -> None:
        self._path, self._given = path, counts

    @classmethod
    def of(cls, folder: Path) -> Lexicon:
        """Of a model's folder."""
        path = folder / WORDS_FILE
        return cls(path if path.exists() else None)

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """By word in small letters. Raises RequestError for a file that is no such list."""
        if self._given is not None:
            return self._given
        if self._path is None:
            return {}
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
            return {word: int(count) for count, word in (line.split("\t") for line in lines)}
        except (OSError, ValueError):
            raise RequestError(
                f"{self._path} must hold a count, a tab and a word on each line: fetch the model again"
            ) from None

    def commonness(self, text: str) -> float:
        """log(1 + count) of the rarest of its words, OFTEN at most; OFTEN without words, and without a lexicon."""
        words = _WORD.findall(text.lower())
        if not words or not self.counts:
            return OFTEN
        return min(OFTEN, math.log1p(min(self.counts.get(word, 0) for word in words)))

    def respelt(self, word: str) -> list[str]:
        """What a rare word may be a slip of: known words a letter more, less, other, or swapped away, and two common
        words that were joined; the most frequent first, its capitals kept."""
        low = word.lower()
        if len(low) < 2 or self.counts.get(low, 0) >= RARE:
            return []
        near = {other for other in _one_off(low) if self.counts.get(other, 0) >= SURE} - {low}
        parted = {
            f"{a} {b}" for a, b in _parted(low) if min(self.counts.get(part, 0) for part in (a, b)) >= PART
        }
        found = sorted(near | parted, key=lambda other: (-self.count(other), other))
        return [_cased(other, word) for other in found]

    def count(self, text: str) -> int:
        """Of a word; of two, PART."""
        return PART if " " in text else self.counts.get(text.lower(), 0)


def counted(texts: Iterable[str]) -> dict[str, int]:
    """Words in small letters that stand in the texts at least LEAST times, in order."""
    found = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    return {word: found[word] for word in sorted(found) if found[word] >= LEAST}


def save(folder: Path, counts: Mapping[str, int]) -> None:
    """Writes the folder's word list."""
    lines = "".join(f"{count}\t{word}\n" for word, count in counts.items())
    write_atomically(folder / WORDS_FILE, lines.encode())


def _one_off(word: str) -> Iterator[str]:
    """All that is one slip away (Norvig's edits, and the word itself)."""
    for at in range(len(word) + 1):
        head, tail = word[:at], word[at:]
        yield from (head + letter + tail for letter in _LETTERS)
        if tail:
            yield head + tail[1:]
            yield from (head + letter + tail[1:] for letter in _LETTERS)
        if len(tail) > 1:
            yield head + tail[1] + tail[0] + tail[2:]


def _parted(word: str) -> Iterator[tuple[str, str]]:
    yield from ((word[:at], word[at:]) for at in range(1, len(word)))


def _cased(other: str, word: str) -> str:
    if len(word) > 2 and word.isupper():
        return other.upper()
    return other[0].upper() + other[1:] if word[0].isupper() else other
