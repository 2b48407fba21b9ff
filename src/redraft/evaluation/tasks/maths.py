"""GSM8K (Cobbe et al. 2021): word problems whose answer is a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from redraft.evaluation.tasks.base import Question, Record, Style, Task

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
_FINAL = re.compile(r"####|answer is|\\boxed\{", re.IGNORECASE)

# Examples before a question that is continued as text; written for this file, none is of the benchmark.
_EXAMPLES = (
    (
        "A crate holds 6 rows of 8 bottles. Nina takes out 5 bottles. How many are left?",
        "The crate holds 6 * 8 = 48 bottles. Without 5 there are 48 - 5 = 43.",
        "43",
    ),
    (
        "Omar reads 12 pages on Monday and twice as many on Tuesday. His book has 90 pages. How many does he still "
        "have to read?",
        "On Tuesday he reads 2 * 12 = 24 pages. By then he has read 12 + 24 = 36. So 90 - 36 = 54 pages are left.",
        "54",
    ),
    (
        "Tickets cost $9 for adults and $4 for children. What do 2 adults and 3 children pay?",
        "The adults pay 2 * 9 = 18 dollars and the children 3 * 4 = 12. Together that is 18 + 12 = 30 dollars.",
        "30",
    ),
    (
        "A train covers 150 km in 3 hours. How far does it get in 5 hours at the same speed?",
        "In one hour it covers 150 / 3 = 50 km. In 5 hours that is 5 * 50 = 250 km.",
        "250",
    ),
)


def _ask(record: Record, style: Style, records: Sequence[Record]) -> Question:
    question = str(record["question"]).strip()
    if style == "chat":
        told = "Solve it step by step. End with a line that holds #### and then the answer as a number alone."
        return Question([{"role": "user", "content": f"{question}\n\n{told}"}])
    shown = "".join(f"Question: {q}\nAnswer: {a} The answer is {n}.\n\n" for q, a, n in _EXAMPLES)
    return Question(f"{shown}Question: {question}\nAnswer:", stop=("Question:", "\n\n"))


def number(text: str) -> str:
    """The answer in a text: the first number after its last "####", "answer is" or "\\boxed{"; without any of them, or
    without a number after it, the last number; "" where there is none."""
    marks = list(_FINAL.finditer(text))
    if marks and (found := _NUMBER.search(text, marks[-1].end())):
        return found[0]
    numbers = _NUMBER.findall(text)
    return str(numbers[-1]) if numbers else ""


def _answer(record: Record, style: Style, text: str, left_to_right: bool) -> str:
    return number(text)


def _value(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


def _right(record: Record, answer: str) -> bool:
    """Equal as numbers: 18, $18 and 18.00 are one."""
    wanted = _value(str(record["answer"]).rpartition("####")[2].strip())
    return wanted is not None and _value(answer) == wanted


GSM8K = Task(
    name="gsm8k",
    title="GSM8K",
    domain="maths",
    file="gsm8k_test.jsonl",
    fields=("question", "answer"),
    max_tokens=320,
    ask=_ask,
    answer=_answer,
    right=_right,
)
