"""decode "edit": the canvases that the request brings, denoised one after the other; each sees what became of those
before it, which joins the context with its first step, as in decode "diffusion"."""

from __future__ import annotations

from dataclasses import replace

from redraft.engine.given import GivenCanvas
from redraft.engine.writers.base import Event
from redraft.engine.writers.diffusion import Diffusion
from redraft.sampling import Canvas, begin, outcome


class Editing(Diffusion):
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

    def _finish(self) -> Event:
        """Commits the canvas's leading slots; the last canvas ends the answer."""
        assert self.canvas is not None
        event = self.commit(outcome(self.canvas, self._current.commit))
        self.canvas = None
        self.canvases += 1
        if self.canvases == len(self.request.canvases):
            self.output.finish_reason = "stop"
            event = replace(event, finish_reason="stop")
        return event
