"""How training tells of itself: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TextIO

from redraft.cli.terminal import console, is_terminal, safe

# Metrics that have a place of their own, in this order: how they're called, and how they're written.
SHOWN: dict[str, tuple[str, str]] = {
    "loss": ("loss", "{:.3f}"),
    "canvas_loss": ("canvas", "{:.3f}"),
    "nelbo": ("NELBO", "{:.3f}"),
    "ar_loss": ("AR", "{:.3f}"),
    "accuracy": ("right", "{:.0%}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
}
# Metrics that move the bar and the time left, for runs that follow the clock and not their steps.
SHARE_DONE, SECONDS_LEFT = "progress", "eta_seconds"
# Of no use at a glance; metrics.jsonl has them.
_UNSHOWN = {SHARE_DONE, SECONDS_LEFT, "grad_norm", "lr"}
FRAME_SECONDS = 0.25
LINE_SECONDS = 10.0
# Weight of the newest interval in the rate that the time left is told from.
_SMOOTHING = 0.2


class Progress:
    """Shows steps done of total_steps with the latest metrics and the time left. Use as a context manager.

    Metrics are kept until they're given again, so that one which comes with every tenth step only stays in
    sight. On a terminal a bar is redrawn at most four times a second; elsewhere a line is printed at the
    first and the last step and at most every ten seconds in between. Everything goes to stderr; stdout is
    left to results.
    """

    def __init__(
        self,
        total_steps: int,
        plain: bool | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """plain: None finds out whether `stream` (stderr by default) is a terminal that can redraw a line."""
        self._total = max(1, total_steps)
        self._stream = stream or sys.stderr
        self._plain = not is_terminal(self._stream) if plain is None else plain
        self._clock = clock
        self._metrics: dict[str, float] = {}
        self._step = 0
        self._seconds_per_step: float | None = None
        self._last: tuple[int, float] | None = None
        self._shown_at: float | None = None
        self._shown_step: int | None = None
        self._live: object | None = None

    def __enter__(self) -> Progress:
        if not self._plain:
            from rich.live import Live

            live = Live(
                console=console(self._stream),
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            live.start()
            self._live = live
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The last state stays on screen, whatever ended the work."""
        if self._step and self._shown_step != self._step:
            self._show(self._clock())
        if self._live is not None:
            self._live.stop()  # type: ignore[attr-defined]
            self._live = None

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """step: how many are done; metrics by name, of which SHOWN lists those with a short name of their
        own.
        """
        now = self._clock()
        self._step = step
        self._metrics.update(metrics)
        if self._last and step > self._last[0]:
            newest = (now - self._last[1]) / (step - self._last[0])
            old = self._seconds_per_step
            self._seconds_per_step = newest if old is None else old + _SMOOTHING * (newest - old)
        self._last = (step, now)
        pause = LINE_SECONDS if self._plain else FRAME_SECONDS
        if self._shown_at is None or step >= self._total or now - self._shown_at >= pause:
            self._show(now)

    def message(self, text: str) -> None:
        """Text of its own above the bar: an evaluation, a sample, a checkpoint's name."""
        if self._live is not None:
            self._live.console.print(safe(text), soft_wrap=True)  # type: ignore[attr-defined]
        else:
            print(safe(text), file=self._stream, flush=True)

    def line(self) -> str:
        """The state as one line of text."""
        parts = [f"step {self._step}/{self._total}", *self._readings()]
        left = self._time_left()
        return " · ".join([*parts, f"{left} left"] if left else parts)

    def _readings(self) -> list[str]:
        named = [
            (label, form.format(self._metrics[k])) for k, (label, form) in SHOWN.items() if k in self._metrics
        ]
        others = [(k, f"{v:.4g}") for k, v in self._metrics.items() if k not in SHOWN and k not in _UNSHOWN]
        return [f"{label} {value}" for label, value in named + others]

    def _time_left(self) -> str | None:
        if SECONDS_LEFT in self._metrics:
            left = self._metrics[SECONDS_LEFT]
            return duration(left) if left > 0 else None
        if self._seconds_per_step is None or self._step >= self._total:
            return None
        return duration(self._seconds_per_step * (self._total - self._step))

    def _show(self, now: float) -> None:
        self._shown_at, self._shown_step = now, self._step
        if self._live is None:
            print(safe(self.line()), file=self._stream, flush=True)
            return
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        share = self._metrics.get(SHARE_DONE, self._step / self._total)
        bar = ProgressBar(total=1.0, completed=min(share, 1.0))
        line = Text(safe(self.line()), no_wrap=True, overflow="ellipsis")
        rows = Table.grid(expand=True)
        rows.add_row(bar)
        rows.add_row(line)
        self._live.update(rows, refresh=True)  # type: ignore[attr-defined]


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
