"""From text to memory-mapped shards with document boundaries.

A prepared folder holds tokenizer.json, tokenizer_config.json and one corpus per split:

    train.bin   uint16 token ids of all documents, end to end (uint32 for vocabularies over 65,536)
    train.json  {"documents": n, "tokens": n, "bytes": n, "dtype": "uint16"}; bytes: UTF-8, as a transcript
    train.npy   int64 [documents, 3]: first token, one past the last, first token a canvas may supervise
"""

from __future__ import annotations

import glob
import gzip
import io
import itertools
import json
import lzma
import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from tokenizers import Tokenizer

from redraft.errors import RequestError
from redraft.files import write_atomically
from redraft.training import wheels
from redraft.training.base_tokenizer import BaseTokenizer
from redraft.training.recipe import Prepare, Source
from redraft.training.tokenizer import EOS, save_tokenizer, train_tokenizer

ROLES = {"User": "user", "Assistant": "assistant", "System": "system"}
TURN = re.compile(rf"({'|'.join(ROLES)}):(?:\s+(.*))?")


@dataclass(frozen=True)
class Document:
    """parts: (role or None, text) in order; a role is written as its special token before the text."""

    parts: tuple[tuple[str | None, str], ...]

    @property
    def text(self) -> str:
        """As a transcript: "User: …" lines, or the bare text."""
        return "\n".join(text if role is None else f"{role.title()}: {text}" for role, text in self.parts)

    @property
    def empty(self) -> bool:
        return not any(text.strip() for _, text in self.parts)


def _open_text(path: Path) -> IO[str]:
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rt", encoding="utf-8")


def read_records(source: Source) -> Iterator[dict[str, Any]]:
    """Records of a source that pass its `where`; a .txt file is one record. Raises RequestError on bad input."""
    path = Path(source.path).expanduser()
    name = path.name.removesuffix(".gz").removesuffix(".xz")
    if path.suffix == wheels.SUFFIX:
        yield from itertools.islice(wheels.records(path, source.field), source.limit)
        return
    if not name.endswith((".txt", ".jsonl")):
        raise RequestError(f"{path}: expected .txt or .jsonl, plain or packed as .gz or .xz, or a wheel")
    kept = 0
    try:
        with _open_text(path) as file:
            if name.endswith(".txt"):
                yield {source.field: file.read()}
                return
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError:
                    raise RequestError(f"{path}, line {number}: not JSON") from None
                if not isinstance(record, dict) or source.field not in record:
                    raise RequestError(
                        f"{path}, line {number}: no field {source.field!r}; set the source's field"
                    )
                if all(str(record.get(k)) == v for k, v in source.where.items()):
                    yield record
                    kept += 1
                    if kept == source.limit:
                        return
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from None


def to_document(record: dict[str, Any], source: Source) -> Document:
    """A record's turns or text, by the source's format. Raises RequestError for what isn't of that format."""
    value = record[source.field]
    if source.format == "messages":
        return _messages(value, source)
    if not isinstance(value, str):
        raise RequestError(f"{source.path}: field {source.field!r} must be text, not {type(value).__name__}")
    _check_unicode(value, source)
    if source.format == "dialogue":
        return _dialogue(value, source)
    return Document((("user" if source.format == "question" else None, value),))


def _check_unicode(text: str, source: Source) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(
            f"{source.path}: a text holds half a surrogate pair, which is no character"
        ) from None


def _messages(value: Any, source: Source) -> Document:
    known = ROLES.values()
    parts: list[tuple[str | None, str]] = []
    for message in value if isinstance(value, list) else [value]:
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or role not in known:
            wanted = f"a list of messages {{role, content}}, each role one of {', '.join(known)}"
            raise RequestError(f"{source.path}: field {source.field!r} must be {wanted}")
        _check_unicode(message["content"], source)
        parts.append((role, message["content"]))
    return Document(tuple(parts))


def _dialogue(value: str, source: Source) -> Document:
    parts: list[tuple[str | None, str]] = []
    for line in value.split("\n"):
        turn = TURN.fullmatch(line)
        if turn:
            parts.append((ROLES[turn[1]], (turn[2] or "").strip()))
        elif parts:
            parts[-1] = (parts[-1][0], parts[-1][1] + "\n" + line)
        else:
            raise RequestError(f"{source.path}: a dialogue must begin with 'User: ' or 'Assistant: '")
    return Document(tuple(parts))


def read_documents(sources: Sequence[Source], exclude: Sequence[Source] = ()) -> list[Document]:
    """All non-empty documents of the sources that hold no text of `exclude`; of near copies among code one.

    Raises RequestError when there is no text at all.
    """
    barred = [_words(to_document(r, s).text) for s in _files(exclude) for r in read_records(s)]
    distinct = wheels.Distinct()
    documents = []
    for source in _files(sources):
        for record in read_records(source):
            document = to_document(record, source)
            text = document.text
            copied = source.path.endswith(wheels.SUFFIX) and not distinct.add(text)
            if not document.empty and not copied and not (barred and _holds(_words(text), barred)):
                documents.append(document)
    if not documents:
        raise RequestError(
            f"no text in {', '.join(s.path for s in sources) or 'the sources'}: nothing to prepare"
        )
    return documents


def _files(sources: Sequence[Source]) -> Iterator[Source]:
    """One source a file: a path with a * stands for all that it matches. Raises RequestError where that is none."""
    for source in sources:
        if "*" not in source.path:
            yield source
            continue
        found = sorted(glob.glob(str(Path(source.path).expanduser())))
        if not found:
            raise RequestError(f"{source.path}: no such file")
        yield from (source.model_copy(update={"path": path}) for path in found)


