"""decode "edit" with a review: each canvas is denoised once, and where that brings proposals the encode role reads the
window as it stands and with each of them, before any is made. One evaluation a canvas without proposals; with some, one
more, and one for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from redraft.engine.backend import Pass, PassResult
from redraft.engine.review import Change, log_softmax
from redraft.engine.writers.base import Event
from redraft.engine.writers.editing import Editing
from redraft.sampling import Canvas
from redraft.sampling.state import SlotState


class Reviewed(Editing):
    _changes: tuple[Change, ...] = ()
    _read: tuple[np.ndarray, ...] = ()  # log p of the encode role, of the readings so far

    def next_pass(self) -> Pass:
        """The canvas behind what has been committed; or, to check its proposals, the clean text of it."""
        if not self._changes:
            return super().next_pass()
        # The row before the window predicts its first token.
        standing = [self.text[-1], *self._clean(self._current.initial)]
        if not self._read:
            self.context.truncate(len(self.text) - 1)
            return Pass(self.context, np.array(standing, dtype=np.int64), "all")
        # Up to the change all is as it was read. The rightmost comes first: before it the text as it stands is encoded.
        change = self._changes[len(self._read) - 1]
        first = self._first(change)
        self.context.truncate(len(self.text) - 1 + first)
        read = [self.text[-1], *self._clean(change.made(self._current.initial))]
        return Pass(self.context, np.array(read[first:], dtype=np.int64), "all")

    def _first(self, change: Change) -> int:
        """How many tokens of the window come before a change."""
        return len(self._clean(self._current.initial[: change.start]))

    def _clean(self, slots: Sequence[int]) -> list[int]:
        """A canvas's tokens, those included that are only looked at."""
        return [token for token in slots if token != self.config.null_token_id]

    def after_pass(self, result: PassResult) -> list[Event]:
        review = self.request.review
        assert review is not None
        assert self.canvas is not None
        if self._changes:
            rows = log_softmax(result.encode, self.vocabulary.never_text)
            if self._read:
                before = self._first(self._changes[len(self._read) - 1])
                rows = np.concatenate((self._read[0][:before], rows))
            self._read = (*self._read, rows)
            if len(self._read) <= len(self._changes):
                return []
            made = review.decide(self._current, self._changes, self._read)
            self.context.truncate(len(self.text) + self._first(self._changes[-1]))
            self._changes, self._read = (), ()
            self.canvas = _changed(self.canvas, made)
            return self._closed()
        assert result.canvas is not None
        log_p = np.zeros((len(self.canvas.tokens), self.config.vocab_size), np.float32)
        log_p[self.canvas.wanted] = log_softmax(result.canvas, self.vocabulary.never)
        proposed = review.propose(self._current, log_p)
        self._changes = tuple(sorted(proposed, key=lambda change: change.start, reverse=True))
        self.canvas = self.canvas.after(step=1)
        if self._changes:
            return [self.step_event(self.canvas)] if self.request.watched else []
        return self._closed()

    def _closed(self) -> list[Event]:
        """Commits the canvas. What the check has encoded stays in the context as far as it is what is committed."""
        assert self.canvas is not None
        events: list[Event] = [self.step_event(self.canvas)] if self.request.watched else []
        before = len(self.text)
        standing = self._clean(self._current.initial)
        events += self._finish()
        kept = 0
        for stood, now in zip(standing, self.text[before:], strict=False):
            if stood != now:
                break
            kept += 1
        if self.context.length > before + kept:
            self.context.truncate(before + kept)
        return events


def _changed(canvas: Canvas, made: Sequence[tuple[Change, float]]) -> Canvas:
    """The canvas with these changes, each with its probability."""
    tokens, state = canvas.tokens.copy(), canvas.state.copy()
    probability = canvas.probability.copy()
    for change, sure in made:
        span = np.arange(change.start, change.stop)
        revised = span[tokens[span] != change.slots]
        tokens[span] = change.slots
        state[revised], probability[revised] = SlotState.REVISED, sure
    return canvas.after(
        tokens=tokens, shown=tokens, state=state, probability=probability, step=canvas.step + 1
    )
