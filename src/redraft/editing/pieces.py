"""Text as tokens whose bytes are known one by one, which is what lets an edit leave all other bytes alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from redraft.errors import RequestError
from redraft.hub.tokenizer import Tokenizer


class Pieces:
    """The bytes of every token of a network's vocabulary.

    silent: tokens that stand for no text (special ones, rows that pad the vocabulary); none may end in a text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self._bytes = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        self.silent = tuple(token for token, data in enumerate(self._bytes) if not data)
        self.starting = lru_cache(maxsize=1024)(self._starting)
        self.ending = lru_cache(maxsize=1024)(self._ending)

    def encode(self, text: str) -> list[int]:
        """Tokens whose bytes joined are the text's UTF-8. Raises RequestError for a text without UTF-8 form, and
        for a tokenizer that changes what it reads."""
        tokens: list[int] = self.tokenizer.encode(text).tolist() if text else []
        if self.join(tokens) != text.encode():
            raise RequestError(
                "this model's tokenizer doesn't keep every byte of this text: it can't edit it"
            )
        return tokens

    def join(self, tokens: list[int] | tuple[int, ...]) -> bytes:
        return b"".join(self._bytes[token] for token in tokens)

    def __getitem__(self, token: int) -> bytes:
        return self._bytes[token]

    def _starting(self, head: bytes) -> tuple[int, ...]:
        return tuple(token for token, data in enumerate(self._bytes) if data.startswith(head))

    def _ending(self, tail: bytes) -> tuple[int, ...]:
        return tuple(token for token, data in enumerate(self._bytes) if data.endswith(tail))


@dataclass(frozen=True)
class Seam:
    """Token healing: the token at the edge of the text around an opening is taken off it, and the slot in its place
    may hold any token with its bytes at that end; so the model is not bound to a token boundary where the text was
    cut. held: those bytes, none where no longer token has them; only: the tokens that the slot may hold."""

    held: bytes = b""
    only: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.held)


def left_seam(pieces: Pieces, before: list[int]) -> tuple[list[int], Seam]:
    """What stays of the tokens before an opening, and the seam."""
    if before:
        held = pieces[before[-1]]
        if held and len(only := pieces.starting(held)) > 1:
            return before[:-1], Seam(held, only)
    return before, Seam()


def right_seam(pieces: Pieces, after: list[int]) -> tuple[list[int], Seam]:
    """What stays of the tokens behind an opening, and the seam."""
    if after:
        held = pieces[after[0]]
        if held and len(only := pieces.ending(held)) > 1:
            return after[1:], Seam(held, only)
    return after, Seam()
