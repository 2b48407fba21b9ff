"""decode "diffusion" against a plain loop over the uncached network, and at the edges of an answer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from redraft.engine import Commit, Engine, Request, SlotState, Step
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.errors import RequestError
from redraft.sampling import SamplerSettings, SlotVocabulary, advance, begin, outcome
from tests.engine.models import EOS, MASK, NULL, VOCAB, backend, finish, prompt, run, token_bytes, told
from tests.engine.test_torch_backend import FAMILIES, uncached


def reference(on: TorchBackend, asked: Request) -> tuple[tuple[int, ...], int]:
    """The answer's tokens and evaluations by the shortest program: no cache, no early end, no scheduler."""
    config = on.config
    text, out, nfe = list(asked.prompt), [], 0
    vocabulary = SlotVocabulary(VOCAB, config.mask_token_id, config.null_token_id, config.eos_token_ids)
    while True:
        size, head = asked.sampler.canvas_length, 0
        if config.layout == "block_causal":
            head = len(text) % config.canvas_length
            size = config.canvas_length - head
        if config.layout == "full":
            head = len(text)
        canvas = begin(
            replace(asked.sampler, canvas_length=size), vocabulary, asked.key, len(out), chosen=out
        )
        clean = np.array(text, dtype=np.int64)
        known, front = np.split(clean, [len(text) - head])
        expected = None
        while not canvas.finished:
            locked = np.arange(head + size) < head
            logits = uncached(on, known, np.concatenate((front, canvas.tokens)), locked, expected)[1]
            if config.self_conditioning:
                weights = np.exp(logits - logits.max(-1, keepdims=True))
                expected = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
            canvas = advance(canvas, logits[head:])
            nfe += 1
        for token in outcome(canvas):
            if token == EOS:
                return tuple(out), nfe
            out.append(token)
            text.append(token)
            if len(out) == asked.max_tokens:
                return tuple(out), nfe


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_writes_what_the_uncached_network_writes(family: str) -> None:
    on = backend(**FAMILIES[family])
    for length in (8, 13):
        settings = SamplerSettings(canvas_length=8, temperature=0.7, threshold=0.3)
        asked = Request(prompt(length), sampler=settings, max_tokens=20, seed=length)
        ticket = run([asked], on)[0]
        tokens, nfe = reference(on, asked)
        assert told(ticket)[0] == tokens
        assert told(ticket)[3] <= nfe  # fewer where the answer ended before its last canvas was settled


def answers(**changes: Any) -> list[Any]:
    settings = SamplerSettings(canvas_length=8, temperature=1.0, logit_bias=changes.pop("bias", ()))
    return run([Request(prompt(seed=s), sampler=settings, seed=s, **changes) for s in range(6)])


def test_the_last_frame_of_a_stream_is_what_is_committed() -> None:
    engine = Engine(backend(), token_bytes)
    settings = SamplerSettings(canvas_length=7, edit_threshold=0.2, logit_bias=((NULL, 2.0),))
    asked = [Request(prompt(seed=s), sampler=settings, max_tokens=30, seed=s) for s in range(4)]
    tickets = [engine.submit(request) for request in asked]
    for ticket, events in finish(engine, tickets).items():
        frame, out = None, []
        for event in events:
            if isinstance(event, Step):
                assert event.position == len(out)
                frame = event
                continue
            assert frame is not None
            shown = [t for t in frame.tokens.tolist() if t != NULL]
            cut = shown.index(EOS) if EOS in shown else len(shown)
            assert shown[: len(event.tokens)] == list(event.tokens)
            assert len(event.tokens) == cut or event.finish_reason == "length"
            assert event.nfe == frame.nfe
            out += event.tokens
        assert tuple(out) == told(ticket)[0]
        assert len(events) == told(ticket)[3] + sum(isinstance(e, Commit) for e in events)