def _words(text: str) -> str:
    return " ".join(text.split())


def _holds(text: str, barred: Sequence[str]) -> bool:
    return any(b in text for b in barred if b)


def encode_document(tokenizer: Tokenizer, document: Document) -> list[int]:
    """Role tokens before each turn, EOS at the end. Text never yields a special token."""
    ids: list[int] = []
    for role, text in document.parts:
        if role is not None:
            ids.append(_special(tokenizer, f"<|{role}|>"))
        ids.extend(_encode_plain(tokenizer, text))
    return [*ids, _special(tokenizer, EOS)]


def _special(tokenizer: Tokenizer, name: str) -> int:
    token: int | None = tokenizer.token_to_id(name)
    if token is None:
        raise RequestError(f"the tokenizer has no {name}; make it with redraft prepare")
    return token


def _encode_plain(tokenizer: Tokenizer, text: str) -> list[int]:
    tokenizer.encode_special_tokens = True  # "<|eos|>" typed by a person is plain text
    return tokenizer.encode(text, add_special_tokens=False).ids


def write_corpus(
    folder: Path,
    split: str,
    documents: Sequence[Sequence[int]],
    starts: Sequence[int],
    byte_count: int,
    vocab_size: int,
) -> dict[str, Any]:
    """Writes a split. starts: for each document the first token that a canvas may supervise."""
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    lengths = np.array([len(d) for d in documents], np.int64)
    ends = np.cumsum(lengths)
    index = np.stack((ends - lengths, ends, ends - lengths + np.asarray(starts, np.int64)), 1)
    tokens = (
        np.concatenate([np.asarray(d, dtype) for d in documents]) if len(documents) else np.zeros(0, dtype)
    )
    about = {
        "documents": len(documents),
        "tokens": int(lengths.sum()),
        "bytes": byte_count,
        "dtype": dtype.name,
    }
    make_folder(folder)
    write_atomically(folder / f"{split}.bin", tokens.tobytes())
    write_atomically(folder / f"{split}.npy", _npy(index))
    write_atomically(folder / f"{split}.json", (json.dumps(about, indent=2) + "\n").encode())
    return about


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder} can't be made: {error.strerror}") from None


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def prepare(recipe: Prepare, out: str | Path) -> dict[str, dict[str, Any]]:
    """Trains the tokenizer, or takes that of `recipe.tokenizer`, and writes the splits train, valid (the holdout) and
    test; returns what each holds."""
    folder = Path(out)
    documents = read_documents(recipe.sources, recipe.exclude)
    if recipe.holdout >= len(documents):
        raise RequestError(
            f"prepare.holdout {recipe.holdout} leaves nothing of {len(documents)} documents to train on: lower it"
        )
    held = set(random.Random(recipe.seed).sample(range(len(documents)), recipe.holdout))
    train = [d for i, d in enumerate(documents) if i not in held]
    tests = read_documents(recipe.tests) if recipe.tests else []
    make_folder(folder)
    encode, vocab_size = _tokenizer(recipe, train, folder)
    report = {}
    for split, part in (("train", train), ("valid", [documents[i] for i in sorted(held)]), ("test", tests)):
        encoded = [encode(d) for d in part]
        byte_count = sum(len(d.text.encode()) for d in part)
        report[split] = write_corpus(folder, split, encoded, [0] * len(encoded), byte_count, vocab_size)
    return report


def _tokenizer(
    recipe: Prepare, train: Sequence[Document], folder: Path
) -> tuple[Callable[[Document], list[int]], int]:
    """Writes the tokenizer into the folder; how a document is encoded, and the vocabulary's size."""
    if recipe.tokenizer is not None:
        base = BaseTokenizer(recipe.tokenizer)
        base.save(folder)
        return base.encode, base.vocab_size
    sample = train[: recipe.tokenizer_sample]
    tokenizer = train_tokenizer((text for d in sample for _, text in d.parts), recipe.vocab_size)
    save_tokenizer(tokenizer, folder)
    return partial(encode_document, tokenizer), tokenizer.get_vocab_size()


class Corpus:
    """A prepared split, memory-mapped. Document i is corpus[i]: int64 [length]."""

    def __init__(self, folder: str | Path, split: str) -> None:
        folder = Path(folder)
        try:
            self.about = json.loads((folder / f"{split}.json").read_text())
            self.index = np.load(folder / f"{split}.npy")
            dtype = np.dtype(self.about["dtype"])
            size = (folder / f"{split}.bin").stat().st_size
            last = int(self.index[-1, 1]) if len(self.index) else 0
            if size != self.about["tokens"] * dtype.itemsize or last != self.about["tokens"]:
                raise RequestError(f"{folder / split}.bin is truncated; run redraft prepare again")
            self.tokens = np.memmap(folder / f"{split}.bin", dtype, "r") if size else np.zeros(0, dtype)
        except FileNotFoundError:
            raise RequestError(f"{folder} holds no {split} data; run redraft prepare first") from None
        except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
            raise RequestError(
                f"{folder}: {split} data can't be read ({error}); run redraft prepare again"
            ) from None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> np.ndarray:
        first, last, _ = self.index[i]
        return self.tokens[first:last].astype(np.int64)

    @property
    def lengths(self) -> np.ndarray:
        return self.index[:, 1] - self.index[:, 0]

    @property
    def starts(self) -> np.ndarray:
        """First token of each document, counted from its beginning, that a canvas may supervise."""
        return self.index[:, 2] - self.index[:, 0]
