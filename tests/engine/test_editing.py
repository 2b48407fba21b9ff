"""decode "edit" against a loop over the uncached network: given canvases, what they commit and may hold."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from redraft.engine import OPEN, Commit, Engine, GivenCanvas, Request, Step
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.engine.likelihood import likelihood
from redraft.errors import RequestError
from redraft.sampling import SamplerSettings, SlotVocabulary, advance, begin, outcome
from redraft.sampling.beam import filled, likeliest, parted
from tests.engine.models import EOS, MASK, NULL, VOCAB, backend, finish, prompt, run, token_bytes, told
from tests.engine.test_torch_backend import uncached

FILL = GivenCanvas((OPEN, OPEN, OPEN, 7, 9, OPEN, 3), (False,) * 3 + (True, True, False, True), 4)
PROOF = GivenCanvas((5, 6, NULL, 7, 8, 9), (False, True, False, False, False, False), 4)
LAST = GivenCanvas((8, OPEN, 4), (False, False, True), 3, {1: (11, 12)})


def asked(**changes: Any) -> Request:
    settings = SamplerSettings(canvas_length=7, max_steps=7, threshold=0.4)
    fields: dict[str, Any] = {
        "decode": "edit",
        "canvases": (FILL, PROOF, LAST),
        "sampler": settings,
        "ignore_eos": True,
        "banned": (EOS,),
        "seed": 3,
    }
    return Request(prompt(9), **(fields | changes))


def reference(on: TorchBackend, request: Request) -> tuple[list[tuple[int, ...]], int]:
    """What each canvas commits, and the evaluations, by the shortest program: no cache, no early end."""
    vocabulary = SlotVocabulary(VOCAB, MASK, NULL, (), (EOS,))
    text, out, nfe = list(request.prompt), [], 0
    for given in request.canvases:
        settings = replace(request.sampler, canvas_length=len(given.initial))
        position = len(text) - len(request.prompt)
        canvas = begin(settings, vocabulary, request.key, position, given.locked_tokens, given.initial)
        allowed = np.ones((len(given.initial), VOCAB), bool)
        for slot, tokens in given.only.items():
            allowed[slot] = np.isin(np.arange(VOCAB), tokens)
        while not canvas.finished:
            clean = np.array(text, np.int64)
            logits = uncached(on, clean, canvas.tokens, np.array(given.locked), None)[1]
            canvas = advance(canvas, logits, allowed)
            nfe += 1
        out.append(outcome(canvas, given.commit))
        text += out[-1]
    return out, nfe


@pytest.mark.parametrize("edit_threshold", [None, 0.0, 0.2])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_given_canvases_come_out_as_on_the_uncached_network(
    edit_threshold: float | None, temperature: float
) -> None:
    settings = SamplerSettings(
        canvas_length=7,
        max_steps=7,
        threshold=0.4,
        temperature=temperature,
        edit_threshold=edit_threshold,
        edit_steps=2,
    )
    canvases = (FILL, LAST) if edit_threshold is None else (FILL, PROOF, LAST)
    request = asked(sampler=settings, canvases=canvases)
    engine = Engine(backend(), token_bytes)
    ticket = engine.submit(request)
    events = finish(engine, [ticket])[ticket]
    want, nfe = reference(backend(), request)
    commits = [event for event in events if isinstance(event, Commit)]
    assert [commit.tokens for commit in commits] == want
    assert [commit.finish_reason for commit in commits] == [None] * (len(want) - 1) + ["stop"]
    assert told(ticket)[3] <= nfe  # fewer where slots that are only looked at were still open
    if edit_threshold is not None:
        assert told(ticket)[3] == nfe
    assert want[-1][0 if want[-1][0] in (11, 12) else 1] in (11, 12)


def test_locked_slots_stand_and_the_last_frame_is_what_is_committed() -> None:
    settings = SamplerSettings(canvas_length=7, max_steps=9, edit_threshold=0.0, edit_steps=3)
    engine = Engine(backend(), token_bytes)
    ticket = engine.submit(asked(sampler=settings))
    frame: Step | None = None
    for event in finish(engine, [ticket])[ticket]:
        if isinstance(event, Step):
            frame = event
            given = (FILL, PROOF, LAST)[event.canvas]
            assert {s: int(event.tokens[s]) for s in given.locked_tokens} == given.locked_tokens
        else:
            assert frame is not None
            shown = frame.tokens[: (FILL, PROOF, LAST)[event.canvas].commit].tolist()
            assert tuple(t for t in shown if t != NULL) == event.tokens
            assert event.nfe == frame.nfe
            assert EOS not in event.tokens


def test_an_edit_is_the_same_alone_and_in_a_batch() -> None:
    settings = SamplerSettings(canvas_length=7, max_steps=7, threshold=0.4, temperature=1.0)
    requests = [asked(sampler=settings, seed=seed, canvases=(FILL, LAST)) for seed in range(5)]
    alone = [told(run([request])[0]) for request in requests]
    assert [told(ticket) for ticket in run(requests)] == alone
    assert len({tokens for tokens, *_ in alone}) > 1


def test_a_text_without_doubt_takes_one_evaluation_a_canvas() -> None:
    settings = SamplerSettings(canvas_length=6, max_steps=2, edit_threshold=1.0, edit_steps=2)
    ticket = run([asked(sampler=settings, canvases=(PROOF,) * 4)])[0]
    tokens, reason, _, nfe = told(ticket)
    assert (tokens, reason, nfe) == ((5, 6, 7) * 4, "stop", 4)


TRIALS = tuple(
    GivenCanvas(
        (OPEN,) * slots + (7, 9, OPEN, 3), (False,) * slots + (True, True, False, True), slots, trial=True
    )
    for slots in (2, 1, 4)
)


def judged(events: list[Step | Commit]) -> list[tuple[tuple[int, ...], float | None]]:
    return [(event.tokens, event.ar_nll) for event in events if isinstance(event, Commit)]


def tried(requests: list[Request], **network: Any) -> list[list[tuple[tuple[int, ...], float | None]]]:
    """Tokens and nats of every canvas, the requests side by side."""
    engine = Engine(backend(**network), token_bytes)
    events = finish(engine, tickets := [engine.submit(request) for request in requests])
    return [judged(events[ticket]) for ticket in tickets]


@pytest.mark.parametrize("network", [{}, {"shift": True}])
@pytest.mark.parametrize("fills", [1, 3])
def test_trials_join_nothing_and_are_read_with_what_is_behind_them(
    network: dict[str, Any], fills: int
) -> None:
    """With a shift the first slot of each is read off the last token before it, which trials leave as it was."""
    trials = tuple(replace(trial, fills=fills) for trial in TRIALS)
    request = asked(canvases=(*trials, FILL, *trials))
    found = tried([request], **network)[0]
    last = next(i for i, (_, nats) in enumerate(found) if nats is None)
    assert last >= len(trials)
    before, kept, after = found[:last], found[last : last + 1], found[last + 1 :]
    alone = [tried([asked(canvases=(canvas,))], **network)[0] for canvas in (*trials, FILL)]
    assert [tokens for tokens, _ in before + kept] == [tokens for of in alone for tokens, _ in of]
    for trials, text in ((before, request.prompt), (after, request.prompt + kept[0][0])):
        for tokens, nats in trials:
            whole = np.array(text + tokens + (7, 9), np.int64)
            assert nats == pytest.approx(
                likelihood(backend(**network), whole, replicates=0, given=len(text)).ar_nll, abs=1e-4
            )


def test_trials_are_the_same_alone_and_in_a_batch_and_behind_a_prefix_that_was_kept() -> None:
    settings = SamplerSettings(canvas_length=7, max_steps=7, threshold=0.4, temperature=1.0)
    requests = [asked(sampler=settings, seed=seed, canvases=TRIALS) for seed in range(3)]
    alone = [tried([request])[0] for request in requests]
    assert tried(requests) == alone
    engine = Engine(backend(), token_bytes)
    for _ in range(2):
        ticket = engine.submit(requests[0])
        assert judged(finish(engine, [ticket])[ticket]) == alone[0]
    assert ticket.reused


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"canvases": ()}, "decode edit and given canvases go together"),
    ({"decode": "diffusion"}, "decode edit and given canvases go together"),
    ({"canvases": (PROOF,)}, "every slot is given"),
    ({"canvases": (GivenCanvas((VOCAB, OPEN), (False, False), 2),)}, "a canvas needs at least one slot"),
    (
        {"canvases": (GivenCanvas((OPEN,) * 100, (False,) * 100, 100),) * 2},
        "prompt and canvases take 209 tokens",
    ),
    (
        {"canvases": (GivenCanvas((OPEN,) * 184, (False,) * 184, 1, trial=True),)},
        "prompt and canvases take 193",
    ),
]


def test_a_model_without_causal_context_can_not_judge_trials() -> None:
    with pytest.raises(RequestError, match="a trial is read by the AR self"):
        asked(canvases=TRIALS).check(backend(layout="full").config)


@pytest.mark.parametrize(("changes", "line"), WRONG, ids=[line[:24] for _, line in WRONG])
def test_requests_that_can_not_be(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(RequestError, match=line):
        asked(**changes).check(backend().config)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (((), (), 0), "needs slots"),
        (((1, 2), (True,), 1), "needs slots"),
        (((OPEN,), (True,), 1), "an open slot can't be locked"),
        (((1, OPEN), (True, False), 3), "3 slots can't be committed"),
        (((1, OPEN), (True, False), 2, {2: (1,)}), "a constraint must name a slot"),
        (((1, OPEN), (True, False), 2, {1: ()}), "a constraint must name a slot"),
    ],
)
def test_canvases_that_contradict_themselves(arguments: tuple[Any, ...], line: str) -> None:
    with pytest.raises(RequestError, match=line):
        GivenCanvas(*arguments)


def searched(request: Request) -> list[tuple[tuple[int, ...], float]]:
    """What a trial's fills come to, by the shortest program: one canvas at a time, on the uncached network."""
    (given,) = request.canvases
    on, vocabulary = backend(), SlotVocabulary(VOCAB, MASK, NULL, (), (EOS, *request.banned))
    settings = replace(request.sampler, canvas_length=len(given.initial))
    canvases = [begin(settings, vocabulary, request.key, 0, given.locked_tokens, given.initial)]
    text = np.array(request.prompt, np.int64)
    while not all(filled(canvas, given.commit) for canvas in canvases):
        made = []
        for canvas in canvases:
            if filled(canvas, given.commit):
                made.append(canvas)
                continue
            logits = uncached(on, text, canvas.tokens, np.array(given.locked), None)[1][canvas.wanted]
            made += parted(canvas, logits, given.fills, given.commit, given.allowed(VOCAB))
        canvases = likeliest(made, given.fills, given.commit)
    fills = []
    for canvas in canvases:
        tokens = outcome(canvas, given.commit)
        whole = np.concatenate((text, np.array((*tokens, *given.behind), np.int64)))
        nats = likelihood(on, whole, replicates=0, given=len(text)).ar_nll
        assert nats is not None
        fills.append((tokens, nats))
    return fills


