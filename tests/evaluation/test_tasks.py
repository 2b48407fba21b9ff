"""Benchmarks from files: what is asked, what counts as an answer, and what comes of a run with a known writer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import redraft
from redraft.api import Completion
from redraft.cli.evaluate import BENCHMARKS
from redraft.errors import RequestError
from redraft.evaluation.intervals import wilson
from redraft.evaluation.sandbox import Sandbox, unusable
from redraft.evaluation.tasks import TASKS, Task
from redraft.evaluation.tasks.base import read
from redraft.evaluation.tasks.code import fenced
from redraft.evaluation.tasks.maths import number
from redraft.evaluation.tasks.run import TaskSettings, drawn, lines, run_task

DATA = Path(__file__).parent / "benchmarks"
CODE = [name for name, task in TASKS.items() if task.program]
# The samples' own solutions are known, so they may run unguarded where there is no bubblewrap.
UNSAFE = unusable() is not None


class StandIn:
    """A writer of given answers; remembers what it was asked."""

    name = "stand-in"

    def __init__(self, answer: Callable[[Any, str | None], str]) -> None:
        self.answer, self.asked = answer, []

    def generate(self, prompt: Any, **options: Any) -> Completion:
        return self._write(prompt, None, options)

    def fill(self, prefix: str, suffix: str = "", **options: Any) -> Completion:
        return self._write(prefix, suffix, options)

    def _write(self, prompt: Any, suffix: str | None, options: dict[str, Any]) -> Completion:
        self.asked.append((prompt, suffix, options))
        text = self.answer(prompt, suffix)
        return Completion(
            model=self.name,
            text=text,
            finish_reason="stop",
            prompt_tokens=5,
            tokens=10,
            nfe=4,
            tokens_per_forward=2.5,
            seconds=3.0,
            prefill_seconds=1.0,
            time_to_first_draft=None,
            tokens_per_second=5.0,
            seed=0,
            decode=options.get("decode", "diffusion"),
            token_ids=tuple(range(10)),
        )


def solutions(task: Task) -> dict[str, str]:
    """The right answer to each question, by what of the question is sure to be in the prompt."""
    out = {}
    for record in read(task, DATA).records:
        if task.name == "gsm8k":
            out[record["question"]] = record["answer"]
        elif task.name == "mbpp":
            out[record["text"].strip()] = record["code"]
        else:
            out[record["prompt"].strip()] = record["canonical_solution"]
    return out


def filled(task: Task, prompt: str, suffix: str | None) -> str:
    """The middle; without a suffix, as a model that only sees the left, all that comes behind it too."""
    found = next(
        r for r in read(task, DATA).records if r["prompt"] == prompt and suffix in (None, r["suffix"])
    )
    return found["canonical_solution"] + ("" if suffix is not None else found["suffix"])


def solver(task: Task, wrap: str = "{}") -> StandIn:
    if task.fills:
        return StandIn(lambda prompt, suffix: filled(task, prompt, suffix))
    known = solutions(task)

    def answer(prompt: Any, suffix: str | None) -> str:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        # The question comes last, behind any examples.
        asked = max(known, key=lambda q: text.rfind(q))
        head = asked + "\n" if task.name == "humaneval" and not isinstance(prompt, str) else ""
        return wrap.format(head + known[asked])

    return StandIn(answer)


def run(task: str, writer: StandIn, chats: bool = False, **settings: Any) -> dict[str, Any]:
    return run_task(TASKS[task], writer, DATA, TaskSettings(unsafe=UNSAFE, **settings), chats)


def test_every_task_has_a_name_on_the_command_line() -> None:
    assert list(TASKS) == list(BENCHMARKS)


@pytest.mark.parametrize("name", list(TASKS))
def test_right_answers_pass_and_wrong_ones_do_not(name: str) -> None:
    told = run(name, solver(TASKS[name]))
    assert [s["why"] for s in told["samples"]] == ["right"] * 2
    assert (told["passed"], told["pass_at_1"]) == (2, 1.0)
    told = run(name, StandIn(lambda prompt, suffix: "    pass\n"))
    assert (told["passed"], told["questions"]) == (0, 2)


@pytest.mark.parametrize("name", ["gsm8k", "humaneval", "mbpp"])
def test_chat_answers_in_a_fence(name: str) -> None:
    wrap = (
        "{}"
        if name == "gsm8k"
        else "Sure!\n\n```python\n{}\n```\nIt works, as\n```\nsyntax error(\n```\nshows."
    )
    writer = solver(TASKS[name], wrap)
    told = run(name, writer, chats=True)
    assert (told["style"], told["passed"]) == ("chat", 2)
    assert [m["role"] for m in writer.asked[0][0]] == ["user"]


def test_what_a_run_tells() -> None:
    writer = solver(TASKS["gsm8k"])
    told = run("gsm8k", writer, decode="ar", effort="low", temperature=0.5, seed=3, max_tokens=7)
    _, suffix, options = writer.asked[0]
    assert suffix is None
    assert options == {
        "decode": "ar",
        "effort": "low",
        "temperature": 0.5,
        "seed": 3,
        "max_tokens": 7,
        "stop": ["Question:", "\n\n"],
    }
    assert told["interval"] == list(wilson(2, 2))
    assert (told["tokens"], told["nfe"], told["tokens_per_forward"]) == (20, 8, 2.5)
    assert told["tokens_per_second"] == pytest.approx(20 / 4.0)
    assert told["data"]["file"] == "gsm8k_test.jsonl"
    assert len(told["data"]["sha256"]) == 64
    assert told["sandbox"] is None
    assert [s["id"] for s in told["samples"]] == ["0", "1"]
    assert [s["answer"] for s in told["samples"]] == ["18", "3"]
    assert json.loads(json.dumps(told)) == told
    assert "2 of 2 right, pass@1 100.0 % [34.2, 100.0]" in lines(told)[0]


def test_infilling_shows_both_sides_to_diffusion_and_the_left_to_ar() -> None:
    filling, leftward = solver(TASKS["infilling-single-line"]), solver(TASKS["infilling-single-line"])
    run("infilling-single-line", filling, threshold=0.8)
    told = run("infilling-single-line", leftward, decode="ar")
    record = read(TASKS["infilling-single-line"], DATA).records[0]
    prompt, suffix, options = filling.asked[0]
    assert (prompt, suffix) == (record["prompt"], record["suffix"])
    assert options == {"max_tokens": 128, "threshold": 0.8, "seed": 0}
    prompt, suffix, options = leftward.asked[0]
    assert (prompt, suffix, options["decode"]) == (record["prompt"], None, "ar")
    assert told["passed"] == 2


def test_left_to_right_is_told_where_to_end() -> None:
    for name in ("infilling-single-line", "infilling-multi-line", "infilling-random-span"):
        task = TASKS[name]
        for record in read(task, DATA).records:
            whole = record["canonical_solution"] + record["suffix"]
            assert task.answer(record, "raw", whole, True) == record["canonical_solution"]
            assert task.answer(record, "raw", whole, False) == whole


def test_exit_is_no_way_to_pass() -> None:
    told = run("humaneval", StandIn(lambda prompt, suffix: "    import sys; sys.exit(0)\n"), limit=1)
    assert told["samples"][0]["passed"] is False


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So 9 * 2 = 18.\n#### 18", "18"),
        ("#### 5\nNo: #### 1,200 eggs, not 7", "1,200"),
        ("The answer is $18.50. Then 3 more", "$18.50"),
        ("The Answer is: 7 apples", "7"),
        (r"Thus \boxed{42} of 50", "42"),
        ("2 + 2 = 4.", "4"),
        ("it falls by -3", "-3"),
        ("The answer is unknown, 12 perhaps", "12"),
        ("It was 12. The answer is unknown", "12"),
        ("none", ""),
    ],
)
def test_the_number_of_an_answer(text: str, answer: str) -> None:
    assert number(text) == answer


@pytest.mark.parametrize(
    ("answer", "right"),
    [("18", True), ("$18.00", True), ("18.", True), ("1,8", True), ("19", False), ("", False)],
)
def test_numbers_are_compared_as_numbers(answer: str, right: bool) -> None:
    assert TASKS["gsm8k"].right({"answer": "… #### 18"}, number(answer)) is right


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Look:\n```py\nx = 1\n``` and\n```\ny\n```", "x = 1\n"),
        ("```\r\nx = 1\r\n```", "x = 1\r\n"),
        ("```python\nx = 1", "x = 1"),
        ("x = 1", "x = 1"),
        ("x = ```1```", "x = ```1```"),
    ],
)
def test_the_code_of_an_answer(text: str, code: str) -> None:
    assert fenced(text) == code


def test_helpers_of_the_prompt_stay_known() -> None:
    record = {
        "prompt": 'def half(n):\n    return n // 2\n\ndef f(n):\n    """Half of n, plus one."""\n',
        "entry_point": "f",
        "test": "def check(f):\n    assert f(6) == 4",
    }
    program = TASKS["humaneval"].program
    assert program is not None
    sandbox = Sandbox(unsafe=UNSAFE)
    for answer in ("    return half(n) + 1\n", "def f(n):\n    return half(n) + 1\n"):
        assert sandbox.run(program(record, answer)).status == "ok"


def test_a_draw_is_fixed_by_its_seed_and_keeps_the_order() -> None:
    records = [{"n": i} for i in range(50)]
    some = drawn(records, 5, 1)
    assert some == drawn(records, 5, 1) != drawn(records, 5, 2)
    assert some == sorted(some, key=lambda r: r["n"])
    assert drawn(records, None, 1) == drawn(records, 50, 1) == records


def test_mbpp_asks_its_test_and_shows_its_examples() -> None:
    writer = solver(TASKS["mbpp"])
    told = run("mbpp", writer)
    assert [s["id"] for s in told["samples"]] == ["11", "12"]
    assert told["of_questions"] == 2
    assert writer.asked[0][0].count("[BEGIN]") == 4
    assert writer.asked[0][2]["stop"] == ["[DONE]"]


def test_questions_a_model_can_not_take_count_as_failed() -> None:
    known = solver(TASKS["gsm8k"])

    def answer(prompt: Any, suffix: str | None) -> str:
        if "robe" in prompt.rpartition("Question:")[2]:
            raise RequestError("the prompt has 900 tokens and the context 512")
        return known.answer(prompt, suffix)

    told = run("gsm8k", StandIn(answer))
    assert (told["passed"], told["refused"], told["questions"]) == (1, 1, 2)
    assert "could not take" in lines(told)[-1]

    def never(prompt: Any, suffix: str | None) -> str:
        raise RequestError("unknown effort 'x'")

    with pytest.raises(RequestError, match="gsm8k: unknown effort 'x'"):
        run("gsm8k", StandIn(never))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("infilling-single-line", {"decode": "verified"}, "not verified"),
        ("infilling-single-line", {"style": "chat"}, "no chat form"),
        ("infilling-single-line", {"canvas": 8}, "no --canvas"),
        ("gsm8k", {"style": "chat"}, "no chat template"),
    ],
)
def test_settings_that_do_not_go_together(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        run(name, solver(TASKS[name]), **settings)
    with pytest.raises(RequestError, match="--decode must be one of"):
        TaskSettings(decode="beam")
    with pytest.raises(RequestError, match="--style must be one of"):
        TaskSettings(style="poem")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "needs gsm8k_test.jsonl"),
        (b"", "holds no question"),
        (b"{", "line 1: no JSON"),
        (b'{"question": "?"}', "line 1: answer missing"),
        (b"[1]", "line 1: question, answer missing"),
        (b"\xff", "can't be read"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "gsm8k_test.jsonl").write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read(TASKS["gsm8k"], tmp_path)


def test_a_broken_gzip(tmp_path: Path) -> None:
    (tmp_path / "HumanEval.jsonl.gz").write_bytes((DATA / "HumanEval.jsonl.gz").read_bytes()[:60])
    with pytest.raises(RequestError, match="can't be read"):
        read(TASKS["humaneval"], tmp_path)


@pytest.mark.parametrize("name", CODE)
def test_code_is_refused_without_a_sandbox(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redraft.evaluation.sandbox.unusable", lambda: "bwrap isn't installed")
    writer = solver(TASKS[name])
    with pytest.raises(RequestError, match="--unsafe-without-sandbox"):
        run_task(TASKS[name], writer, DATA, TaskSettings(), False)
    assert writer.asked == []


@pytest.mark.parametrize(
    ("passed", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (1, 1, 0.2065, 1.0)],
)
def test_wilson_intervals_of_the_literature(passed: int, count: int, low: float, high: float) -> None:
    """81 of 263: Newcombe 1998, table I."""
    assert wilson(passed, count) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_the_score_equation(counts: tuple[int, int]) -> None:
    passed, count = counts
    share = passed / count
    low, high = wilson(passed, count)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), rel=1e-4)


@pytest.mark.parametrize("name", ["infilling-single-line", "infilling-multi-line", "infilling-random-span"])
@pytest.mark.skipif(UNSAFE, reason=f"a model's code runs in a sandbox alone: {unusable()}")
def test_a_model_fills_a_benchmarks_gaps_at_unknown_length(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the file through Model.fill to the verdict; the tiny model writes no Python, which is not the point."""
    model = redraft.load("redraft-tiny")
    asked: list[tuple[str, str, dict[str, Any]]] = []
    fill = model.fill

    def watched(prefix: str, suffix: str = "", **options: Any) -> Completion:
        asked.append((prefix, suffix, options))
        return fill(prefix, suffix, **options)

    monkeypatch.setattr(model, "fill", watched)
    told = run_task(TASKS[name], model, DATA, TaskSettings(max_tokens=12), chats=True)
    records = read(TASKS[name], DATA).records
    assert asked == [(r["prompt"], r["suffix"], {"max_tokens": 12, "seed": 0}) for r in records]
    assert (told["questions"], told["refused"], told["sandbox"]) == (2, 0, "bubblewrap")
    assert all(sample["nfe"] and sample["why"] for sample in told["samples"])
    assert [s["answer"] for s in told["samples"]] == [fill(a, b, **options).text for a, b, options in asked]
