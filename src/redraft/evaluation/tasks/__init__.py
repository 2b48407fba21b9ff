"""Benchmarks from local files. A new one is a Task and a line here."""

from redraft.evaluation.tasks.base import Question, Task
from redraft.evaluation.tasks.code import HUMANEVAL, MBPP
from redraft.evaluation.tasks.infilling import MULTI_LINE, RANDOM_SPAN, SINGLE_LINE
from redraft.evaluation.tasks.maths import GSM8K

TASKS: dict[str, Task] = {
    task.name: task for task in (GSM8K, HUMANEVAL, MBPP, SINGLE_LINE, MULTI_LINE, RANDOM_SPAN)
}

__all__ = ["TASKS", "Question", "Task"]