@pytest.mark.parametrize(
    "length", [9, 160, 176, 183]
)  # of the last two no more than two or one fit side by side
def test_several_fills_of_a_trial_are_those_of_a_plain_beam_search(length: int) -> None:
    trial = replace(TRIALS[0], fills=5, only={0: tuple(range(2, 20))})
    settings = SamplerSettings(canvas_length=6, max_steps=6, threshold=0.9)
    alone = replace(asked(canvases=(trial,), sampler=settings), prompt=prompt(length))
    want = searched(alone)
    assert len({tokens for tokens, _ in want}) == 5
    found = tried([alone])[0]
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in want]
    assert [nats for _, nats in found] == pytest.approx([nats for _, nats in want], abs=1e-3)


def test_a_search_shows_each_fill_before_it_is_read_and_goes_on_to_the_next_canvas() -> None:
    settings = SamplerSettings(canvas_length=8, max_steps=8, threshold=0.9)
    canvases = (replace(TRIALS[0], fills=3), TRIALS[1], replace(TRIALS[2], fills=2), FILL)
    request = asked(canvases=canvases, sampler=settings)
    engine = Engine(backend(), token_bytes)
    ticket = engine.submit(request)
    events = finish(engine, [ticket])[ticket]
    commits = [event for event in events if isinstance(event, Commit)]
    assert [commit.canvas for commit in commits] == [0, 0, 0, 1, 2, 2, 3]
    assert [commit.finish_reason for commit in commits] == [None] * 6 + ["stop"]
    for step, commit in itertools.pairwise(events):
        if isinstance(commit, Commit):
            assert isinstance(step, Step)
            assert step.canvas == commit.canvas
            shown = step.tokens[: canvases[commit.canvas].commit].tolist()
            assert tuple(token for token in shown if token != NULL) == commit.tokens
    # What is searched leaves nothing behind: the last canvas is what it is alone.
    assert commits[-1].tokens == tried([asked(canvases=(FILL,), sampler=settings)])[0][0][0]
    unwatched = replace(request, watched=False)
    assert tried([unwatched, request, unwatched]) == [judged(events)] * 3


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: replace(FILL, fills=2), "fills must be at least 1"),
        (lambda: replace(TRIALS[0], fills=0), "fills must be at least 1"),
        (
            lambda: asked(
                canvases=(replace(TRIALS[0], fills=2),), sampler=SamplerSettings(temperature=1.0)
            ).check(backend().config),
            "several fills are the likeliest ones",
        ),
    ],
)
def test_fills_that_can_not_be_sought(make: Any, line: str) -> None:
    with pytest.raises(RequestError, match=line):
        make()
