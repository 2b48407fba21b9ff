"""Fills and edits as they go: the engine's events, request after request, and the result at their end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from redraft.editing.editor import Answer, Settled, Show, Steps
from redraft.editing.fill import Filled
from redraft.editing.hunks import Edit, Part, apply, hunks_of
from redraft.engine import Commit, Request, Step, Ticket
from redraft.engine.completion import Completion

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True)
class Filling(Completion):
    """A Completion of gaps. text: what the gaps hold, texts: each alone, full_text: everything. token_ids: what the
    canvases came to, tokens at the seams included. finish_reason: "length" where a gap was cut at its most slots.
    prompt_tokens: most that were read before a gap."""

    texts: tuple[str, ...]
    full_text: str

    def to_json(self) -> dict[str, Any]:
        """What `redraft fill --json` prints."""
        names = ("model", "text", "texts", "full_text", "finish_reason", "tokens", "nfe", "seconds", "seed")
        return {name: getattr(self, name) for name in names}


class Running(Iterator[Step | Commit], Protocol):
    """Events of one request under way."""

    def close(self) -> None: ...


class Started(Running, Protocol):
    _ticket: Ticket


class _Again:
    """The end of a trial once more, as events that took no evaluation. Implements Running."""

    def __init__(self, settled: Settled) -> None:
        commit = replace(settled.commit, nfe=0, finish_reason="stop", ar_nll=None)
        self._events: Iterator[Step | Commit] = iter((replace(settled.step, nfe=0), commit))

    def __iter__(self) -> Iterator[Step | Commit]:
        return self

    def __next__(self) -> Step | Commit:
        return next(self._events)

    def close(self) -> None:
        self._events = iter(())


class EditStream(Generic[T]):
    """Events of a fill or an edit, to be iterated once; `ask` is the request they come from, with the text around
    it. Leaving early, `close`, or reading `result` before the end: see there.

    nfe, seconds, tickets and times are those so far.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[Request], Started],
        steps: Steps[R],
        finish: Callable[[R, EditStream[T]], T],
    ) -> None:
        """Raises RequestError when the first request already can't be."""
        self.name, self._start, self._steps = name, start, steps
        self._finish: Callable[[Any, EditStream[T]], T] = finish
        self.started = time.perf_counter()
        self.tickets: list[Ticket] = []
        self.first_change: float | None = None
        self.interrupted = False
        self._result: T | None = None
        self._stream: Running | None = None
        self._advance(None)

    def __iter__(self) -> Iterator[Step | Commit]:
        return self

    def __next__(self) -> Step | Commit:
        while self._stream is not None:
            event = next(self._stream, None)
            if event is None:
                self._advance(Answer(tuple(self._settled)))
            elif isinstance(event, Step):
                self._last = event
                return event
            else:
                self._note(event)
                if event.ar_nll is None:
                    return event
        raise StopIteration

    def _note(self, event: Commit) -> None:
        """A canvas has settled as its last step showed it."""
        canvas = self.ask.request.canvases[event.canvas]
        self._settled.append(Settled(self._last, event))
        if self.first_change is None:
            before = np.array(canvas.initial[: canvas.commit])
            if (before != self._last.tokens[: canvas.commit]).any():
                self.first_change = time.perf_counter() - self.started

    def _advance(self, answer: Answer | None) -> None:
        """On to the next request, or the result."""
        self._settled: list[Settled] = []
        try:
            asked = next(self._steps) if answer is None else self._steps.send(answer)
        except StopIteration as end:
            self._stream = None
            self._result = self._finish(end.value, self)
            return
        self.ask = asked.ask if isinstance(asked, Show) else asked
        if self.interrupted:
            return
        if isinstance(asked, Show):
            self._stream = _Again(asked.settled)
            return
        started = self._start(self.ask.request)
        self.tickets.append(started._ticket)
        self._stream = started

    def close(self) -> None:
        """Ends the work: what has settled by then is kept, the rest stays as it was (a gap: empty)."""
        if self._stream is None:
            return
        self._stream.close()
        self.interrupted = True
        self._advance(Answer(tuple(self._settled)))
        while self._result is None:
            self._advance(Answer(()))

    @property
    def nfe(self) -> int:
        return sum(ticket.writer.nfe for ticket in self.tickets if ticket.writer)

    @property
    def seconds(self) -> float:
        """From the call to the last commit so far."""
        return (
            max((t.last_commit for t in self.tickets if t.last_commit), default=self.started) - self.started
        )

    @property
    def result(self) -> T:
        """What the work has come to; runs it to its end."""
        for _ in self:
            pass
        assert self._result is not None
        return self._result


def edited(text: str, parts: list[Part], stream: EditStream[Edit]) -> Edit:
    hunks = hunks_of(text, parts)
    return Edit(
        text=apply(text, hunks),
        hunks=hunks,
        nfe=stream.nfe,
        seconds=stream.seconds,
        original=text,
        seed=stream.ask.request.seed,
        time_to_first_hunk=stream.first_change if hunks else None,
    )


def filling(parts: Sequence[str], filled: Filled, stream: EditStream[Filling]) -> Filling:
    read = [t.prompt_read - t.started for t in stream.tickets if t.prompt_read and t.started]
    drafts = [t.first_draft for t in stream.tickets if t.first_draft is not None]
    reason = "interrupted" if stream.interrupted else "stop" if filled.complete else "length"
    tokens, writing = len(filled.token_ids), stream.seconds - sum(read)
    return Filling(
        model=stream.name,
        text="".join(filled.texts),
        finish_reason=reason,
        prompt_tokens=filled.read,
        tokens=tokens,
        nfe=stream.nfe,
        tokens_per_forward=tokens / max(1, stream.nfe),
        seconds=stream.seconds,
        prefill_seconds=sum(read),
        time_to_first_draft=drafts[0] - stream.started if drafts else None,
        tokens_per_second=tokens / writing if writing > 0 else 0.0,
        seed=stream.ask.request.seed,
        decode="diffusion",
        token_ids=filled.token_ids,
        texts=filled.texts,
        full_text=parts[0] + "".join(a + b for a, b in zip(filled.texts, parts[1:], strict=True)),
    )
