"""The bytes behind a token, so that text can be shown token by token without breaking a character."""

from __future__ import annotations

import codecs
import functools
import json
import re
from typing import Any

import tokenizers


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """The 256 printable characters that byte-level BPE (GPT-2's) writes bytes with, and the byte of each."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(0x100 + n): byte for n, byte in enumerate(others)})
    return table


class PieceBytes:
    """token id -> bytes for byte-level vocabularies and for SentencePiece's (▁ for a space, <0x0A> for a
    byte).
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, decoder: Any) -> None:
        """decoder: the "decoder" entry of tokenizer.json."""
        self._tokenizer = tokenizer
        self._byte_level = "ByteLevel" in json.dumps(decoder)
        self._added = {int(i): token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        """An id outside the vocabulary has no bytes (a network's rows may be padded past the tokenizer's)."""
        if token not in self._known:
            self._known[token] = self._bytes(token)
        return self._known[token]

    def _bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_level:
            alphabet = byte_alphabet()
            if all(c in alphabet for c in piece):
                return bytes(alphabet[c] for c in piece)
            return piece.encode()
        if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece):
            return bytes([int(match[1], 16)])
        return piece.replace("▁", " ").encode()


class Utf8Stream:
    """Bytes in, whole characters out; bytes that can't be UTF-8 become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        return self._decoder.decode(data)

    @property
    def pending(self) -> bool:
        """Whether a character waits for its other bytes."""
        return bool(self._decoder.getstate()[0])

    def finish(self) -> str:
        """U+FFFD if a character is unfinished; ready for new text after."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
