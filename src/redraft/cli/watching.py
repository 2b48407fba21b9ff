"""Fills and edits as a person watches them: the canvas between the text before it and the text behind it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from redraft.cli.render import LiveView, Progress, Watcher
from redraft.cli.terminal import Interruptible, is_terminal
from redraft.engine.events import Commit, Step

if TYPE_CHECKING:
    from redraft.editing.editor import Ask
    from redraft.editing.stream import EditStream
    from redraft.hub.tokenizer import Tokenizer

BEFORE = 2000  # characters of the text before a canvas that are kept for the screen


class EditProgress(Progress):
    """Progress through the requests of one fill or edit."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, ())
        self._ask: Ask | None = None
        self._earlier = self._count = 0  # evaluations of the requests before this one, and of this one

    def follow(self, ask: Ask) -> None:
        """The request that the next events come from."""
        if ask is self._ask:
            return
        self._ask, self.step = ask, None
        self._earlier, self._count = self._earlier + self._count, 0
        self.text, self._open = ask.before[-BEFORE:], []
        self._decoder = self.tokenizer.text_stream()

    def put_draft(self, step: Step) -> None:
        super().put_draft(step)
        self._counted(step.nfe)

    def put(self, commit: Commit) -> None:
        super().put(commit)
        self._counted(commit.nfe)

    def _counted(self, nfe: int) -> None:
        self._count, self.nfe = nfe, self._earlier + nfe


def finish(stream: EditStream[Any], tokenizer: Tokenizer, live: bool) -> bool:
    """Runs a fill or an edit to its end, shown on a terminal if `live`; whether Ctrl-C ended it before."""
    progress = EditProgress(tokenizer)
    view = LiveView(progress, leave_text=False) if live and is_terminal(sys.stdout) else None
    watchers: list[Watcher] = [progress, view] if view else [progress]
    try:
        with Interruptible() as stop:
            for event in stream:
                progress.follow(stream.ask)
                for watcher in watchers:
                    if isinstance(event, Step):
                        watcher.put_draft(event)
                    else:
                        watcher.put(event)
                if stop.pressed:
                    stream.close()
    finally:
        if view:
            view.close()
    return stop.pressed
