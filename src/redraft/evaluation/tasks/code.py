"""HumanEval (Chen et al. 2021) and MBPP (Austin et al. 2021): functions to be written, judged by running tests."""

from __future__ import annotations

import re
from collections.abc import Sequence

from redraft.evaluation.tasks.base import Question, Record, Style, Task

_FENCE = re.compile(r"```[ \t]*(?:[A-Za-z0-9_+-]*)[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)
# Where a completed function is over: the next thing at the margin (Chen et al. 2021, section 2.1).
_AFTER_FUNCTION = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\n```")


def fenced(text: str) -> str:
    """The code in a chat answer: its first fenced block, open at the end if the answer broke off; without a fence the
    whole answer."""
    found = _FENCE.search(text)
    return found[1] if found else text


def _defines(code: str, name: str) -> bool:
    return re.search(rf"^(?:async )?def {re.escape(name)}\b", code, re.MULTILINE) is not None


def _humaneval_ask(record: Record, style: Style, records: Sequence[Record]) -> Question:
    if style == "raw":
        return Question(record["prompt"], stop=_AFTER_FUNCTION)
    told = "Complete this Python function. Answer with the whole function in one code block."
    return Question([{"role": "user", "content": f"{told}\n\n```python\n{record['prompt'].rstrip()}\n```"}])


def _humaneval_answer(record: Record, style: Style, text: str, left_to_right: bool) -> str:
    return fenced(text) if style == "chat" else text


def _humaneval_program(record: Record, answer: str) -> str:
    """The prompt's own functions hold though they have a docstring alone, so that helpers and imports of the prompt
    stay known to an answer that defines the function anew; any other answer is the body."""
    apart = "\n\n" if _defines(answer, record["entry_point"]) else ""
    return f"{record['prompt']}{apart}{answer}\n\n{record['test']}\n\ncheck({record['entry_point']})\n"


HUMANEVAL = Task(
    name="humaneval",
    title="HumanEval",
    domain="code",
    file="HumanEval.jsonl",
    fields=("task_id", "prompt", "entry_point", "test"),
    max_tokens=384,
    ask=_humaneval_ask,
    answer=_humaneval_answer,
    program=_humaneval_program,
)

_MBPP_EXAMPLES = (2, 3, 4)  # of the ten that the paper keeps for prompts; 11 to 510 are its test
_DONE = "[DONE]"


def _mbpp_task(record: Record) -> str:
    tests = "\n".join(record["test_list"])
    return f"{record['text'].strip()} Your code should pass these tests:\n\n{tests}"


def _mbpp_ask(record: Record, style: Style, records: Sequence[Record]) -> Question:
    """As text the paper's three examples come first, each task, its tests and [BEGIN] code [DONE]."""
    if style == "chat":
        told = "Answer with the Python code in one code block."
        return Question([{"role": "user", "content": f"{_mbpp_task(record)}\n\n{told}"}])
    lead = "You are an expert Python programmer, and here is your task: "
    shown = "".join(
        f"{lead}{_mbpp_task(r)}\n[BEGIN]\n{_plain(r['code'])}\n{_DONE}\n\n"
        for r in records
        if r["task_id"] in _MBPP_EXAMPLES
    )
    return Question(f"{shown}{lead}{_mbpp_task(record)}\n[BEGIN]\n", stop=(_DONE,))


def _plain(code: str) -> str:
    return code.replace("\r\n", "\n").strip()


def _mbpp_answer(record: Record, style: Style, text: str, left_to_right: bool) -> str:
    return fenced(text) if style == "chat" else text.partition(_DONE)[0]


def _mbpp_program(record: Record, answer: str) -> str:
    return "\n".join([record.get("test_setup_code", ""), answer, "", *record["test_list"], ""])


MBPP = Task(
    name="mbpp",
    title="MBPP",
    domain="code",
    file="mbpp.jsonl",
    fields=("task_id", "text", "code", "test_list"),
    max_tokens=256,
    ask=_mbpp_ask,
    answer=_mbpp_answer,
    program=_mbpp_program,
    asked=lambda record: 11 <= record["task_id"] <= 510,
)
