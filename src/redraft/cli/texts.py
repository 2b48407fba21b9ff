"""Texts that a verb reads and may write back: checked when they are read, never half written, never over a change."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from redraft.errors import RequestError
from redraft.files import write_atomically

STDIN = "-"


@dataclass(frozen=True)
class Source:
    """A file's name as it was given ("-" for stdin) and its text; no line end is translated."""

    name: str
    text: str

    @property
    def path(self) -> Path:
        """Where it lies, links followed."""
        return Path(self.name).resolve()


def read(name: str, empty: bool = False) -> Source:
    """Raises RequestError, one line, for what is no readable, non-empty UTF-8 text. empty: an empty one will do."""
    try:
        data = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
    except FileNotFoundError:
        raise RequestError(f"there is no file {name}") from None
    except OSError as error:
        raise RequestError(f"{name} can't be read: {error.strerror or error}") from None
    label = "stdin" if name == STDIN else name
    if b"\0" in data:
        raise RequestError(f"{label} is a binary file (it holds a zero byte): give a text")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{label} isn't valid UTF-8 (byte {error.start}): convert it first") from None
    if not text and not empty:
        raise RequestError(f"{label} is empty: there is nothing to work on")
    return Source(name, text)


def check_writable(source: Source) -> None:
    """Raises RequestError for a file that `apply` could not write, before any work is done."""
    if source.name == STDIN:
        raise RequestError("--apply needs a file: what comes from stdin is printed")
    path = source.path
    if not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) or not os.access(path, os.W_OK):
        raise RequestError(f"{source.name} is read-only: nothing was changed (chmod +w lets it be written)")
    if not os.access(path.parent, os.W_OK):
        raise RequestError(f"the folder of {source.name} can't be written: nothing was changed")


def apply(source: Source, text: str) -> Path:
    """Writes the text into the file it came from and what was there into FILE~; returns the latter's path. Raises
    RequestError when the file is no longer what was read."""
    path = source.path
    try:
        now, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise RequestError(
            f"{source.name} can't be read any more ({error.strerror}): nothing was written"
        ) from None
    if now != source.text.encode():
        raise RequestError(
            f"{source.name} changed while it was being edited: nothing was written, run it again"
        )
    backup = path.with_name(path.name + "~")
    write_atomically(backup, now, mode)
    write_atomically(path, text.encode(), mode)
    return backup


def put(text: str) -> None:
    """A text to stdout byte for byte; on a terminal with control characters made visible and a last newline."""
    from redraft.cli.terminal import write

    if sys.stdout.isatty():
        write(text if text.endswith("\n") else text + "\n")
    else:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