def test_locked_slots_never_change_and_given_tokens_start_the_canvas() -> None:
    engine = Engine(backend(), token_bytes)
    locked = {0: 7, 3: 9, 9: 11}
    initial = tuple([MASK, 5, MASK] + [MASK] * 7)
    asked = Request(
        prompt(),
        sampler=SamplerSettings(canvas_length=10, edit_threshold=0.1, temperature=1.2),
        locked=locked,
        initial=initial,
        max_canvases=1,
        max_tokens=None,
        ignore_eos=True,
    )
    ticket = engine.submit(asked)
    steps = [e for e in finish(engine, [ticket])[ticket] if isinstance(e, Step)]
    for step in steps:
        assert {slot: int(step.tokens[slot]) for slot in locked} == locked
        where = np.flatnonzero(step.state == SlotState.LOCKED).tolist()
        assert where == sorted(locked)
    tokens, reason, _, _ = told(ticket)
    assert reason == "length"
    assert tokens[0] == 7
    assert {9, 11} <= set(tokens)


def test_the_network_is_told_which_slots_are_locked() -> None:
    seen = []

    class Telling(TorchBackend):
        def forward(self, passes: Any) -> Any:
            seen.extend(p.locked for p in passes if p.canvas is not None)
            return super().forward(passes)

    settings = SamplerSettings(canvas_length=4, max_steps=2)
    run([Request(prompt(), sampler=settings, locked={2: 8}, max_tokens=4)], Telling(backend().model))
    assert all(flags.tolist() == [False, False, True, False] for flags in seen)
    assert seen


def test_nulls_are_dropped_and_a_canvas_of_nulls_ends_the_answer() -> None:
    tickets = answers(bias=((NULL, 4.0),), max_tokens=40)
    for ticket in tickets:
        tokens, reason, _, _ = told(ticket)
        assert not {NULL, MASK, EOS} & set(tokens)
        assert reason == "stop" or len(tokens) == 40
    only = answers(bias=((NULL, 60.0),), max_tokens=40)
    assert {told(t)[:2] for t in only} == {((), "stop")}


def test_ignoring_eos_goes_on_to_the_length() -> None:
    for bias in ((), ((EOS, 5.0),), ((NULL, 60.0),), ((EOS, 60.0),)):
        for ticket in answers(bias=bias, max_tokens=30, ignore_eos=True):
            assert len(told(ticket)[0]) == 30
            assert told(ticket)[1] == "length"


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 25])
def test_exactly_as_many_tokens_as_asked_for(length: int) -> None:
    for ticket in answers(max_tokens=length, ignore_eos=True):
        assert len(told(ticket)[0]) == length


def test_no_evaluation_is_spent_on_slots_past_the_last_token() -> None:
    """One slot a step from the left: an answer of 3 costs 3 evaluations of a canvas of 8."""
    bias = tuple((token, 40.0) for token in (5,))
    settings = SamplerSettings(canvas_length=8, accept="quota", max_steps=8, logit_bias=bias)
    ticket = run([Request(prompt(), sampler=settings, max_tokens=3, ignore_eos=True)])[0]
    assert told(ticket)[0] == (5, 5, 5)
    assert told(ticket)[3] <= 8


def test_the_context_ends_the_answer() -> None:
    on = backend(max_position_embeddings=40)
    for length in (25, 32, 39):
        settings = SamplerSettings(canvas_length=8)
        ticket = run([Request(prompt(length), sampler=settings, max_tokens=None, ignore_eos=True)], on)[0]
        assert len(told(ticket)[0]) == 40 - length
        assert told(ticket)[1] == "length"


