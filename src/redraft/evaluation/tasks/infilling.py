"""HumanEval infilling (Bavarian et al. 2022): a line, some lines, or a span of a right solution is missing.

A diffusion model sees both sides. The baseline writes on from the prefix, left to right, and can't know where to end;
so it is told: its text is cut to the true number of lines, or for a span, where the suffix's first line comes again.
This favours the baseline.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from redraft.evaluation.tasks.base import Question, Record, Style, Task

_FIRST_LINE = re.compile(r"\s*[^\n]+")  # with the white space before it


def _ask(record: Record, style: Style, records: Sequence[Record]) -> Question:
    return Question(record["prompt"], record["suffix"])


def _by_lines(record: Record, style: Style, text: str, left_to_right: bool) -> str:
    if not left_to_right:
        return text
    count = record["canonical_solution"].count("\n")
    return "".join(text.splitlines(keepends=True)[:count])


def _by_suffix(record: Record, style: Style, text: str, left_to_right: bool) -> str:
    if not left_to_right:
        return text
    begins = _FIRST_LINE.match(record["suffix"])
    at = text.find(begins[0]) if begins else -1
    return text if at < 0 else text[:at]


def _program(record: Record, answer: str) -> str:
    whole = f"{record['prompt']}{answer}{record['suffix']}"
    return f"{whole}\n\n{record['test']}\n\ncheck({record['entry_point']})\n"


_infilling = partial(
    Task,
    domain="infilling",
    fields=("task_id", "prompt", "suffix", "canonical_solution", "entry_point", "test"),
    max_tokens=128,
    ask=_ask,
    program=_program,
)
SINGLE_LINE = _infilling(
    name="infilling-single-line",
    title="HumanEval infilling, single line",
    file="HumanEval-SingleLineInfilling.jsonl",
    answer=_by_lines,
)
MULTI_LINE = _infilling(
    name="infilling-multi-line",
    title="HumanEval infilling, multi line",
    file="HumanEval-MultiLineInfilling.jsonl",
    answer=_by_lines,
)
RANDOM_SPAN = _infilling(
    name="infilling-random-span",
    title="HumanEval infilling, random span (light)",
    file="HumanEval-RandomSpanInfillingLight.jsonl",
    answer=_by_suffix,
)
