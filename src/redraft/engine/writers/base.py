"""What all decode modes share: the text so far, how much of it the context holds, and how the prompt gets
there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Literal

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.backend import Context, Pass, PassResult
from redraft.engine.ending import EndRules, Output, TokenBytes
from redraft.engine.events import Commit, Step
from redraft.engine.request import Request
from redraft.errors import RedraftError
from redraft.sampling import Canvas, SamplerSettings
from redraft.sampling.grammar import permitted
from redraft.sampling.heads import DraftHeads

PREFILL_CHUNK = (
    512  # prompt tokens of one request in one evaluation, so that a long prompt doesn't hold up the others
)

Event = Step | Commit


class Writer(ABC):
    """One answer being written. The engine alternates `plan` and `absorb` until `done`.

    text: prompt and output so far; the context holds its first `context.length` tokens. nfe: evaluations
    after the prompt's own. heads: the backend's, for canvases that draft.
    """

    encode_prompt: Literal["none", "last"] = "none"

    def __init__(
        self,
        request: Request,
        config: DenoiserConfig,
        context: Context,
        token_bytes: TokenBytes,
        heads: DraftHeads | None = None,
    ) -> None:
        self.request, self.config, self.heads = request, config, heads
        self._context: Context | None = context
        self.vocabulary = request.vocabulary(config)
        self.limit = config.max_position_embeddings
        room = self.limit - len(request.prompt)
        most = room if request.max_tokens is None else min(room, request.max_tokens)
        stop = tuple(s.encode() for s in request.stop)
        self.output = Output(EndRules(frozenset(self.vocabulary.eos_ids), stop, most, token_bytes))
        self.text = list(request.prompt)
        self.nfe = 0
        self.canvases = 0
        self._to_read = prefill_length(config, len(request.prompt))
        self._reading = False
        self._sized: dict[int, SamplerSettings] = {}

    @property
    def context(self) -> Context:
        if self._context is None:
            raise RedraftError("this answer has been closed")
        return self._context

    def close(self) -> None:
        """Lets the context go, which may be large; what was written stays."""
        self._context = None

    @property
    def done(self) -> bool:
        return self.output.finish_reason is not None

    @property
    def prefilling(self) -> bool:
        return self.context.length < self._to_read

    def plan(self) -> Pass:
        """This answer's share of the next evaluation."""
        if not self.prefilling:
            return self.next_pass()
        self._reading = True
        start = self.context.length
        block = self.config.canvas_length if self.config.layout == "block_causal" else 1
        stop = min(start + max(PREFILL_CHUNK // block, 1) * block, self._to_read)
        encode = np.array(self.text[start:stop], dtype=np.int64)
        if stop < self._to_read:
            return Pass(self.context, encode, "none")
        return self.reading_ends(Pass(self.context, encode, self.encode_prompt))

    def reading_ends(self, p: Pass) -> Pass:
        """The pass that reads the prompt's last tokens."""
        return p

    def absorb(self, result: PassResult) -> list[Event]:
        """What that evaluation brought."""
        if self._reading:
            self._reading = False
            return [] if self.prefilling else self.after_prompt(result)
        self.nfe += 1
        return self.after_pass(result)

    @abstractmethod
    def next_pass(self) -> Pass:
        """The next pass once the prompt has been read."""

    @abstractmethod
    def after_pass(self, result: PassResult) -> list[Event]: ...

    def after_prompt(self, result: PassResult) -> list[Event]:
        """Called with the result of the pass that read the prompt's last token."""
        return []

    def commit(self, tokens: tuple[int, ...] | list[int]) -> Commit:
        """Adds tokens to the output and the text until the answer ends."""
        taken = self.output.extend(tokens)
        self.text.extend(taken)
        return Commit(self.canvases, taken, self.nfe, self.output.finish_reason)

    def allowed(self, before: list[int]) -> np.ndarray | None:
        """bool [V]: what the request's grammar lets follow these tokens of the answer; None without one."""
        allow = self.request.allow
        return None if allow is None else permitted(allow, before, self.config.vocab_size)

    def pending(self) -> np.ndarray:
        """int64: tokens of the text that the context doesn't hold yet."""
        return np.array(self.text[self.context.length :], dtype=np.int64)

    def resized(self, settings: SamplerSettings, slots: int) -> SamplerSettings:
        """`settings`, always the same ones, for a canvas of `slots`; lengths come back again and again."""
        if slots not in self._sized:
            same = settings.canvas_length == slots
            self._sized[slots] = settings if same else replace(settings, canvas_length=slots)
        return self._sized[slots]

    def step_event(self, canvas: Canvas, first: int = 0) -> Step:
        """What the canvas shows from slot `first` on."""
        return Step(
            canvas=self.canvases,
            step=canvas.step,
            position=len(self.output.tokens),
            tokens=canvas.shown[first:],
            state=canvas.state[first:],
            probability=canvas.probability[first:],
            entropy=canvas.entropy[first:],
            nfe=self.nfe,
        )


def prefill_length(config: DenoiserConfig, prompt: int) -> int:
    """How many of `prompt` tokens are encoded before the first canvas; the rest are locked slots on it.

    block_causal encodes whole blocks only (a clean row sees its whole block), full encodes nothing.
    """
    if config.layout == "causal_context":
        return prompt
    if config.layout == "block_causal":
        return prompt // config.canvas_length * config.canvas_length
    return 0
