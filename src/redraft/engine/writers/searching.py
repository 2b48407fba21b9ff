"""decode "edit" with trials of which several fills are sought: a beam search over each canvas, whose beams share
evaluations side by side. Every fill that is found is then read by the AR self, one evaluation each, and a Step that
shows it and a Commit come of it."""

from __future__ import annotations

import numpy as np

from redraft.engine.backend import Pass, PassResult
from redraft.engine.events import Commit
from redraft.engine.writers.base import Event
from redraft.engine.writers.editing import Editing
from redraft.sampling import Canvas, outcome
from redraft.sampling.beam import filled, likeliest, parted


class Searching(Editing):
    _beams: tuple[Canvas, ...] = ()  # of the present canvas, yet to be denoised in this round
    _made: tuple[Canvas, ...] = ()  # what has become of others, and what was full before
    _fills: tuple[Canvas, ...] = ()  # yet to be read
    _shared = 0  # beams in the evaluation under way

    @property
    def _searches(self) -> bool:
        return self._tried is None and self._current.fills > 1

    def next_pass(self) -> Pass:
        if not self._searches:
            return super().next_pass()
        if not self._beams:
            self._beams = (self._begin(),)
        slots = len(self._current.initial)
        # Rows side by side need room in the context, each as if they stood behind one another.
        self._shared = min(len(self._beams), max(1, (self.limit - len(self.text)) // slots))
        side = self._beams[: self._shared]
        # Canvases side by side stand behind tokens of their own pass: the text's last token is encoded anew.
        start = min(self.context.length, len(self.text) - (self._shared > 1))
        self.context.truncate(start)
        encode = np.array(self.text[start:], dtype=np.int64)
        return Pass(
            self.context,
            encode,
            canvas=np.concatenate([canvas.tokens for canvas in side]),
            locked=np.concatenate([canvas.locked for canvas in side]) if self._given else None,
            canvas_rows=np.concatenate([canvas.wanted + n * slots for n, canvas in enumerate(side)]),
            branches=(len(encode),) * self._shared if self._shared > 1 else None,
        )

    def after_pass(self, result: PassResult) -> list[Event]:
        if not self._searches:
            events = super().after_pass(result)
            return events + self._read_next() if self._fills else events
        assert result.canvas is not None
        commit, fills = self._current.commit, self._current.fills
        at, found = 0, list(self._made)
        for canvas in self._beams[: self._shared]:
            rows = result.canvas[at : at + len(canvas.wanted)]
            found += parted(canvas, rows, fills, commit, self._allowed)
            at += len(rows)
        self._beams, self._made = self._beams[self._shared :], tuple(found)
        if self._beams:
            return []
        best = likeliest(found, fills, commit)
        self._beams = tuple(canvas for canvas in best if not filled(canvas, commit))
        self._made = tuple(canvas for canvas in best if filled(canvas, commit))
        if self._beams:
            return [self.step_event(best[0])] if self.request.watched else []
        self._fills, self._made = self._made, ()
        return self._read_next()

    def _read_next(self) -> list[Event]:
        """On to the next fill that is to be read: what it looks like."""
        fill, *rest = self._fills
        self._fills = tuple(rest)
        self._tried = outcome(fill, self._current.commit)
        return [self.step_event(fill)] if self.request.watched else []

    def _next(self, event: Commit) -> Commit:
        """On to the next canvas once all fills of this one have been read."""
        return event if self._fills else super()._next(event)
