"""What a task is: questions from a local file, an answer taken out of what a model wrote, and a verdict on it."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from redraft.errors import RequestError

Record = dict[str, Any]
Style = Literal["chat", "raw"]


@dataclass(frozen=True)
class Question:
    """prompt: text to be continued, or messages for the chat template; with suffix, the text before a gap and the text
    behind it. stop: texts before which the answer ends."""

    prompt: str | list[dict[str, Any]]
    suffix: str | None = None
    stop: tuple[str, ...] = ()

    @property
    def style(self) -> Style:
        return "raw" if isinstance(self.prompt, str) else "chat"


@dataclass(frozen=True)
class Task:
    """A benchmark's file and its rules.

    file: its name in the data folder (.gz may follow); fields: what each line must hold. ask(record, style, records):
    the question; records are all of the file, for examples in the prompt. answer(record, style, text, left_to_right):
    what the text says, pinned by tests. program(record, answer): for tasks that run code, a program that comes to its
    end when the answer is right; right(record, answer) judges those that don't. asked: which records are questions.
    """

    name: str
    title: str
    domain: Literal["code", "infilling", "maths"]
    file: str
    fields: tuple[str, ...]
    max_tokens: int
    ask: Callable[[Record, Style, Sequence[Record]], Question]
    answer: Callable[[Record, Style, str, bool], str]
    program: Callable[[Record, str], str] | None = None
    right: Callable[[Record, str], bool] | None = None
    asked: Callable[[Record], bool] = lambda record: True

    def __post_init__(self) -> None:
        assert (self.program is None) != (self.right is None)

    @property
    def fills(self) -> bool:
        return self.domain == "infilling"


@dataclass(frozen=True)
class Source:
    """A file of questions: its name, the sha256 of its bytes as they lie there, and its records in order, each with a
    task_id, which is its place where the file gives none."""

    name: str
    sha256: str
    records: tuple[Record, ...]


def read(task: Task, folder: Path) -> Source:
    """The task's file out of a folder. Raises RequestError where it is missing, broken, or lacks a field."""
    paths = [folder / task.file, folder / f"{task.file}.gz"]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise RequestError(
            f"eval {task.name} needs {task.file} (or .gz) in {folder}: give its folder with --data"
        )
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, ValueError) as error:
        raise RequestError(f"{path} can't be read: {error}") from None
    records: list[Record] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            record = _record(task, line, f"{path}, line {number}")
            records.append({"task_id": len(records), **record})
    if not any(map(task.asked, records)):
        raise RequestError(f"{path} holds no question of {task.name}")
    return Source(path.name, hashlib.sha256(raw).hexdigest(), tuple(records))


def _record(task: Task, line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RequestError(f"{where}: no JSON ({error})") from None
    missing = [f for f in task.fields if not isinstance(record, dict) or f not in record]
    if missing:
        raise RequestError(f"{where}: {', '.join(missing)} missing: is this {task.title}'s file?")
    return dict(record)
