"""The report page: what stands where, what is escaped, and which files it takes."""

from __future__ import annotations

import copy
import html as markup
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from redraft.errors import RequestError
from redraft.evaluation.intervals import wilson
from redraft.evaluation.page import markdown, read_page, write_page

RESULT: dict[str, Any] = {
    "task": "humaneval",
    "title": "HumanEval",
    "domain": "code",
    "style": "chat",
    "decode": "diffusion",
    "effort": "low",
    "temperature": None,
    "threshold": None,
    "canvas": None,
    "steps": None,
    "seed": 0,
    "max_tokens": 384,
    "questions": 40,
    "of_questions": 164,
    "passed": 10,
    "refused": 0,
    "pass_at_1": 0.25,
    "interval": list(wilson(10, 40)),
    "tokens": 400,
    "nfe": 100,
    "tokens_per_forward": 4.0,
    "seconds": 9.0,
    "tokens_per_second": 51.25,
    "sandbox": "bubblewrap",
    "data": {"file": "HumanEval.jsonl.gz", "sha256": "ab" * 32},
    "backend": "onnx",
    "device": "cpu",
    "machine": {"cpu": "Some CPU", "cores": 2, "python": "3.11"},
    "samples": [],
}
SPEED = {
    "model": "small",
    "backend": "onnx",
    "machine": {"cpu": "Some CPU", "cores": 2},
    "prompts": 24,
    "tokens_per_prompt": 128,
    "modes": {
        mode: {"tokens_per_second": rate, "tokens_per_forward": tpf}
        for mode, rate, tpf in (("ar", 100.0, 1.0), ("diffusion", 210.0, 3.5), ("verified", 150.0, 2.0))
    },
}


def result(
    model: str = "small", command: str = "redraft eval humaneval --data d", **changes: Any
) -> dict[str, Any]:
    made = copy.deepcopy(RESULT) | changes
    return {"model": model, "command": command, made["task"]: made}


def written(folder: Path, *results: Any) -> list[Path]:
    paths = [folder / f"{i}.json" for i in range(len(results))]
    for path, told in zip(paths, results, strict=True):
        path.write_text(json.dumps(told))
    return paths


class Table(HTMLParser):
    """The cells of a page's table, row by row, and every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th") or (self.inside and tag in ("b", "small"))
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag in ("b", "small")


def test_the_table_has_domains_as_groups_and_ways_as_columns(tmp_path: Path) -> None:
    maths = {"task": "gsm8k", "title": "GSM8K", "domain": "maths", "sandbox": None, "questions": 164}
    files = written(
        tmp_path,
        result(effort="high"),
        result(**maths),
        result(decode="verified", effort=None),
        result(decode="ar", effort=None, passed=0),
        result(effort="instant", threshold=0.8),
        result(),
        SPEED,
    )
    table = Table(write_page(files, tmp_path / "out")[0].read_text()).rows
    assert table[0] == [
        "Benchmark",
        "AR",
        "verified",
        "diffusion (instant, τ=0.8)",
        "diffusion (low)",
        "diffusion (high)",
        "diffusion",
    ]
    by_name = {row[0]: row[1:] for row in table[1:]}
    assert [r[0] for r in table if len(r) == 1] == ["Code", "Maths", "Speed"]
    assert by_name["HumanEval"][0] == "0.0 % 0.0 – 8.8, n = 40"
    assert by_name["HumanEval"][3] == "25.0 % 14.2 – 40.2, n = 40"
    assert by_name["HumanEval"][5] == "–"
    assert by_name["GSM8K"] == ["–", "–", "–", "6.1 % 3.3 – 10.9, n = 164", "–", "–"]
    assert by_name["HumanEval, tokens/s"][3] == "51.2"
    assert by_name["one stream, tokens/s"] == ["100.0", "150.0", "–", "–", "–", "210.0"]


def test_several_models_stand_side_by_side(tmp_path: Path) -> None:
    page = read_page(written(tmp_path, result("small"), result("large")))
    assert page.models == ["large", "small"]
    assert "| Code | large: diffusion (low) | small: diffusion (low) |" in markdown(page, [])


def test_commands_and_what_weakens_a_result_are_told(tmp_path: Path) -> None:
    told = result(command="redraft eval humaneval --limit 40", refused=3, sandbox="none")
    page = read_page(written(tmp_path, told))
    text = markdown(page, [])
    assert "      redraft eval humaneval --limit 40\n" in text
    assert "40 of 164 questions, drawn by seed 0" in text
    assert "3 too long for the model, counted as failed" in text
    assert "ran without a sandbox" in text
    assert "small on onnx, Some CPU, 2 cores" in text
    assert "sha256 abababababab" in text


def test_html_holds_everything_and_runs_nothing(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    told = result(model=evil, command=f"redraft eval {evil}", title=f"Eval {evil}")
    first, *others = write_page(written(tmp_path, told), tmp_path / "out")
    text = first.read_text()
    tags = Table(text).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "iframe", "object"})
    assert markup.escape(evil) in text.replace("&#39;", "&#x27;")
    sources = [a["src"] for tag, a in tags if tag == "img"]
    assert all(s.startswith("data:image/svg+xml;base64,") for s in sources)
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
    lines = (tmp_path / "out" / "index.md").read_text().splitlines()
    shown = [line for line in lines if not line.startswith("      ")]  # code blocks show what they hold
    assert not any(re.search(r"(?<!\\)<script", line) for line in shown)
    assert any("script" in line for line in shown)
    assert others[0].name == "index.md"


def test_plots_are_drawn_where_matplotlib_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="in the extra `train`")
    files = written(tmp_path, result(), result(decode="ar", effort=None))
    names = [p.name for p in write_page(files, tmp_path / "out")]
    assert names == ["index.html", "index.md", "pass_at_1.svg", "speed.svg"]
    assert "![pass at 1](pass_at_1.svg)" in (tmp_path / "out" / "index.md").read_text()
    monkeypatch.setattr("redraft.evaluation.page.find_spec", lambda name: None)
    assert [p.name for p in write_page(files, tmp_path / "bare")] == ["index.html", "index.md"]
    assert "No plots" in (tmp_path / "bare" / "index.md").read_text()


@pytest.mark.parametrize(
    "told",
    [
        {},
        [],
        {"model": "m", "likelihood": {}},
        {"modes": {}},
        {"modes": 3},
        {"model": "m", "x": {"pass_at_1": 1}},
        7,
    ],
)
def test_files_that_hold_no_result(tmp_path: Path, told: Any) -> None:
    with pytest.raises(RequestError, match="holds no result"):
        read_page(written(tmp_path, told))


def test_other_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="needs files"):
        write_page([], tmp_path)
    with pytest.raises(RequestError, match="can't be read"):
        read_page([tmp_path / "none.json"])
    with pytest.raises(RequestError, match="two files hold it"):
        read_page(written(tmp_path, result(), result()))
