"""redraft eval's benchmarks and report as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from redraft.evaluation.sandbox import unusable
from tests.cli.conftest import Redraft
from tests.cli.models import write_network

FILES = Path(__file__).parents[1] / "evaluation" / "benchmarks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("models") / "tiny-random", max_position_embeddings=1024)


def test_a_benchmark_and_its_page(redraft: Redraft, folder: Path, tmp_path: Path) -> None:
    asked = ("gsm8k", "-m", folder, "--data", FILES, "--limit", "1", "--decode", "ar", "--max-tokens", "4")
    shown = redraft("eval", *asked, "--backend", "torch", "--json")
    assert (shown.status, shown.err) == (0, "")
    told = json.loads(shown.out)
    assert told["model"] == "tiny-random"
    assert told["command"] == (
        f"redraft eval gsm8k --model {folder} --backend torch --data {FILES} --limit 1 --decode ar --max-tokens 4"
    )
    result = told["gsm8k"]
    assert (result["questions"], result["decode"], result["style"]) == (1, "ar", "chat")
    assert result["tokens"] <= 4
    assert result["machine"]["cores"] >= 1
    (tmp_path / "result.json").write_text(shown.out)
    page = redraft("eval", "report", tmp_path / "result.json", "--out", tmp_path / "page", "--json")
    assert (page.status, page.err) == (0, "")
    assert all(Path(p).is_file() for p in json.loads(page.out)["written"])
    assert "--limit 1" in (tmp_path / "page" / "index.md").read_text()


@pytest.mark.skipif(unusable() is not None, reason=f"no bubblewrap to shut code in: {unusable()}")
def test_code_is_judged(redraft: Redraft, folder: Path) -> None:
    asked = (
        "humaneval",
        "-m",
        folder,
        "--data",
        FILES,
        "--decode",
        "ar",
        "--style",
        "raw",
        "--max-tokens",
        "8",
    )
    shown = redraft("eval", *asked, "--backend", "torch")
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.startswith("HumanEval, ar, raw: 0 of 2 right, pass@1 0.0 % [0.0, 65.8]")


def test_code_is_refused_without_bubblewrap(redraft: Redraft, folder: Path, tmp_path: Path) -> None:
    unusable.cache_clear()  # the command line runs in a fork of this process
    shown = redraft("eval", "mbpp", "-m", folder, "--data", FILES, "--backend", "torch", PATH=str(tmp_path))
    assert (shown.status, shown.err.count("\n")) == (2, 1)
    assert "--unsafe-without-sandbox" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["humanevl"], "there is no task 'humanevl', did you mean humaneval?"),
        (["humaneval"], "eval humaneval needs --data, the folder of its file"),
        (["gsm8k", "--data", "/no/such"], "needs gsm8k_test.jsonl (or .gz) in /no/such"),
        (["gsm8k", "--data", str(FILES), "--limit", "0"], "--limit must be 1 or more"),
        (["gsm8k", "--data", str(FILES), "--style", "poem"], "--style must be one of"),
        (["gsm8k", "--data", str(FILES), "--decode", "beam"], "--decode must be one of"),
        (["gsm8k", "--data", str(FILES), "--effort", "none"], "unknown effort 'none'"),
        (["infilling-single-line", "--data", str(FILES), "--decode", "verified"], "not verified"),
        (["proofread", "--data", "/no/such"], "holds no valid data"),
        (["report"], "needs files"),
        (["report", "/no/such.json"], "can't be read"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    redraft: Redraft, folder: Path, arguments: list[str], message: str
) -> None:
    shown = redraft("eval", *arguments, "--model", folder, "--backend", "torch")
    assert (shown.status, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert message in shown.err
