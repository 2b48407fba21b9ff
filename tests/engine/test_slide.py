"""Canvases that slide: leading settled slots are committed while the others are still open."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.engine import Commit, Request, Step
from redraft.engine.scheduler import Engine
from redraft.errors import RequestError
from redraft.sampling import SamplerSettings, SlotVocabulary, advance, begin
from tests.engine.models import EOS, MASK, NULL, VOCAB, backend, finish, prompt, run, token_bytes, told
from tests.engine.test_torch_backend import uncached


def asked(seed: int, slide: int, **changes: object) -> Request:
    sampler = SamplerSettings(canvas_length=8, temperature=0.8, threshold=0.3)
    return Request(prompt(9, seed), sampler=sampler, slide=slide, max_tokens=30, seed=seed, **changes)  # type: ignore[arg-type]


def reference(request: Request) -> tuple[int, ...]:
    """The same by the shortest program: the uncached network over text and canvas at each step."""
    vocabulary = SlotVocabulary(VOCAB, MASK, NULL, (EOS,))
    on, text, out = backend(), list(request.prompt), []
    canvas = begin(request.sampler, vocabulary, request.key, 0)
    while True:
        canvas = advance(canvas, uncached(on, np.array(text), canvas.tokens, None)[1])
        lead = len(canvas.tokens) if canvas.finished else int(np.flatnonzero(canvas.open)[0])
        tokens = [int(t) for t in canvas.shown[:lead] if t != NULL]
        if canvas.finished or len(tokens) >= request.slide:
            for token in tokens:
                if token == EOS:
                    return tuple(out)
                out.append(token)
                text.append(token)
                if len(out) == request.max_tokens:
                    return tuple(out)
            if not tokens:
                return tuple(out)
            rest = [] if canvas.finished else np.where(canvas.settled, canvas.tokens, -1)[lead:].tolist()
            slots = rest + [-1] * (8 - len(rest))
            canvas = begin(request.sampler, vocabulary, request.key, len(out), initial=slots, chosen=out)


@pytest.mark.parametrize("slide", [1, 3, 8])
def test_a_sliding_canvas_writes_what_the_uncached_network_writes(slide: int) -> None:
    for seed in range(8):
        request = asked(seed, slide)
        assert told(run([request])[0])[0] == reference(request)


def test_some_seed_commits_a_canvas_in_parts() -> None:
    """Otherwise the tests here would show nothing."""
    engine = Engine(backend(), token_bytes)
    tickets = [engine.submit(asked(seed, 1)) for seed in range(8)]
    events = finish(engine, tickets)
    sizes = [len(e.tokens) for t in tickets for e in events[t] if isinstance(e, Commit)]
    assert min(sizes) < 8


@given(seed=st.integers(0, 10_000), slide=st.integers(1, 8), others=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_no_company_changes_it_and_no_noise_is_written(seed: int, slide: int, others: int) -> None:
    alone = told(run([asked(seed, slide)])[0])
    mixed = [asked(seed, slide), *(asked(seed + i + 1, i) for i in range(others))]
    assert told(run(mixed)[0]) == alone
    assert not {MASK, NULL, EOS} & set(alone[0])
    assert len(alone[0]) <= 30


def test_events_tell_the_answer() -> None:
    engine = Engine(backend(), token_bytes)
    ticket = engine.submit(asked(3, 1))
    events = finish(engine, [ticket])[ticket]
    committed = [t for e in events if isinstance(e, Commit) for t in e.tokens]
    assert tuple(committed) == told(ticket)[0]
    assert all(e.position <= len(committed) for e in events if isinstance(e, Step))


def test_what_may_still_change_stays_on_the_canvas() -> None:
    sampler = SamplerSettings(canvas_length=8, threshold=0.3, edit_threshold=0.9)
    whole = Request(prompt(9, 1), sampler=sampler, max_tokens=16)
    sliding = Request(prompt(9, 1), sampler=sampler, max_tokens=16, slide=1)
    assert told(run([sliding])[0]) == told(run([whole])[0])


def test_a_wrong_slide_is_refused() -> None:
    with pytest.raises(RequestError, match="slide must be a whole number of at least 0"):
        asked(0, -1)
