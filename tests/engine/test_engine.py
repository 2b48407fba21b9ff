"""Scheduling: nobody's answer depends on the others, and everything that was taken is given back."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.engine import Engine, Request, Ticket
from redraft.engine.backend import Pass, PassResult
from redraft.engine.backends.torch_backend import TorchBackend, TorchContext
from redraft.engine.scheduler import row_bytes
from redraft.engine.writers.base import PREFILL_CHUNK
from redraft.errors import RedraftError, RequestError
from redraft.sampling import SamplerSettings
from tests.engine.models import EOS, MASK, NULL, backend, finish, network, prompt, run, token_bytes, told

MODES = ("diffusion", "ar", "verified")


def some_request(rng: np.random.Generator, number: int) -> Request:
    return Request(
        prompt(int(rng.integers(1, 40)), number),
        MODES[int(rng.integers(3))],
        SamplerSettings(
            canvas_length=int(rng.integers(1, 12)),
            max_steps=int(rng.integers(1, 9)),
            threshold=float(rng.random()),
            accept=("threshold", "quota", "ancestral", "first_hitting", "entropy_bound")[
                int(rng.integers(5))
            ],
            temperature=float(rng.choice([0.0, 0.9])),
            repetition_penalty=float(rng.choice([1.0, 1.2])),
            logit_bias=((EOS, 1.0), (NULL, 1.0)),
        ),
        max_tokens=int(rng.integers(1, 20)),
        stop=("ab",) if rng.random() < 0.3 else (),
        seed=number,
    )


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**20), st.integers(2, 9))
def test_an_answer_is_the_same_alone_and_in_company(seed: int, batch: int) -> None:
    """Joining and leaving at any step, with any neighbours, with and without kept prefixes."""
    rng = np.random.default_rng(seed)
    requests = [some_request(rng, n) for n in range(7)]
    alone = [told(run([request])[0]) for request in requests]
    engine = Engine(backend(), token_bytes, max_batch=batch, prefix_contexts=int(rng.integers(0, 3)))
    tickets: list[Ticket] = []
    for request in requests:
        tickets.append(engine.submit(request))
        for _ in range(int(rng.integers(0, 4))):
            engine.step()
    finish_quietly(engine)
    assert [told(ticket) for ticket in tickets] == alone


def finish_quietly(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def test_first_come_first_served() -> None:
    engine = Engine(backend(), token_bytes, max_batch=2)
    tickets = [engine.submit(Request(prompt(seed=n), "ar", max_tokens=3 + 4 * (n == 0))) for n in range(5)]
    finish(engine, tickets)
    started = [t.started for t in tickets]
    assert started == sorted(started)  # type: ignore[type-var]
    # The second place serves 1 to 4 one after the other while the long first answer goes on.
    assert tickets[1].finished < tickets[2].started  # type: ignore[operator]
    assert tickets[1].finished < tickets[0].finished  # type: ignore[operator]


class Watched:
    """A backend that keeps what it was asked; the work is the torch backend's."""

    name = "torch"

    def __init__(self, inner: TorchBackend) -> None:
        self.inner, self.config, self.heads = inner, inner.config, inner.heads
        self.calls: list[list[Pass]] = []
        self.lengths: list[list[int]] = []
        self.contexts: list[weakref.ref[TorchContext]] = []

    def new_context(self, capacity: int) -> TorchContext:
        context = self.inner.new_context(capacity)
        self.contexts.append(weakref.ref(context))
        return context

    def forward(self, passes: Any) -> list[PassResult]:
        self.calls.append(list(passes))
        self.lengths.append([p.context.length for p in passes])
        return self.inner.forward(passes)


def test_the_commit_of_a_canvas_shares_an_evaluation_with_the_next_ones_first_step() -> None:
    watched = Watched(backend())
    engine = Engine(watched, token_bytes)
    asked = Request(prompt(20), sampler=SamplerSettings(canvas_length=8), max_tokens=24, ignore_eos=True)
    ticket = engine.submit(asked)
    finish(engine, [ticket])
    tokens, reason, _, nfe = told(ticket)
    assert reason == "length"
    passes = [call[0] for call in watched.calls]
    assert passes[0].canvas is None  # the prompt is read apart, and is no evaluation of the answer's
    assert nfe == len(passes) - 1
    text, read = [*asked.prompt, *tokens], 0
    for call, length in zip(passes, watched.lengths, strict=True):
        assert length[0] == read
        assert call.encode.tolist() == text[read : read + len(call.encode)]
        read += len(call.encode)
        if call.canvas is not None and len(call.encode):
            assert (call.canvas == MASK).all()  # a fresh canvas, over the last one's final tokens
    # The last canvas is never encoded.
    assert 20 + 16 <= read < len(text)


