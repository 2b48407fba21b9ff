"""What canvases said of places ahead is proposed wherever the text goes on, and never changes what is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.engine import Commit, Engine, Request, Step
from redraft.engine.backend import Pass, PassResult
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.engine.writers import base
from redraft.engine.writers.drafting import Prices, starts
from redraft.engine.writers.leftovers import Leftovers
from redraft.engine.writers.verified import Verified
from redraft.sampling import NoiseKey, SamplerSettings, SlotVocabulary, begin
from tests.engine.models import NULL, VOCAB, backend, finish, prompt, run, token_bytes, told
from tests.engine.test_heads import with_heads
from tests.engine.test_verified import options

COSTS: dict[str, Any] = {"row_cost": 0.02, "canvas_cost": 0.05}


def said(token: int) -> np.ndarray:
    """A row of logits that is sure of a token."""
    return np.where(np.arange(VOCAB) == token, 30.0, 0.0).astype(np.float32)


@dataclass
class Tape:
    """A context that holds nothing but its length."""

    length: int = 0

    def truncate(self, length: int) -> None:
        self.length = min(self.length, length)


@dataclass
class Script:
    """In a backend's place: AR writes `text`, and canvases say the same but for what `wrong` says by position. passes:
    of each the output position of its first token, its proposal, and where its canvases begin."""

    text: Sequence[int]
    wrong: dict[int, int]
    prompt: int
    passes: list[tuple[int, list[int], list[int]]] = field(default_factory=list)

    def forward(self, p: Pass) -> PassResult:
        first = p.context.length - self.prompt  # output position of the first token that is encoded
        asked = slice(-1, None) if p.encode_logits == "last" else slice(None)
        encode = np.stack([said(self.text[at]) for at in range(first + 1, first + 1 + len(p.encode))[asked]])
        begun = [] if p.canvas is None else [first + start for start in p.starts]
        if first >= 0:
            self.passes.append((first, p.encode[1:].tolist(), begun))
        canvas = None
        if p.canvas is not None:
            assert p.canvas_rows is not None
            slots = p.slots // len(begun)
            places = [begun[row // slots] + row % slots for row in p.canvas_rows.tolist()]
            canvas = np.stack([said(self.wrong.get(at, self.text[at])) for at in places])
        p.context.length += len(p.encode)  # type: ignore[misc]
        return PassResult(encode, canvas)


def scripted(wrong: dict[int, int], **changes: Any) -> Script:
    """An answer of tokens 2, 3, 4 and so on, of which canvases get these wrong, by output position."""
    script = Script(range(2, 42), wrong, prompt=3)
    plain: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True, "watched": False} | COSTS
    request = Request((5, 6, 7), "verified", SamplerSettings(canvas_length=6), **(plain | changes))
    writer = Verified(request, backend().config, Tape(), token_bytes)  # type: ignore[arg-type]
    while not writer.done:
        writer.absorb(script.forward(writer.plan()))
    assert writer.output.tokens == list(range(2, 26))
    return script


def test_the_rest_of_a_proposal_is_proposed_again_behind_its_mistake() -> None:
    """Positions 1 to 5 are proposed with 3 wrong; AR puts its own there, and 4 and 5 come again."""
    script = scripted({3: 40})
    assert script.passes[0][:2] == (0, [3, 4, 40, 6, 7])
    first, proposal, _ = script.passes[1]
    assert first == 3
    assert proposal[:2] == [6, 7]
    assert script.passes[2][0] == 6
    assert scripted({3: 40}, draft_layout="strided").passes[2][0] == 4


def test_the_first_draft_comes_beside_the_prompt() -> None:
    """So that no evaluation writes a single token for want of one; with a prompt in pieces beside the last."""
    for layout in ("auto", "strided", "branches", "separate"):
        assert scripted({}, draft_layout=layout).passes[0][:2] == (0, [3, 4, 5, 6, 7])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "PREFILL_CHUNK", 2)
        assert scripted({}).passes[0][:2] == (0, [3, 4, 5, 6, 7])


def test_a_canvas_in_front_of_what_is_accepted_still_counts() -> None:
    left = Leftovers().after(3, 0, {0: canvas_at(2)}, np.stack([said(t) for t in (10, 11, 12, 13)]))
    assert sorted(left.rows) == [3, 4, 5, 6]
    later = left.after(
        5, 1, {0: canvas_at(3), 2: canvas_at(5)}, np.stack([said(t) for t in (20, 21, 22, 23) * 2])
    )
    assert {at: int(row.argmax()) for at, row in later.rows.items()} == {5: 21, 6: 22, 7: 23}
    assert later.newest == {5, 6, 7}


def canvas_at(position: int) -> Any:
    """A canvas of five slots whose first is settled."""
    made = begin(SamplerSettings(canvas_length=5), SlotVocabulary(VOCAB, VOCAB - 1), NoiseKey(0, 0), position)
    return made.after(settled=np.arange(5) == 0)


def test_leftovers_keep_the_newest_of_right_canvases_and_end_at_a_hole() -> None:
    left = Leftovers({4: said(1), 5: said(2), 7: said(3)})
    none = left.after(5, 0, {1: canvas_at(5)}, np.stack([said(9)] * 4))
    assert sorted(none.rows) == [5, 7]  # what is behind a wrong token is no news
    assert not none.newest
    rows = none.of(5, 9)
    assert rows is not None
    np.testing.assert_array_equal(rows, said(2)[None])
    rows[:] = 0
    assert none.rows[5].max() == 30.0  # a copy
    assert none.of(6, 9) is None
    two = left.after(4, 2, {0: canvas_at(2), 2: canvas_at(4)}, np.stack([said(t) for t in range(10, 18)]))
    assert {at: int(row.argmax()) for at, row in two.rows.items()} == {4: 11, 5: 14, 6: 15, 7: 16, 8: 17}
    assert len(two.of(4, 2)) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("heads", [True, False])
def test_verified_is_ar_with_leftovers(watched: bool, heads: bool) -> None:
    on = TorchBackend(with_heads()) if heads else backend(seed=5, spread=0.5)
    requests = []
    for seed in range(40):
        asked = options(seed) | {"draft_steps": 1, "draft_layout": "auto"} | COSTS
        requests += [Request(decode="ar", **asked), Request(decode="verified", watched=watched, **asked)]
    tickets = run(requests, on, max_batch=12, prefix_contexts=0)
    for ar, verified in zip(tickets[::2], tickets[1::2], strict=True):
        assert told(ar)[:3] == told(verified)[:3], ar.request


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    temperature=st.sampled_from([0.0, 0.4, 1.0]),
    canvas=st.integers(2, 9),
    row=st.sampled_from([0.0, 0.03, 0.2]),
    slot=st.sampled_from([None, 0.0, 0.1]),
    price=st.sampled_from([0.01, 0.3, 2.0]),
    penalty=st.sampled_from([1.0, 1.4]),
    forbidden=st.integers(1, 3),
    watched=st.booleans(),
)
def test_under_a_grammar_and_penalties_too(
    seed: int,
    temperature: float,
    canvas: int,
    row: float,
    slot: float | None,
    price: float,
    penalty: float,
    forbidden: int,
    watched: bool,
) -> None:
    def allow(before: Sequence[int]) -> np.ndarray:
        """No token with the remainder that the last one's successor has."""
        last = before[-1] if before else 0
        return np.arange(VOCAB) % (forbidden + 1) != last % (forbidden + 1)

    warp = SamplerSettings(canvas_length=canvas, temperature=temperature, repetition_penalty=penalty)
    ar = Request(prompt(7, seed), "ar", warp, max_tokens=22, ignore_eos=True, seed=seed, allow=allow)
    verified = replace(
        ar, decode="verified", row_cost=row, slot_cost=slot, canvas_cost=price, watched=watched
    )
    first, second = run([ar, verified], backend(seed=5, spread=0.5))
    assert told(first)[:3] == told(second)[:3]
    assert told(second)[3] <= told(first)[3]


