"""A picture of denoising, made by the program itself: one canvas, a row for each step, as SVG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from redraft.cli.drafts import STYLES, Slot, styled
from redraft.cli.terminal import safe
from redraft.engine.events import Commit, SlotState, Step
from redraft.errors import RequestError
from redraft.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from redraft.cli.render import Progress

# Rich's own picture loads a font from the network; a picture in a README should ask for nothing.
_SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
COLUMNS = 100


@dataclass(frozen=True)
class Frame:
    """One canvas after one step; `before` is the text committed by then."""

    canvas: int
    step: int
    before: str
    slots: tuple[Slot, ...]


class Recorder:
    """Watches a stream and keeps every step."""

    def __init__(self, progress: Progress) -> None:
        """progress: a watcher that is told of each event before this one."""
        self._progress = progress
        self.frames: list[Frame] = []
        self.text = ""

    def put_draft(self, step: Step) -> None:
        slots = tuple(self._progress.slots())
        self.frames.append(Frame(step.canvas, step.step, self._progress.text, slots))

    def put(self, commit: Commit) -> None:
        """What is committed is in `progress`."""

    def end(self, text: str) -> None:
        self.text = text

    def save(self, path: Path, prompt: str) -> None:
        """Raises RequestError when there's nothing to draw (ar commits token by token and drafts nothing)."""
        if not self.frames:
            raise RequestError("--svg: there were no denoising steps to draw (use --decode diffusion)")
        write_atomically(path, draw(self.frames, prompt, self.text).encode())


def draw(frames: list[Frame], prompt: str, answer: str) -> str:
    """SVG text: the prompt, the steps of the canvas that took most of them, the answer, what the colours
    mean.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    counts: dict[int, int] = {}
    for frame in frames:
        counts[frame.canvas] = counts.get(frame.canvas, 0) + 1
    chosen = max(counts, key=lambda canvas: counts[canvas])
    console = Console(
        record=True,
        width=COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        no_color=False,
        markup=False,
        emoji=False,
        highlight=False,
        _environ={},
    )
    console.print(Text(f"> {_one_line(prompt)}", "bold"))
    for frame in (f for f in frames if f.canvas == chosen):
        label = Text(f"step {frame.step:>2}  ", "bright_black")
        row = Text(_one_line(frame.before[-40:].lstrip()), "bright_black") if frame.before else Text()
        row.append_text(styled(Slot(_one_line(slot.text), slot.state) for slot in frame.slots))
        _hanging(console, label, row)
    console.print(Padding(Text(safe(answer)), (1, 0, 0, 0)))
    console.print(Padding(_legend(), (1, 0, 0, 0)))
    return console.export_svg(title="redraft", code_format=_SVG, unique_id="redraft")


def _hanging(console: Console, label: Text, row: Text) -> None:
    from rich.table import Table

    grid = Table.grid(padding=0)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(label, row)
    console.print(grid)


def _legend() -> Text:
    from rich.text import Text

    text = Text()
    for state in (SlotState.NOISE, SlotState.DRAFT, SlotState.NEW, SlotState.REVISED, SlotState.SETTLED):
        text.append(state.name.lower(), STYLES[state])
        text.append("  ")
    return text


def _one_line(text: str) -> str:
    return text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", " ")
