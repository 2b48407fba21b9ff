"""decode "edit": the canvases that the request brings, denoised one after the other; each sees what became of those
before it, which joins the context with its first step, as in decode "diffusion". A trial joins nothing: one more
evaluation lets the AR self read it, and it is forgotten."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from redraft.engine.backend import Pass, PassResult
from redraft.engine.events import Commit
from redraft.engine.given import GivenCanvas
from redraft.engine.likelihood import nll
from redraft.engine.writers.base import Event
from redraft.engine.writers.diffusion import Diffusion
from redraft.sampling import Canvas, begin, outcome


class Editing(Diffusion):
    _tried: tuple[int, ...] | None = None  # what a trial has come to, while the AR self reads it

    @property
    def _current(self) -> GivenCanvas:
        return self.request.canvases[self.canvases]

    def _begin(self) -> Canvas:
        given = self._current
        self._given = any(given.locked)
        self._allowed = given.allowed(self.config.vocab_size)
        return begin(
            self.resized(self.request.sampler, len(given.initial)),
            self.vocabulary,
            self.request.key,
            len(self.output.tokens),
            locked=given.locked_tokens,
            initial=given.initial,
            chosen=self.output.tokens,
        )

    def _ended_early(self) -> bool:
        """Whether all slots that are to be committed have settled: the others were only there to be seen."""
        assert self.canvas is not None
        if not self.request.sampler.final:
            return False
        return not self.canvas.open[: self._current.commit].any()

    def next_pass(self) -> Pass:
        if self._tried is None:
            return super().next_pass()
        # The text's last token is encoded anew: its logits say how likely the first token of the trial is.
        start = min(self.context.length, len(self.text) - 1)
        self.context.truncate(start)
        tokens = (*self.text[start:], *self._tried, *self._current.behind)
        return Pass(self.context, np.array(tokens, dtype=np.int64), "all")

    def after_pass(self, result: PassResult) -> list[Event]:
        if self._tried is None:
            return super().after_pass(result)
        read = np.array((*self._tried, *self._current.behind), dtype=np.int64)
        rows = result.encode[len(result.encode) - len(read) - 1 : -1]
        # A shifted canvas reads its first slot off the text's last token, which is encoded anew with the next one.
        self.context.truncate(len(self.text) - self.config.shift)
        event = Commit(self.canvases, self._tried, self.nfe, ar_nll=self._nll(rows, read))
        self._tried = None
        return [self._next(event)]

    def _nll(self, rows: np.ndarray, read: np.ndarray) -> float:
        return float(nll(rows, read, self.config.special_slot_ids).sum())

    def _finish(self) -> list[Event]:
        """Commits the canvas's leading slots, or has a trial read; the last canvas ends the answer."""
        assert self.canvas is not None
        tokens = outcome(self.canvas, self._current.commit)
        self.canvas = None
        if self._current.trial:
            self._tried = tokens
            return []
        return [self._next(self.commit(tokens))]

    def _next(self, event: Commit) -> Commit:
        """On to the next canvas, if there is one."""
        self.canvases += 1
        if self.canvases < len(self.request.canvases):
            return event
        self.output.finish_reason = "stop"
        return replace(event, finish_reason="stop")