@pytest.mark.parametrize("mode", ["diffusion", "ar", "verified"])
def test_stop_strings_are_found_across_tokens_and_canvases_and_cut_from_the_text(mode: str) -> None:
    for seed in range(5):
        settings = SamplerSettings(canvas_length=4, temperature=1.0, logit_bias=((EOS, -90.0),))
        asked = Request(prompt(), mode, settings, max_tokens=30, ignore_eos=True, seed=seed)
        free, _, text, _ = told(run([asked])[0])
        assert len(text) == 30
        stop = text[10:14].decode()  # ends in the third or fourth canvas of 4
        at = text.find(stop.encode())
        tokens, reason, cut, _ = told(run([replace(asked, stop=("zz", stop, text[12:14].decode() + "!"))])[0])
        assert (reason, cut) == ("stop", text[:at])
        assert tokens == free[: at + 4]


def test_the_stop_that_comes_first_wins() -> None:
    asked = Request(
        prompt(), "ar", SamplerSettings(temperature=1.0, logit_bias=((EOS, -90.0),)), max_tokens=30
    )
    free, _, text, _ = told(run([asked])[0])
    short, long = text[5:7].decode(), text[2:9].decode()
    tokens, reason, cut, _ = told(run([replace(asked, stop=(long, short))])[0])
    at = text.find(short.encode())
    assert (reason, cut, tokens) == ("stop", text[:at], free[: at + 2])
    tokens, reason, _, _ = told(run([replace(asked, max_tokens=at + 1, stop=(long, short))])[0])
    assert (reason, tokens) == ("length", free[: at + 1])


def test_commits_name_the_end_once() -> None:
    engine = Engine(backend(), token_bytes)
    tickets = [
        engine.submit(Request(prompt(), mode, max_tokens=11)) for mode in ("diffusion", "ar", "verified")
    ]
    for events in finish(engine, tickets).values():
        reasons = [e.finish_reason for e in events if isinstance(e, Commit)]
        assert reasons[-1] in ("stop", "length")
        assert not any(reasons[:-1])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ()}, "the prompt is empty"),
    ({"prompt": (VOCAB,)}, f"the prompt holds token {VOCAB}"),
    ({"prompt": prompt(192)}, "the prompt has 192 tokens and the context 192: shorten it to 191 or less"),
    ({"decode": "magic"}, "decode 'magic' is unknown; one of diffusion, ar, verified"),
    ({"max_tokens": 0}, "max_tokens must be a whole number of at least 1, not 0"),
    ({"max_tokens": 10**9}, "max_tokens is 1000000000; the context holds 192"),
    ({"stop": ("",)}, "stop must be texts"),
    ({"seed": 0.5}, "seed must be a whole number"),
    ({"draft_steps": 0}, "draft_steps must be"),
    ({"draft_layout": "x"}, "draft_layout 'x' is unknown; one of auto, strided, branches, separate"),
    ({"row_cost": math.nan}, "row_cost must be a number"),
    ({"slot_cost": -0.1}, "slot_cost must be a number"),
    ({"max_canvases": 0}, "max_canvases must be"),
    ({"eos_ids": (99,)}, "token 99 lies outside the vocabulary"),
    ({"locked": {16: 3}}, "slot 16 can't be locked"),
    ({"locked": dict.fromkeys(range(16), 3)}, "every slot is given"),
    ({"initial": (3,) * 17}, "17 tokens are given at the start; the canvas has 16 slots"),
    ({"decode": "ar", "locked": {0: 3}}, "decode ar writes from left to right"),
]


@pytest.mark.parametrize(("wrong", "line"), WRONG, ids=[line[:30] for _, line in WRONG])
def test_wrong_requests_are_refused_in_one_line(wrong: dict[str, Any], line: str) -> None:
    engine = Engine(backend(), token_bytes)
    with pytest.raises(RequestError) as caught:
        engine.submit(Request(**({"prompt": prompt()} | wrong)))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert not engine.has_work


def test_ar_needs_a_causal_context() -> None:
    engine = Engine(backend(layout="full"), token_bytes)
    with pytest.raises(RequestError, match="decode ar needs a model with causal context; this one is full"):
        engine.submit(Request(prompt(), "ar"))
