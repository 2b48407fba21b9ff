"""metrics.jsonl: one JSON record a line, of training steps and of evaluations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from redraft.errors import RedraftError
from redraft.files import write_atomically

METRICS = "metrics.jsonl"


def append(folder: Path, record: dict[str, Any]) -> None:
    """Adds a record with its step. Raises RedraftError when the disk is full."""
    path = folder / METRICS
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise RedraftError(f"{path} can't be written: {error.strerror or error}") from None


def drop_after(folder: Path, step: int) -> None:
    """Forgets records of steps after `step`, which a resumed run takes again."""
    path = folder / METRICS
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        write_atomically(path, "".join(f"{line}\n" for line in lines if _step(line) <= step).encode())


def _step(line: str) -> float:
    """The step of a record; infinite for one that a killed run left unfinished."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
