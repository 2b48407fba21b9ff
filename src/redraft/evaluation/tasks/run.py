"""Puts a task's questions to a model, one at a time, and counts what is right."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from redraft.api import Completion
from redraft.errors import RequestError
from redraft.evaluation.intervals import wilson
from redraft.evaluation.sandbox import Sandbox
from redraft.evaluation.tasks.base import Question, Record, Style, Task, read
from redraft.evaluation.writing import Progress

STYLES = ("auto", "chat", "raw")
FIELDS = ("decode", "effort", "temperature", "threshold", "canvas", "steps", "seed")


class Writer(Protocol):
    """What a task asks of a redraft.Model."""

    def generate(self, prompt: Any, **options: Any) -> Completion: ...

    def fill(self, prefix: str, suffix: str = "", **options: Any) -> Completion: ...


@dataclass(frozen=True)
class TaskSettings:
    """limit: so many questions, drawn by seed; None for all. style: "chat" puts questions as messages, "raw" as text to
    be continued, "auto" chat where the model has a chat template. max_tokens: of an answer, None for the task's own.
    unsafe: run code without a sandbox. Raises RequestError for a style or decode mode that there isn't."""

    limit: int | None = None
    style: Literal["auto", "chat", "raw"] = "auto"
    decode: str = "diffusion"
    effort: str | None = None
    temperature: float | None = None
    threshold: float | None = None
    canvas: int | Literal["auto"] | None = None
    steps: int | None = None
    max_tokens: int | None = None
    seed: int = 0
    unsafe: bool = False

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise RequestError(f"--style must be one of {', '.join(STYLES)}, not {self.style!r}")
        if self.decode not in ("diffusion", "ar", "verified"):
            raise RequestError(f"--decode must be one of diffusion, ar, verified, not {self.decode!r}")

    def sampling(self, fills: bool) -> dict[str, Any]:
        """Arguments for `generate`, or for `fill`, which knows no decode mode and no canvas."""
        names = [f for f in FIELDS if not (fills and f in ("decode", "canvas"))]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def run_task(
    task: Task,
    model: Writer,
    data: Path,
    settings: TaskSettings,
    chats: bool,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """pass@1 of a model, one attempt a question, with its 95 % Wilson interval, its cost, and every sample.

    chats: whether the model has a chat template. Of infilling, decode "diffusion" fills and "ar" writes on from the
    prefix. A question that the model can't take (too long for its context) counts as failed. seconds: of writing, the
    judging apart; tokens_per_second counts from the end of each prompt. Raises RequestError for a missing file, for
    code without a sandbox (unless settings.unsafe), and for settings that don't go with the task or the model.
    """
    if task.fills and settings.decode == "verified":
        raise RequestError(
            f"{task.name} takes --decode diffusion (filling) or ar (left to right), not verified"
        )
    if task.fills and settings.canvas is not None:
        raise RequestError(f"{task.name} takes no --canvas: a gap has as many slots as it needs")
    style = _style(task, settings, chats)
    source = read(task, data)
    sandbox = None if task.program is None else Sandbox(unsafe=settings.unsafe)
    records = drawn([r for r in source.records if task.asked(r)], settings.limit, settings.seed)
    samples: list[dict[str, Any]] = []
    for at, record in enumerate(records):
        progress(f"{task.name}: {at} of {len(records)}, {sum(s['passed'] for s in samples)} right")
        question = task.ask(record, style, source.records)
        samples.append(_attempt(task, model, record, question, settings, sandbox))
    if all(s["why"].startswith("refused") for s in samples):
        raise RequestError(f"{task.name}: {samples[0]['why'].partition(': ')[2]}")
    passed = sum(s["passed"] for s in samples)
    low, high = wilson(passed, len(samples))
    return {
        "task": task.name,
        "title": task.title,
        "domain": task.domain,
        "style": style,
        **{name: getattr(settings, name) for name in FIELDS},
        "max_tokens": settings.max_tokens or task.max_tokens,
        "questions": len(samples),
        "of_questions": sum(map(task.asked, source.records)),
        "passed": passed,
        "refused": sum(s["why"].startswith("refused") for s in samples),
        "pass_at_1": passed / len(samples),
        "interval": [low, high],
        **_cost(samples),
        "sandbox": None if sandbox is None else "bubblewrap" if sandbox.shut_in else "none",
        "data": {"file": source.name, "sha256": source.sha256},
        "samples": samples,
    }


def drawn(records: Sequence[Record], limit: int | None, seed: int) -> list[Record]:
    """`limit` of the records in their order, a fixed choice for a seed; all for None or where there are no more."""
    if limit is None or limit >= len(records):
        return list(records)
    chosen = sorted(random.Random(seed).sample(range(len(records)), limit))
    return [records[i] for i in chosen]


def _style(task: Task, settings: TaskSettings, chats: bool) -> Style:
    if task.fills:
        if settings.style == "chat":
            raise RequestError(f"{task.name} has no chat form: leave out --style")
        return "raw"
    if settings.style == "chat" and not chats:
        raise RequestError("this model has no chat template: use --style raw")
    return ("chat" if chats else "raw") if settings.style == "auto" else settings.style


def _attempt(
    task: Task,
    model: Writer,
    record: Record,
    question: Question,
    settings: TaskSettings,
    sandbox: Sandbox | None,
) -> dict[str, Any]:
    told = {"id": str(record["task_id"])}
    nothing = {"text": "", "answer": "", "tokens": 0, "nfe": 0, "seconds": 0.0, "prefill_seconds": 0.0}
    try:
        written = _write(task, model, question, settings)
    except RequestError as error:
        return told | {"passed": False, "why": f"refused: {error}"} | nothing
    left_to_right = task.fills and settings.decode == "ar"
    answer = task.answer(record, question.style, written.text, left_to_right)
    passed, why = _judge(task, record, answer, sandbox)
    cost = {name: getattr(written, name) for name in ("tokens", "nfe", "seconds", "prefill_seconds")}
    return told | {"passed": passed, "why": why, "text": written.text, "answer": answer} | cost


def _write(task: Task, model: Writer, question: Question, settings: TaskSettings) -> Completion:
    most = settings.max_tokens or task.max_tokens
    if question.suffix is not None and settings.decode == "diffusion":
        options = settings.sampling(fills=True)
        return model.fill(str(question.prompt), question.suffix, max_tokens=most, **options)
    options = settings.sampling(fills=False)
    return model.generate(question.prompt, max_tokens=most, stop=list(question.stop) or None, **options)


def _judge(task: Task, record: Record, answer: str, sandbox: Sandbox | None) -> tuple[bool, str]:
    """Whether the answer is right, and why not: the program's fate and its last line of stderr."""
    if task.program is None or sandbox is None:
        assert task.right is not None
        right = task.right(record, answer)
        return right, "right" if right else "wrong"
    ran = sandbox.run(task.program(record, answer))
    if ran.status == "ok":
        return True, "right"
    last = ran.stderr.strip().splitlines()[-1:] or [""]
    return False, f"{ran.status}: {last[0][:200]}" if last[0] else ran.status


def _cost(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def total(name: str) -> Any:
        return sum(s[name] for s in samples)

    tokens, nfe, writing = total("tokens"), total("nfe"), total("seconds") - total("prefill_seconds")
    return {
        "tokens": tokens,
        "nfe": nfe,
        "tokens_per_forward": tokens / nfe if nfe else 0.0,
        "seconds": total("seconds"),
        "tokens_per_second": tokens / writing if writing > 0 else 0.0,
    }


def lines(told: dict[str, Any]) -> list[str]:
    """The report for a person."""
    low, high = told["interval"]
    name = told["decode"] + (f" {told['effort']}" if told["effort"] else "")
    out = [
        f"{told['title']}, {name}, {told['style']}: {told['passed']} of {told['questions']} right, pass@1 "
        f"{100 * told['pass_at_1']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] (95 % Wilson)",
        f"  {told['tokens']} tokens, {told['nfe']} evaluations ({told['tokens_per_forward']:.2f} tokens each), "
        f"{told['tokens_per_second']:.1f} tokens/s",
    ]
    if told["refused"]:
        out.append(f"  {told['refused']} questions the model could not take; they count as failed")
    if told["sandbox"] == "none":
        out.append("  the model's code ran without a sandbox")
    return out