def test_watching_shows_what_is_proposed_and_changes_nothing() -> None:
    on, proposed, shown = backend(seed=5, spread=0.5), 0, 0
    for seed in range(6):
        asked = Request(
            prompt(9, seed), "verified", SamplerSettings(canvas_length=6), max_tokens=30, ignore_eos=True
        )
        asked = replace(asked, **COSTS)
        engine = Engine(on, token_bytes)
        tickets = [engine.submit(asked), engine.submit(replace(asked, watched=False))]
        events = finish(engine, tickets)
        assert told(tickets[0]) == told(tickets[1])
        assert [e for e in events[tickets[0]] if isinstance(e, Commit)] == events[tickets[1]]
        committed = 0
        steps: dict[int, tuple[int, ...]] = {}
        for event in events[tickets[0]]:
            if isinstance(event, Step):
                assert event.position == committed
                steps[committed] = tuple(t for t in event.tokens.tolist() if t < NULL)
                shown += 1
            else:
                # What was accepted had been shown; nulls stand for nothing.
                if len(event.tokens) > 1:
                    assert steps[committed][: len(event.tokens) - 1] == event.tokens[:-1]
                    proposed += 1
                committed += len(event.tokens)
    assert shown > 20
    assert proposed > 5


@pytest.mark.parametrize(("shift", "steps", "rows"), [(True, 1, 4), (True, 2, 5), (False, 1, 5)])
def test_with_a_shift_a_draft_takes_a_row_less_than_it_has_slots(shift: bool, steps: int, rows: int) -> None:
    on = backend(seed=5, spread=0.5, shift=shift)
    for layout in ("auto", "strided", "branches"):
        request = Request(
            prompt(), "verified", SamplerSettings(canvas_length=5), max_tokens=30, ignore_eos=True
        )
        request = replace(request, draft_steps=steps, draft_layout=layout, row_cost=0.0, canvas_cost=0.01)
        writer = Verified(request, on.config, on.new_context(64), token_bytes)
        while not writer.done:
            p = writer.plan()
            if p.canvas is not None and len(writer.output.tokens) < 20:
                assert p.slots == rows * len(p.starts)
                first = steps > 1 and not len(p.encode)  # a canvas's second step reads what is open
                assert first or p.wanted.max() == 5 * len(p.starts) - 1
            writer.absorb(on.forward([p])[0])
        assert tuple(writer.output.tokens) == told(run([replace(request, decode="ar")], on)[0])[0]


