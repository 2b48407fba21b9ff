"""redraft eval report: results of benchmarks and speed as one page, HTML and Markdown.

Rows are benchmarks by domain, columns the ways of writing: AR, verified, diffusion at each effort. Every share comes
with its 95 % Wilson interval, every result with the command that measured it.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2

from redraft.errors import RedraftError, RequestError
from redraft.evaluation import tables
from redraft.evaluation.intervals import wilson
from redraft.files import write_atomically

DOMAINS = {"code": "Code", "infilling": "Code infilling", "maths": "Maths", "speed": "Speed"}
_ORDER = {"ar": 0, "verified": 1, "diffusion": 2}
_EFFORTS = ("instant", "low", "medium", "high")
_SETTINGS = {"threshold": "τ", "temperature": "T", "canvas": "canvas", "steps": "steps"}


@dataclass(frozen=True)
class Column:
    """One way of writing by one model. settings: what was asked for besides, as text."""

    model: str
    decode: str
    effort: str | None = None
    settings: str = ""

    @property
    def label(self) -> str:
        name = "AR" if self.decode == "ar" else self.decode
        told = [t for t in (self.effort, self.settings) if t]
        return f"{name} ({', '.join(told)})" if told else name

    @property
    def place(self) -> tuple[Any, ...]:
        known = self.effort in _EFFORTS
        effort = _EFFORTS.index(str(self.effort)) if known else len(_EFFORTS)
        return self.model, _ORDER.get(self.decode, 9), effort, self.effort or "", self.settings


@dataclass(frozen=True)
class Cell:
    """text: the number; note: its interval and count. share, low, high: a benchmark's, for the plot."""

    text: str
    note: str = ""
    share: float = 0.0
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Row:
    domain: str
    title: str
    cells: dict[Column, Cell]


@dataclass(frozen=True)
class Measured:
    """How one result came about. where: model, backend and machine in words."""

    title: str
    command: str
    where: str
    notes: tuple[str, ...] = ()


@dataclass
class Page:
    """Rows by domain in order, columns in order, and how each result was measured."""

    rows: list[Row] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)

    @property
    def columns(self) -> list[Column]:
        return sorted({c for row in self.rows for c in row.cells}, key=lambda c: c.place)

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(c.model for c in self.columns))

    def groups(self) -> list[tuple[str, list[Row]]]:
        found = [(title, [r for r in self.rows if r.domain == domain]) for domain, title in DOMAINS.items()]
        return [(title, rows) for title, rows in found if rows]

    def put(self, domain: str, title: str, column: Column, cell: Cell) -> None:
        """Raises RequestError where the place is taken."""
        row = next((r for r in self.rows if (r.domain, r.title) == (domain, title)), None)
        if row is None:
            row = Row(domain, title, {})
            self.rows.append(row)
        if column in row.cells:
            raise RequestError(
                f"{title}, {column.model}, {column.label}: two files hold it; give one of them"
            )
        row.cells[column] = cell


