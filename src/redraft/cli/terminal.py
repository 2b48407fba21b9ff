"""The terminal: what may be written to it, where colours go, and Ctrl-C as a request to stop."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# C0 but newline and tab, DEL, C1, and what silently reorders a line: none of it may reach a terminal from a
# model.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def safe(text: str) -> str:
    """`text` with control characters made visible: a model's output can't move the cursor or change its
    colour.
    """

    def visible(match: re.Match[str]) -> str:
        number = ord(match[0])
        if number < 0x20:
            return chr(0x2400 + number)  # the control pictures: ␛ for escape
        return "\u2421" if number == 0x7F else "\ufffd"

    return _CONTROLS.sub(visible, text)


def is_terminal(stream: TextIO) -> bool:
    """A person's terminal that can redraw lines."""
    try:
        return stream.isatty() and os.environ.get("TERM", "ansi" if os.name == "nt" else "") not in (
            "dumb",
            "",
        )
    except ValueError:  # closed
        return False


def console(stream: TextIO) -> Console:
    """A rich console that writes model text as it is: no markup, no emoji names, no highlighting."""
    from rich.console import Console

    return Console(file=stream, markup=False, emoji=False, highlight=False, soft_wrap=False)


def write(text: str, stream: TextIO | None = None) -> None:
    """To stdout at once. On a terminal control characters are made visible; into a file or pipe goes what was
    meant.
    """
    stream = stream or sys.stdout
    stream.write(safe(text) if stream.isatty() else text)
    stream.flush()


def say(line: str) -> None:
    """One line to stderr, for a person."""
    print(safe(" ".join(line.split())), file=sys.stderr, flush=True)


class Interruptible:
    """While open, the first Ctrl-C only sets `pressed`, to be looked at between two steps; a second one
    interrupts.

    So a reply ends at a whole step and what was settled can be shown. Outside the main thread it changes
    nothing.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._before: Any = None
        self._active = False

    def __enter__(self) -> Interruptible:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
            self._active = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._before)
            self._active = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