def test_nothing_is_encoded_after_the_end_of_the_answer() -> None:
    for mode in MODES:
        for seed in range(6):
            watched = Watched(backend())
            engine = Engine(watched, token_bytes)
            sampler = SamplerSettings(logit_bias=((EOS, 2.5),), temperature=1.0, canvas_length=5)
            ticket = engine.submit(Request(prompt(6), mode, sampler, max_tokens=30, seed=seed))
            finish(engine, [ticket])
            encoded = [t for call in watched.calls for p in call for t in p.encode.tolist()]
            assert EOS not in encoded[6:]
            assert EOS not in told(ticket)[0]


def test_long_prompts_are_read_in_pieces_between_other_answers_steps() -> None:
    long = prompt(2 * PREFILL_CHUNK + 30)
    on = backend(max_position_embeddings=1200)
    watched = Watched(on)
    engine = Engine(watched, token_bytes)
    asked = [Request(long, max_tokens=6), Request(prompt(), "ar", max_tokens=8, ignore_eos=True)]
    tickets = [engine.submit(request) for request in asked]
    finish(engine, tickets)
    assert [len(call[0].encode) for call in watched.calls[:4]] == [PREFILL_CHUNK, PREFILL_CHUNK, 30, 0]
    assert [told(t) for t in tickets] == [told(run([request], on)[0]) for request in asked]


def test_cancelling_takes_effect_within_a_step() -> None:
    watched = Watched(backend())
    engine = Engine(watched, token_bytes)
    asked = [Request(prompt(seed=n), mode, max_tokens=50, ignore_eos=True) for n, mode in enumerate(MODES)]
    tickets = [engine.submit(request) for request in asked]
    queued = engine.submit(Request(prompt(), max_tokens=50))
    engine.max_batch = 3
    for _ in range(3):
        engine.step()
    for ticket in (*tickets[:2], queued):
        engine.cancel(ticket)
    before = len(watched.calls)
    events = engine.step()
    assert all(ticket is tickets[2] for ticket, _ in events)
    assert [len(call) for call in watched.calls[before:]] == [1]
    assert queued.started is None
    finish_quietly(engine)
    assert told(tickets[2]) == told(run([tickets[2].request])[0])


def held(on: Watched) -> int:
    """Bytes of the contexts that are alive."""
    return sum(context.nbytes for context in (ref() for ref in on.contexts) if context is not None)


def test_memory_is_bounded_and_given_back() -> None:
    on = Watched(backend())
    rows = 128
    engine = Engine(on, token_bytes, max_batch=8, memory=3 * rows * row_bytes(on.config), prefix_contexts=2)
    tickets = [engine.submit(Request(prompt(10, n), MODES[n % 3], max_tokens=4)) for n in range(40)]
    most = 0
    while engine.has_work:
        engine.step()
        on.calls.clear()  # they hold contexts
        most = max(most, engine.running)
        assert held(on) <= 3 * rows * row_bytes(on.config)
        assert engine.rows_in_use <= 3 * rows
    assert most == 3
    assert all(told(ticket)[1] for ticket in tickets)
    gc.collect()
    left = [ref for ref in on.contexts if ref() is not None]
    assert len(left) == 2  # the kept prefixes
    with pytest.raises(RequestError, match=r"may need 256 tokens of memory; there is room for 128"):
        Engine(on, token_bytes, memory=rows * row_bytes(on.config)).submit(Request(prompt(), max_tokens=None))


def test_a_growing_conversation_is_read_once_and_answers_the_same() -> None:
    for family in ({}, {"layout": "block_causal"}, {"shift": True}, {"layout": "full"}):
        on = backend(**family)
        kept, fresh = Watched(on), Watched(on)
        with_prefix = Engine(kept, token_bytes)
        without = Engine(fresh, token_bytes, prefix_contexts=0)
        text = prompt(30)
        modes = MODES if on.config.layout == "causal_context" else ("diffusion",) * 3
        for turn, mode in enumerate(modes):
            asked = Request(
                text, mode, SamplerSettings(canvas_length=8, temperature=0.8), max_tokens=10, seed=turn
            )
            first, second = with_prefix.submit(asked), without.submit(asked)
            finish(with_prefix, [first])
            finish(without, [second])
            assert told(first) == told(second)
            if turn and on.config.layout != "full":
                assert first.reused >= len(text) - 5 - 10 - on.config.canvas_length
            text = (*text, *told(first)[0], *prompt(5, turn))
        counts = [sum(len(p.encode) for call in w.calls for p in call) for w in (kept, fresh)]
        if on.config.layout == "full":
            assert counts == [0, 0]
        else:
            assert counts[0] < counts[1] - 30
        assert without._prefixes.rows == 0