def write_page(files: Sequence[Path], folder: Path) -> list[Path]:
    """Writes index.html, index.md and the plots (SVG) into a folder, which is made; returns their paths.

    files: what `redraft eval BENCHMARK --json` and `redraft bench speed --json` printed. The HTML holds its plots and
    needs no other file. Without matplotlib there are no plots, and the page says so. Raises RequestError for a file
    that can't be read or holds no such result, and where two hold the same.
    """
    if not files:
        raise RequestError("eval report needs files: what `redraft eval BENCHMARK --json` printed")
    page = read_page(files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RedraftError(f"{folder} can't be made: {error.strerror}") from None
    plots = _plots(page, folder)
    write_atomically(folder / "index.html", html(page, plots).encode())
    write_atomically(folder / "index.md", markdown(page, plots).encode())
    return [folder / "index.html", folder / "index.md", *plots]


def read_page(files: Iterable[Path]) -> Page:
    page = Page()
    for path in files:
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RequestError(f"{path} can't be read: {error}") from None
        try:
            found = _take(page, told)
        except (KeyError, TypeError, ValueError, AttributeError):
            found = False
        if not found:
            raise RequestError(
                f"{path} holds no result of `redraft eval BENCHMARK --json`, `redraft eval acceptance --json` or "
                "`redraft bench speed --json`"
            )
    return page


def _take(page: Page, told: dict[str, Any]) -> bool:
    if "modes" in told:
        _speed(page, told)
        return True
    if "acceptance" in told:
        _acceptance(page, told)
    results = [r for r in told.values() if isinstance(r, dict) and "pass_at_1" in r]
    for result in results:
        _benchmark(page, told, result)
    return bool(results) or "acceptance" in told


def _benchmark(page: Page, told: dict[str, Any], result: dict[str, Any]) -> None:
    settings = [f"{sign}={result[n]}" for n, sign in _SETTINGS.items() if result.get(n) is not None]
    column = Column(str(told["model"]), result["decode"], result["effort"], ", ".join(settings))
    passed, count = int(result["passed"]), int(result["questions"])
    low, high = wilson(passed, count)
    note = f"{100 * low:.1f} – {100 * high:.1f}, n = {count}"
    page.put(
        result["domain"],
        result["title"],
        column,
        Cell(f"{100 * passed / count:.1f} %", note, passed / count, low, high),
    )
    for title, name, form in (
        ("tokens/s", "tokens_per_second", ".1f"),
        ("tokens per evaluation", "tokens_per_forward", ".2f"),
    ):
        page.put("speed", f"{result['title']}, {title}", column, Cell(format(float(result[name]), form)))
    notes = []
    if count < result["of_questions"]:
        notes.append(f"{count} of {result['of_questions']} questions, drawn by seed {result['seed']}")
    if result["refused"]:
        notes.append(f"{result['refused']} too long for the model, counted as failed")
    if result["sandbox"] == "none":
        notes.append("the model's code ran without a sandbox")
    notes.append(
        f"{result['style']} prompts, {result['data']['file']}, sha256 {result['data']['sha256'][:12]}…"
    )
    title = f"{result['title']}, {column.label}"
    page.measured.append(Measured(title, str(told["command"]), _where(result | told), tuple(notes)))


def _speed(page: Page, told: dict[str, Any]) -> None:
    for mode, measured in told["modes"].items():
        column = Column(str(told["model"]), mode)
        for title, name, form in (
            ("one stream, tokens/s", "tokens_per_second", ".1f"),
            ("one stream, tokens per evaluation", "tokens_per_forward", ".2f"),
        ):
            page.put("speed", title, column, Cell(format(float(measured[name]), form)))
    note = f"{told['prompts']} prompts, {told['tokens_per_prompt']} new tokens each"
    command = str(told.get("command", "redraft bench speed --json (its options are not in the file)"))
    page.measured.append(Measured("one stream", command, _where(told), (note,)))


def _acceptance(page: Page, told: dict[str, Any]) -> None:
    """By domain, each mode's speed, and how many drafts in a row the AR self confirmed."""
    found = told["acceptance"]
    for name, part in found["domains"].items():
        for mode, measured in part["modes"].items():
            column = Column(str(told["model"]), mode)
            cells = {
                "tokens/s": f"{measured['tokens_per_second']:.1f}",
                "tokens per evaluation": f"{measured['tokens_per_forward']:.2f}",
            }
            if mode == "verified":
                cells["drafts confirmed in a row"] = f"{part['accepted_in_a_row']:.2f}"
            for title, text in cells.items():
                page.put("speed", f"{name} prompts, {title}", column, Cell(text, f"n = {part['prompts']}"))
    note = (
        f"greedy answers of up to {found['tokens_at_most']} tokens; token ids of verified and AR the same on "
    )
    note += f"{100 * found['overall']['same_as_ar']:.0f} % of {found['overall']['prompts']} prompts"
    page.measured.append(Measured("drafts by domain", str(told["command"]), _where(found), (note,)))


def _where(told: dict[str, Any]) -> str:
    return tables.where(told).rstrip(".") if "machine" in told else str(told["model"])


# Plots


def _plots(page: Page, folder: Path) -> list[Path]:
    rows = [r for r in page.rows if r.domain != "speed"]
    if find_spec("matplotlib") is None or not rows:
        return []
    from redraft.evaluation.plots import plot_quality_over_speed, plot_shares

    shares = {
        r.title: {_heading(page, c): (cell.share, cell.low, cell.high) for c, cell in r.cells.items()}
        for r in rows
    }
    path = folder / "pass_at_1.svg"
    plot_shares(shares, [_heading(page, c) for c in page.columns], path)
    rates = {r.title: r.cells for r in page.rows if r.domain == "speed"}
    points = [
        (r.title, _heading(page, c), float(rates[f"{r.title}, tokens/s"][c].text), 100 * cell.share)
        for r in rows
        for c, cell in r.cells.items()
    ]
    plot_quality_over_speed(points, folder / "speed.svg")
    return [path, folder / "speed.svg"]


def _heading(page: Page, column: Column) -> str:
    return column.label if len(page.models) == 1 else f"{column.model}: {column.label}"


# The two forms


def html(page: Page, plots: Sequence[Path]) -> str:
    """Everything that a result file holds goes through the template's escaping."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source = importlib.resources.files("redraft.evaluation").joinpath("data/report.html.jinja")
    pictures = [
        (p.stem.replace("_", " "), "data:image/svg+xml;base64," + base64.b64encode(p.read_bytes()).decode())
        for p in plots
    ]
    return environment.from_string(source.read_text("utf-8")).render(
        page=page,
        title=f"redraft: {', '.join(page.models)}",
        headings=[(c, _heading(page, c)) for c in page.columns],
        pictures=pictures,
        span=len(page.columns) + 1,
    )


def markdown(page: Page, plots: Sequence[Path]) -> str:
    columns = page.columns
    parts = [f"# redraft: {_plain(', '.join(page.models))}"]
    for title, rows in page.groups():
        body = [
            [
                _plain(r.title),
                *(
                    _plain(f"{r.cells[c].text} {r.cells[c].note}".strip()) if c in r.cells else "–"
                    for c in columns
                ),
            ]
            for r in rows
        ]
        head = [title, *(_plain(_heading(page, c)) for c in columns)]
        parts += [f"## {title}", tables.table(head, body)]
    parts.append("Benchmarks: pass@1, one attempt a question, with the 95 % Wilson interval.")
    parts += [f"![{p.stem.replace('_', ' ')}]({p.name})" for p in plots]
    if not plots:
        parts.append("No plots: they need matplotlib (pip install 'redraft[train]').")
    parts.append("## How it was measured")
    for m in page.measured:
        notes = "".join(f"; {_plain(n)}" for n in m.notes)
        parts.append(f"- {_plain(m.title)}: {_plain(m.where)}{notes}\n\n{_indented(m.command)}")
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in a table as well."""
    out = " ".join(text.split())
    for sign in "\\`*_{}[]<>#|":
        out = out.replace(sign, f"\\{sign}")
    return out


def _indented(command: str) -> str:
    return "      " + " ".join(command.split())