# -- where canvases stand -------------------------------------------------------------------------------------


def test_where_rows_cost_nothing_canvases_stand_everywhere() -> None:
    assert starts((0.6, 0.6, 0.6), 4, 5, 0.7, Prices(0.6, 0.0, 0.0, 0.0)) == [0, 1, 2, 3]
    assert starts((0.6, 0.6, 0.6), 4, 5, 0.7, Prices(0.6, 0.05, 0.0, 0.0)) == [0, 1, 2, 3]
    assert len(starts((0.6, 0.6, 0.6), 4, 5, 0.7, Prices(0.6, 0.0, 0.05, 0.0))) < 4


def test_a_canvas_stands_where_it_is_likeliest_to_count() -> None:
    prices = Prices(0.8, 0.03, 0.03, 0.1)
    assert starts((), 4, 5, 0.8, prices) == [0]
    assert starts((0.99,) * 3, 4, 5, 0.8, prices) == [3]
    assert starts((0.05,) * 3, 4, 5, 0.8, prices) == [0]
    assert starts((0.99, 0.99, 0.02, 0.9), 4, 5, 0.8, prices) == [2]


def test_none_where_it_costs_more_than_it_brings() -> None:
    for sure in ((), (0.5, 0.5), (0.9,)):
        assert not starts(sure, 4, 5, 0.7, Prices(1.0, 0.05, 0.05, 9.0))
        assert not starts(sure, 4, 5, 0.05, Prices(1.0, 0.1, 0.1, 0.5))
    assert starts((), 4, 5, 1.0, Prices(1.0, 0.05, 0.05, 0.5)) == [0]  # a luck of 1 is a number too
