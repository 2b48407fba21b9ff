"""Watchers of a stream: the live view that lets a person see text resolve out of noise, and the plain one.

Both take the engine's events under transformers' streamers' names: put_draft a Step, put a Commit, end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol, TextIO

from redraft.cli import drafts
from redraft.cli.terminal import Interruptible, console, safe, write
from redraft.engine.events import Commit, Step

if TYPE_CHECKING:
    from rich.console import RenderableType

    from redraft.api import Stream
    from redraft.hub.tokenizer import Tokenizer

FRAME_SECONDS = 1 / 30


class Watcher(Protocol):
    def put_draft(self, step: Step) -> None: ...

    def put(self, commit: Commit) -> None: ...

    def end(self, text: str) -> None:
        """The stream is over; `text` is the whole answer, or what was settled of it."""
        ...


class Progress:
    """What was committed so far and the canvas that is being written."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int]) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.committed: list[int] = []
        self.text = ""  # of what was committed, but for the beginning of a character
        self._decoder = tokenizer.text_stream()
        self._open: list[int] = []  # the committed tokens of that character
        self.step: Step | None = None
        self.nfe = 0

    def put_draft(self, step: Step) -> None:
        self.step, self.nfe = step, step.nfe

    def put(self, commit: Commit) -> None:
        for token in (t for t in commit.tokens if t not in self.stop_ids):
            self.committed.append(token)
            self.text += self._decoder.put([token])
            self._open = [*self._open, token] if self._decoder.pending else []
        self.step, self.nfe = None, commit.nfe

    def end(self, text: str) -> None:
        """Nothing is shown here."""

    def slots(self) -> list[drafts.Slot]:
        if self.step is None:
            return []
        return drafts.visible_slots(self.step, self.tokenizer, self.stop_ids, self._open)

    def settled(self, stop: Sequence[str] = ()) -> str:
        """Committed text and the settled beginning of the canvas, ending where a stop string begins."""
        text = self.text + drafts.settled_text(self.slots())
        return text[: certain(text, stop)]

    def settled_tokens(self) -> int:
        states = (s.state for s in self.slots() if s.text)
        unsettled = (drafts.SlotState.NOISE, drafts.SlotState.DRAFT)
        return len(self.committed) + sum(s not in unsettled for s in states)


class LiveView:
    """Redraws answer and status line in place, at most 30 times a second unless `delay` asks to see every
    step.

    Leaves nothing behind but the answer, printed plainly, so that scrolling back and copying work.
    """

    def __init__(
        self, progress: Progress, delay: float = 0.0, stream: TextIO | None = None, leave_text: bool = True
    ) -> None:
        """delay: seconds that each step stays on screen. leave_text: print the answer when it's done."""
        from rich.live import Live

        self._progress = progress
        self._delay = delay
        self._stream = stream or sys.stdout
        self._leave_text = leave_text
        self._console = console(self._stream)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._started = time.perf_counter()
        self._drawn = 0.0
        self.slept = 0.0  # seconds spent on being seen, which aren't the model's

    def put_draft(self, step: Step) -> None:
        self._draw(always=self._delay > 0)
        if self._delay:
            time.sleep(self._delay)
            self.slept += self._delay

    def put(self, commit: Commit) -> None:
        self._draw(always=False)

    def end(self, text: str) -> None:
        self.close()
        if self._leave_text:
            write(text if text.endswith("\n") else text + "\n", self._stream)

    def close(self) -> None:
        """Takes the view off the screen; harmless when it's off."""
        self._live.stop()

    def _draw(self, always: bool) -> None:
        now = time.perf_counter()
        if not always and now - self._drawn < FRAME_SECONDS:
            return  # a late frame is dropped, never queued
        self._drawn = now
        if not self._live.is_started:
            self._live.start()
        self._live.update(self._frame(now - self._started - self.slept), refresh=True)

    def _frame(self, seconds: float) -> RenderableType:
        """The last lines of the answer that fit the window, and the status line."""
        from rich.console import Group
        from rich.text import Text

        width, height = self._console.size
        answer = Text(safe(self._progress.text), drafts.STYLES[drafts.SlotState.SETTLED], overflow="fold")
        answer.append_text(drafts.styled(self._progress.slots()))
        lines = answer.wrap(self._console, max(1, width), overflow="fold")
        room = max(1, height - 2)
        status = Text(status_line(self._progress, seconds), "dim", no_wrap=True, overflow="ellipsis")
        return Group(*lines[-room:], status)


def status_line(progress: Progress, seconds: float) -> str:
    """canvas and step, NFE, tokens per forward, tokens/s so far (settled slots counted)."""
    tokens = progress.settled_tokens()
    parts = []
    if progress.step:
        parts.append(f"canvas {progress.step.canvas + 1} · step {progress.step.step}")
    parts.append(f"NFE {progress.nfe}")
    parts.append(f"{tokens / max(1, progress.nfe):.2f} tokens/forward")
    if seconds > 0:
        parts.append(f"{tokens / seconds:.0f} tokens/s")
    return " · ".join(parts)


class PlainView:
    """Committed text only, written as soon as it's committed and certain."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        stop_ids: Collection[int] = (),
        stream: TextIO | None = None,
    ) -> None:
        """stop: text that might be the beginning of one of these waits; the answer ends before it."""
        self._decoder = tokenizer.text_stream()
        self._stop = [s for s in stop if s]
        self._stop_ids = frozenset(stop_ids)
        self._stream = stream or sys.stdout
        self._seen = ""
        self._written = 0

    def put_draft(self, step: Step) -> None:
        """Drafts aren't shown."""

    def put(self, commit: Commit) -> None:
        self._seen += self._decoder.put(t for t in commit.tokens if t not in self._stop_ids)
        self._write_up_to(certain(self._seen, self._stop))

    def end(self, text: str) -> None:
        """Whatever of the answer was held back, and the end of its last line."""
        self._seen = text
        self._write_up_to(len(text))
        if not text.endswith("\n"):
            write("\n", self._stream)

    def _write_up_to(self, end: int) -> None:
        if end > self._written:
            write(self._seen[self._written : end], self._stream)
            self._written = end


def certain(text: str, stop: Sequence[str]) -> int:
    """How much of `text` can be shown although more may follow: nothing from a stop string, whole or begun,
    on.
    """
    found = [at for s in stop if (at := text.find(s)) >= 0]
    if found:
        return min(found)
    held = 0
    for s in stop:
        held = max(
            held, next((n for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n])), 0)
        )
    return len(text) - held


def watch(stream: Stream, watchers: Sequence[Watcher], stop: Interruptible) -> None:
    """Shows each event to every watcher until the stream ends or Ctrl-C was pressed, between two steps."""
    for event in stream:
        for watcher in watchers:
            if isinstance(event, Step):
                watcher.put_draft(event)
            else:
                watcher.put(event)
        if stop.pressed:
            break