@pytest.mark.parametrize("family", [{}, {"layout": "block_causal"}, {"shift": True}, {"layout": "full"}])
def test_equal_prompts_that_come_together_are_read_once(family: dict[str, Any]) -> None:
    """Several answers to one prompt, and a prompt that only begins alike: the tokens they'd have alone, and the
    common beginning is encoded once, whether it has been read already or is being read."""
    on = backend(**family)
    watched = Watched(on)
    modes = MODES if on.config.layout == "causal_context" else ("diffusion",) * 3
    sampler = SamplerSettings(canvas_length=8, temperature=0.9)
    asked = [Request(prompt(60), mode, sampler, max_tokens=6, seed=n) for n, mode in enumerate(modes * 2)]
    asked.append(Request((*prompt(60)[:45], *prompt(10, 7)), modes[0], sampler, max_tokens=6))
    engine = Engine(watched, token_bytes, prefix_contexts=0)
    tickets = [engine.submit(request) for request in asked[:4]]
    engine.step()
    tickets += [engine.submit(request) for request in asked[4:]]
    finish(engine, tickets)
    assert [told(t) for t in tickets] == [told(run([r], on, prefix_contexts=0)[0]) for r in asked]
    block = 8 if on.config.layout == "block_causal" else 1
    read = 60 // block * block  # of which the last token is always read: its logits are needed
    shared = 0 if on.config.layout == "full" else (read - 1) // block * block
    begun = 0 if on.config.layout == "full" else 45 // block * block
    assert [t.reused for t in tickets] == [0, *[shared] * 5, begun]


def test_a_prompt_is_read_after_all_when_its_leader_goes() -> None:
    watched = Watched(backend())
    engine = Engine(watched, token_bytes, prefix_contexts=0)
    first, second = (engine.submit(Request(prompt(60), "ar", max_tokens=4, seed=n)) for n in range(2))
    engine._admit()
    assert second.follows is first
    engine.cancel(first)
    finish_quietly(engine)
    assert (second.reused, told(second)) == (0, told(run([second.request])[0]))


def test_another_conversation_keeps_its_context() -> None:
    """A prompt that shares less than half of a kept text starts anew."""
    engine = Engine(backend(), token_bytes)
    first = engine.submit(Request(prompt(40), max_tokens=4))
    finish(engine, [first])
    other = engine.submit(Request((*prompt(40)[:10], *prompt(30, 9)), max_tokens=4))
    finish(engine, [other])
    again = engine.submit(Request((*prompt(40), 5), max_tokens=4))
    finish(engine, [again])
    assert (other.reused, again.reused) == (0, 40)


def test_one_answers_failure_is_not_the_others() -> None:
    class Broken(Watched):
        def forward(self, passes: Any) -> list[PassResult]:
            results = super().forward(passes)
            bad = [i for i, p in enumerate(passes) if p.canvas is not None]
            for i in bad:
                canvas = results[i].canvas
                assert canvas is not None
                results[i] = replace(results[i], canvas=canvas * np.nan)
            return results

    engine = Engine(Broken(backend()), token_bytes)
    asked = [Request(prompt(), mode, max_tokens=5, ignore_eos=True) for mode in ("ar", "diffusion")]
    good, bad = [engine.submit(request) for request in asked]
    finish(engine, [good, bad])
    assert isinstance(bad.error, RedraftError)
    assert "finite" in str(bad.error)
    assert good.error is None
    assert told(good) == told(run(asked[:1])[0])


def test_an_evaluation_that_fails_ends_all_and_leaves_the_engine_usable() -> None:
    class Failing(Watched):
        fail = True

        def forward(self, passes: Any) -> list[PassResult]:
            if self.fail and len(self.calls) == 2:
                self.fail = False
                raise MemoryError
            return super().forward(passes)

    engine = Engine(Failing(backend()), token_bytes)
    lost = engine.submit(Request(prompt(), max_tokens=9))
    with pytest.raises(MemoryError):
        finish(engine, [lost])
    assert lost.cancelled
    next_one = engine.submit(Request(prompt(), max_tokens=9))
    finish(engine, [next_one])
    assert told(next_one) == told(run([next_one.request])[0])


def test_samples_of_one_prompt_differ_and_repeat() -> None:
    asked = [
        Request(prompt(), mode, SamplerSettings(temperature=1.0), max_tokens=8, sample=n, ignore_eos=True)
        for mode in MODES
        for n in (0, 1, 0)
    ]
    answers = [told(ticket)[0] for ticket in run(asked)]
    for first, second, again in zip(answers[::3], answers[1::3], answers[2::3], strict=True):
        assert first == again != second


def test_the_padding_costs_nothing_when_it_is_not_wanted() -> None:
    """Unpadded rows give the same text to rounding: the fastest AR loop for comparisons."""
    unpadded = TorchBackend(network(), row_multiple=1)
    watched = Watched(unpadded)
    asked = Request(prompt(), "ar", max_tokens=12, ignore_eos=True)
    assert told(run([asked], watched)[0])[0] == told(run([asked])[0])[0]  # type: ignore[arg-type]
    assert watched.calls
