"""Files written whole or not at all, and what a model's files must hash to. Needs no torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from redraft.errors import RedraftError

MANIFEST = "manifest.json"


def write_atomically(path: Path, data: bytes, mode: int | None = None) -> None:
    """Writes next to `path`, flushes to disk, then renames: a reader sees the old file or the new, never a
    part. mode: the file's permissions, None for a new file's usual ones.

    Raises RedraftError (disk full, folder absent or not writable); the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # as on a read-only disk; the first error is the one to tell
            temporary.unlink()
        raise RedraftError(f"{path} could not be written: {error.strerror or error}") from None


def sha256(path: Path) -> str:
    """Hexadecimal digest, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def manifest(folder: Path) -> dict[str, Any]:
    """Size and sha256 of every file of a model, by name."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != MANIFEST and p.name[0] != ".")
    return {"files": {p.name: {"size": p.stat().st_size, "sha256": sha256(p)} for p in files}}


def seal(folder: Path) -> None:
    """Writes manifest.json anew: size and sha256 of every file, which loading checks."""
    write_atomically(folder / MANIFEST, (json.dumps(manifest(folder), indent=2) + "\n").encode())


def renew_manifest(folder: Path) -> None:
    """Seals a folder anew that had a manifest before."""
    if (folder / MANIFEST).exists():
        seal(folder)
