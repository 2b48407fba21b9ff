"""Many answers at once: first come, first served, joining and leaving between steps."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.backend import Backend
from redraft.engine.ending import TokenBytes
from redraft.engine.events import Commit, Step
from redraft.engine.prefix import Kept, PrefixStore, shared_length
from redraft.engine.request import Request
from redraft.engine.writers import Writer, writer_of
from redraft.engine.writers.base import Event, prefill_length
from redraft.errors import RedraftError, RequestError

LEAST_SHARED = 32  # tokens that prompts must begin with alike for one of them to be copied and not read
ROW_BLOCK = 128  # rows of a context are counted in blocks, as backends allocate them


@dataclass(eq=False)
class Ticket:
    """A submitted request. Times are of time.perf_counter, None until they have come; error: why it failed;
    reused: prompt tokens that were not read, since another context had them; follows: the answer whose prompt is being
    read for both. inbox: for whoever shares out the events of `Engine.step`."""

    number: int
    request: Request
    submitted: float
    writer: Writer | None = None
    cancelled: bool = False
    error: RedraftError | None = None
    reused: int = 0
    follows: Ticket | None = None
    started: float | None = None
    prompt_read: float | None = None
    first_draft: float | None = None
    last_commit: float | None = None
    finished: float | None = None
    inbox: deque[Event] = field(default_factory=deque, repr=False)
    rows: int = field(default=0, repr=False)

    @property
    def done(self) -> bool:
        return self.cancelled or self.finished is not None

    def saw(self, event: Event) -> None:
        """Takes the time of an event."""
        now = time.perf_counter()
        if isinstance(event, Commit):
            self.last_commit = now
        if self.first_draft is None and (isinstance(event, Step) or event.tokens):
            self.first_draft = now


class Engine:
    """Runs requests on a backend. `step` belongs to one thread; `submit` and `cancel` may be called from any.

    max_batch: answers written at once. memory: bytes of keys and values at most, None for no bound; a request
    waits until its longest course fits. prefix_contexts: contexts of finished answers that are kept for
    prompts that go on from them; they count into the memory and make way when it's needed. token_bytes: the
    text of a token.
    """

    def __init__(
        self,
        backend: Backend,
        token_bytes: TokenBytes,
        max_batch: int = 8,
        memory: int | None = None,
        prefix_contexts: int = 4,
    ) -> None:
        if max_batch < 1:
            raise RequestError(f"max_batch must be at least 1, not {max_batch}")
        self.backend, self.config = backend, backend.config
        self.max_batch, self.memory = max_batch, memory
        self.row_bytes = row_bytes(backend.config)
        self._token_bytes = token_bytes
        self._waiting: deque[Ticket] = deque()
        self._active: list[Ticket] = []
        self._prefixes = PrefixStore(prefix_contexts)
        self._numbers = itertools.count()
        self._lock = threading.RLock()

    def submit(self, request: Request) -> Ticket:
        """Queues a request. Raises RequestError when this model or this memory can never serve it."""
        request.check(self.config)
        ticket = Ticket(next(self._numbers), request, time.perf_counter())
        ticket.rows = self._rows_needed(request)
        if self.memory is not None and ticket.rows * self.row_bytes > self.memory:
            most = self.memory // self.row_bytes // ROW_BLOCK * ROW_BLOCK
            raise RequestError(
                f"the request may need {ticket.rows} tokens of memory; there is room for {most}"
            )
        with self._lock:
            self._waiting.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Stops an answer: no event of it comes after, at most the evaluation under way goes on."""
        with self._lock:
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    @property
    def has_work(self) -> bool:
        with self._lock:
            return bool(self._waiting or self._active)

    @property
    def running(self) -> int:
        return len(self._active)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def rows_in_use(self) -> int:
        """Rows of keys and values that active and kept contexts may occupy."""
        return sum(ticket.rows for ticket in self._active) + self._prefixes.rows

    def forget(self) -> None:
        """Gives up all contexts of finished answers: the next prompt is read from its beginning."""
        self._release()
        while self._prefixes.evict():
            pass

    def step(self) -> list[tuple[Ticket, Event]]:
        """One network evaluation for all active answers, and what it brought. Empty when there's nothing to
        do."""
        self._release()
        self._admit()
        self._join_leaders()
        running = [(ticket, ticket.writer) for ticket in self._active if ticket.writer is not None]
        if not running:
            return []
        try:
            results = self.backend.forward([writer.plan() for _, writer in running])
        except BaseException:
            self._abandon()
            raise
        now = time.perf_counter()
        events: list[tuple[Ticket, Event]] = []
        for (ticket, writer), result in zip(running, results, strict=True):
            if ticket.cancelled:
                continue
            try:
                brought = writer.absorb(result)
            except RedraftError as error:  # of this answer alone, such as logits that are no numbers
                ticket.error, ticket.finished = error, now
                continue
            for event in brought:
                events.append((ticket, event))
                ticket.saw(event)
            if ticket.first_draft is None and writer.nfe:  # a step that nobody watches
                ticket.first_draft = time.perf_counter()
            if ticket.prompt_read is None and not writer.prefilling:
                ticket.prompt_read = now
            if writer.done:
                ticket.finished = ticket.last_commit
        self._release()
        return events

    def _rows_needed(self, request: Request) -> int:
        """Rows a request may fill: prompt, answer and the canvas behind it, within the context."""
        limit = self.config.max_position_embeddings
        answer = limit if request.max_tokens is None else request.max_tokens
        adaptive = 0 if request.step_costs is None else request.step_costs.longest
        slots = max(request.sampler.canvas_length, self.config.canvas_length, adaptive)
        return _round_up(min(len(request.prompt) + answer + 2 * slots, limit))

    def _admit(self) -> None:
        """Starts waiting requests in their order while there's room; nobody overtakes."""
        while len(self._active) < self.max_batch:
            with self._lock:
                if not self._waiting:
                    return
                ticket = self._waiting[0]
            found = self._find_prefix(ticket.request)
            rows = self._rows_with(found, ticket)
            while self._too_much(rows):
                if self._prefixes.evict():
                    continue
                if found is None:
                    return
                found, rows = None, ticket.rows
            with self._lock:
                if not self._waiting or self._waiting[0] is not ticket:
                    continue
                self._waiting.popleft()
            ticket.rows, ticket.started = rows, time.perf_counter()
            self._active.append(ticket)
            leader = self._leader(ticket.request) if found is None else None
            if leader is None:
                self._start(ticket, found)
            else:
                ticket.follows = leader

    def _too_much(self, rows: int) -> bool:
        return self.memory is not None and (self.rows_in_use + rows) * self.row_bytes > self.memory

    def _rows_with(self, found: tuple[Kept, int] | None, ticket: Ticket) -> int:
        """Rows a request may occupy in a kept context, which at least doubles when it must grow."""
        if found is None:
            return ticket.rows
        have = found[0].rows
        if have >= ticket.rows:
            return have
        return min(max(ticket.rows, 2 * have), _round_up(self.config.max_position_embeddings))

    def _find_prefix(self, request: Request) -> tuple[Kept, int] | None:
        """A kept context to go on from. At least one prompt token is always read: its logits are needed."""
        block = self.config.canvas_length if self.config.layout == "block_causal" else 1
        most = prefill_length(self.config, len(request.prompt)) - 1
        return self._prefixes.take(request.prompt, most, block) if most > 0 else None

    def _leader(self, request: Request) -> Ticket | None:
        """The active answer whose text begins like this prompt for longest; None if it's not worth a copy."""
        with_text = [t for t in self._active if t.writer is not None]
        best = max(with_text, key=lambda t: self._shared(t, request), default=None)
        return best if best is not None and self._shared(best, request) >= LEAST_SHARED else None

    def _shared(self, leader: Ticket, request: Request) -> int:
        """Tokens that a prompt can take over from an active answer's context, as soon as they have been read."""
        block = self.config.canvas_length if self.config.layout == "block_causal" else 1
        most = prefill_length(self.config, len(request.prompt)) - 1
        if leader.writer is None or most < LEAST_SHARED:
            return 0
        return min(shared_length(leader.writer.text, request.prompt), most) // block * block

    def _join_leaders(self) -> None:
        """Starts the answers whose prompt another one has read by now, or will not read any more."""
        for ticket in self._active:
            leader = ticket.follows
            if leader is None or ticket.done:
                continue
            if leader.done or leader.writer is None:
                ticket.follows = None
                self._start(ticket, None)
                continue
            shared = self._shared(leader, ticket.request)
            if leader.writer.context.length >= shared:
                ticket.follows, ticket.reused = None, shared
                self._start(ticket, None)
                assert ticket.writer is not None
                ticket.writer.context.copy(leader.writer.context, shared)

    def _start(self, ticket: Ticket, found: tuple[Kept, int] | None) -> None:
        if found is None:
            context = self.backend.new_context(ticket.rows)
        else:
            context, ticket.reused = found[0].context, found[1]
            context.truncate(found[1])
        writer = writer_of(ticket.request)
        heads = self.backend.heads
        ticket.writer = writer(ticket.request, self.config, context, self._token_bytes, heads)
        if not ticket.writer.prefilling:
            ticket.prompt_read = ticket.started

    def _release(self) -> None:
        """Lets finished and cancelled answers go; their contexts are kept for what may follow."""
        leaving = [ticket for ticket in self._active if ticket.done]
        self._active = [ticket for ticket in self._active if not ticket.done]
        for ticket in leaving:
            writer = ticket.writer
            if writer is not None:
                if writer.context.length > len(writer.text):  # a proposal that was never verified
                    writer.context.truncate(len(writer.text))
                held = tuple(writer.text[: writer.context.length])
                self._prefixes.put(Kept(held, writer.context, ticket.rows))
                writer.close()

    def _abandon(self) -> None:
        """After a failed evaluation no context can be trusted: all active answers end."""
        for ticket in self._active:
            ticket.cancelled = True
            if ticket.writer is not None:
                ticket.writer.close()
        self._active = []


def row_bytes(config: DenoiserConfig, size: int = 4) -> int:
    """Bytes of keys and values of one token, at `size` bytes a number."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size


def _round_up(rows: int) -> int:
    return -(-rows // ROW_BLOCK) * ROW_BLOCK
