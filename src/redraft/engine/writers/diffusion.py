"""decode "diffusion": canvas after canvas is denoised; the one before joins the context with the next one's
first step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.adaptive import RECENT, Evaluation, choose_length
from redraft.engine.backend import Pass, PassResult
from redraft.engine.writers.base import Event, Writer, prefill_length
from redraft.sampling import Canvas, SamplerSettings, SlotVocabulary, advance, begin, outcome, wanted
from redraft.sampling.grammar import Allow

NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Head:
    """Clean text that this layout's canvas must carry: all of it (full) or what its block begins with
    (block_causal)."""

    tokens: np.ndarray  # int64

    def before(self, slots: np.ndarray, fill: object) -> np.ndarray:
        """`slots` with one entry for each head token put before."""
        return np.concatenate((np.full(len(self.tokens), fill, dtype=slots.dtype), slots))


class Diffusion(Writer):
    canvas: Canvas | None = None
    _expected: np.ndarray | None = None
    _nulls_banned = False
    _given = False  # whether the canvas has locked slots
    _allowed: np.ndarray | None = None  # bool [C, V]: what its slots may hold

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._history: list[Evaluation] = []  # for canvases of adaptive length

    def next_pass(self) -> Pass:
        """Every pass of a canvas; the first also encodes what the last canvas committed."""
        encoded = prefill_length(self.config, len(self.text))
        held = self.context.length
        encode = np.array(self.text[held:encoded], dtype=np.int64) if held < encoded else NOTHING
        if self.canvas is None:
            self.canvas = self._begin()
            self._expected = None
        rows = np.arange(len(self.canvas.tokens)) if self.config.self_conditioning else wanted(self.canvas)
        if encoded == len(self.text):
            locked = self.canvas.locked if self._given else None
            return Pass(self.context, encode, "none", self.canvas.tokens, locked, rows, self._expected)
        head = Head(np.array(self.text[encoded:], dtype=np.int64))
        return Pass(
            self.context,
            encode,
            canvas=np.concatenate((head.tokens, self.canvas.tokens)),
            locked=head.before(self.canvas.locked, True),
            canvas_rows=len(head.tokens) + rows,
            expected=self._expected,
        )

    def _begin(self) -> Canvas:
        """A fresh canvas; the first may hold given slots and tokens."""
        first = self.canvases == 0
        slots = canvas_slots(self.config, self._length(), len(self.text))
        self._given = bool(first and self.request.locked)
        return begin(
            self.resized(self.request.sampler, slots),
            self._slot_vocabulary,
            self.request.key,
            len(self.output.tokens),
            locked=self.request.locked if first else None,
            initial=self.request.initial if first else None,
            chosen=self.output.tokens,
            watched=self.request.watched,
        )

    @cached_property
    def _allow(self) -> Allow | None:
        """The request's grammar as a canvas asks it: from the canvas's own tokens."""
        allow = self.request.allow
        return None if allow is None else lambda tokens: allow(self.output.tokens + tokens)

    def resized(self, settings: SamplerSettings, slots: int) -> SamplerSettings:
        """Under a grammar a step may settle a single slot, so that there must be as many."""
        if self.request.allow is not None and settings.max_steps < slots:
            settings = replace(settings, max_steps=slots)
        return super().resized(settings, slots)

    def _length(self) -> int:
        """Slots that the next canvas should have."""
        costs = self.request.step_costs
        return self.request.sampler.canvas_length if costs is None else choose_length(self._history, costs)

    @property
    def _slot_vocabulary(self) -> SlotVocabulary:
        null = self.config.null_token_id
        if not self._nulls_banned or null is None:
            return self.vocabulary
        return replace(self.vocabulary, banned=(*self.vocabulary.banned, null))

    def after_pass(self, result: PassResult) -> list[Event]:
        assert self.canvas is not None
        assert result.canvas is not None
        if self.config.self_conditioning:
            head = len(self.text) - prefill_length(self.config, len(self.text))
            expected = np.zeros((head + len(result.canvas), self.config.vocab_size), dtype=np.float32)
            expected[head:] = _softmax(result.canvas)
            self._expected = expected
        before = self.canvas
        self.canvas = advance(before, result.canvas, self._allowed, self._allow)
        if self.request.step_costs is not None:
            self._history.append((int(before.open.sum()), int((self.canvas.settled & before.open).sum())))
            del self._history[:-RECENT]
        events: list[Event] = [self.step_event(self.canvas)] if self.request.watched else []
        if self.canvas.finished or self._ended_early():
            events += self._finish()
        elif self._slides:
            events += self._slide()
        return events

    @property
    def _slides(self) -> bool:
        """Whether settled slots may leave the canvas before the others: they must not change any more."""
        if not self.request.slide:
            return False
        free = not self.request.locked and self.request.initial is None
        return self.request.sampler.final and free and self.config.layout == "causal_context"

    def _slide(self) -> list[Event]:
        """Commits the leading slots that have settled, if they are enough, and opens as many behind the rest: the next
        pass denoises a full canvas where it would have finished the few slots left of this one."""
        assert self.canvas is not None
        lead = int(np.flatnonzero(self.canvas.open)[0])
        tokens = [t for t in self.canvas.shown[:lead].tolist() if t != self.config.null_token_id]
        if len(tokens) < self.request.slide:  # nulls alone bring nothing: they wait for the canvas's end
            return []
        event = self.commit(tokens)
        settled = np.where(self.canvas.settled, self.canvas.tokens, -1)[lead:]
        self.canvas = None
        if self.done:
            return [event]
        length = len(settled) + lead if self.request.step_costs is None else max(len(settled), self._length())
        slots = canvas_slots(self.config, length, len(self.text))
        initial = np.concatenate((settled, np.full(length - len(settled), -1)))[:slots]
        self.canvas = begin(
            self.resized(self.request.sampler, slots),
            self._slot_vocabulary,
            self.request.key,
            len(self.output.tokens),
            initial=initial,
            chosen=self.output.tokens,
            watched=self.request.watched,
        )
        self.canvases += 1
        return [event]

    def _ended_early(self) -> bool:
        """Whether the slots settled from the left on already hold the end of the answer (length, a stop
        string)."""
        assert self.canvas is not None
        if not self.request.sampler.final:
            return False
        closed = self.canvas.settled.tolist()
        settled = closed.index(False) if False in closed else len(closed)
        if not settled:
            return False
        null = self.config.null_token_id
        return self.output.ends_within([t for t in self.canvas.shown[:settled].tolist() if t != null])

    def _finish(self) -> list[Event]:
        """Commits the canvas. One that holds nothing but nulls ends the answer, unless EOS is to be ignored:
        then it is denoised again without nulls."""
        assert self.canvas is not None
        tokens = outcome(self.canvas)
        self._nulls_banned = not tokens and self.request.ignore_eos
        if not tokens and not self.request.ignore_eos:
            self.output.finish_reason = "stop"
        event = self.commit(tokens)
        self.canvas = None
        self.canvases += 1
        if (
            self.request.max_canvases is not None
            and self.canvases >= self.request.max_canvases
            and not self.done
        ):
            self.output.finish_reason = "length"
            event = replace(event, finish_reason="length")
        return [event]


def canvas_slots(config: DenoiserConfig, wanted_slots: int, text: int) -> int:
    """Slots of the canvas that follows `text` tokens: as many as wanted, or the rest of the block; none past
    the context's end."""
    if config.layout == "block_causal":
        wanted_slots = config.canvas_length - text % config.canvas_length
    return min(wanted_slots, config.max_position_embeddings - text)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """float32 [C, V]."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    out: np.ndarray = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
    return out
