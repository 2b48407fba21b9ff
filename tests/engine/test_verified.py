"""decode "verified" gives decode "ar"'s tokens and reason, whatever the canvas proposes (DESIGN decision
5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from redraft.engine import Commit, Engine, Request, Step, Ticket
from redraft.engine.request import DRAFT_LAYOUTS
from redraft.engine.writers.verified import Verified
from redraft.sampling import SamplerSettings
from tests.engine.models import EOS, NULL, VOCAB, backend, finish, prompt, run, token_bytes, told

BIASES: tuple[tuple[tuple[int, float], ...], ...] = (
    (),
    ((EOS, 3.0),),
    ((NULL, 4.0),),
    ((EOS, 2.0), (NULL, 3.0)),
)


def options(seed: int) -> dict[str, Any]:
    """A request's settings, everything that could make the two modes part ways among them."""
    rng = np.random.default_rng(seed)
    warp: dict[str, Any] = {
        "temperature": float(rng.choice([0.0, 0.0, 0.6, 1.0, 1.5])),
        "top_k": int(rng.choice([0, 0, 3, 12])),
        "top_p": float(rng.choice([1.0, 1.0, 0.9, 0.5])),
        "repetition_penalty": float(rng.choice([1.0, 1.0, 1.3])),
        "frequency_penalty": float(rng.choice([0.0, 0.0, 0.4])),
        "presence_penalty": float(rng.choice([0.0, 0.0, -0.5])),
        "logit_bias": BIASES[int(rng.integers(len(BIASES)))],
    }
    canvas = int(rng.integers(1, 14))
    return {
        "prompt": prompt(int(rng.integers(1, 30)), seed),
        "sampler": SamplerSettings(canvas_length=canvas, threshold=float(rng.random()), **warp),
        "max_tokens": int(rng.integers(1, 26)),
        "stop": ((), ("ab",), ("cad", "t"), ("bcd",))[int(rng.integers(4))],
        "ignore_eos": bool(rng.random() < 0.2),
        "seed": seed,
        "draft_steps": int(rng.choice([1, 1, 2, 3])),
        "draft_layout": DRAFT_LAYOUTS[int(rng.integers(4))],
        "row_cost": float(rng.choice([0.0, 0.1, 0.3])),
        "canvas_cost": float(rng.choice([0.0, 0.0, 0.7])),
    }


def test_verified_is_ar_for_hundreds_of_requests_in_mixed_batches() -> None:
    """Greedy and sampled, top-k, top-p, penalties, odd canvases, nulls in proposals, EOS inside them, stop
    strings."""
    requests = []
    for seed in range(260):
        given = options(seed)
        requests += [Request(decode="ar", **given), Request(decode="verified", **given)]
        if seed % 5 == 0:
            requests.append(Request(decode="diffusion", **given))
    tickets = run(requests, max_batch=12, prefix_contexts=0)
    pairs = [t for t in tickets if t.request.decode != "diffusion"]
    reasons: dict[str | None, int] = {}
    for ar, verified in zip(pairs[::2], pairs[1::2], strict=True):
        assert told(ar)[:3] == told(verified)[:3], ar.request
        if verified.request.draft_steps == 1:
            assert told(verified)[3] <= told(ar)[3]
        reasons[told(ar)[1]] = reasons.get(told(ar)[1], 0) + 1
    assert min(reasons.values()) > 40, reasons  # both ends were met often
    assert sum(told(t)[1] == "stop" and not t.request.stop for t in pairs) > 20  # by EOS


def evaluations(right: int, layout: str) -> int:
    """Of 29 tokens, when the first `right` of a canvas's 7 proposed tokens are AR's own and the next is not."""
    settings = SamplerSettings(canvas_length=8, temperature=0.8)
    given: dict[str, Any] = {"max_tokens": 29, "ignore_eos": True, "seed": 3, "draft_layout": layout}
    answer = told(run([Request(prompt(), "ar", settings, **given)])[0])[0]

    class Oracle(Verified):
        def _propose(self, slots: Iterable[tuple[int, float]]) -> None:
            self.canvas, due = None, answer[len(self.output.tokens) :][: len(list(slots))]
            self._proposal = tuple(t if i != right else 2 + (t - 1) % 40 for i, t in enumerate(due))

    context = backend().new_context(64)
    writer = Oracle(Request(prompt(), "verified", settings, **given), backend().config, context, token_bytes)
    while not writer.done:
        writer.absorb(backend().forward([writer.plan()])[0])
    assert tuple(writer.output.tokens) == answer
    return writer.nfe


def test_proposals_that_are_right_save_evaluations() -> None:
    """Token 1 and the first draft come with the prompt, then 8 tokens an evaluation: 7 proposed and AR's next."""
    assert evaluations(7, "strided") == evaluations(7, "branches") == 4
    assert evaluations(7, "separate") == 7  # which bring 8, 1, 8, 1, … tokens


def test_a_branch_saves_the_evaluation_behind_a_mistake() -> None:
    """With 2 of 7 right an evaluation brings 3 tokens; what was drafted behind all 7 is lost, a branch is not."""
    assert evaluations(2, "branches") == 10
    assert evaluations(2, "strided") == evaluations(2, "separate") == 14  # 3, 1, 3, 1, … tokens


def test_where_drafts_never_pay_few_are_made() -> None:
    """With what a canvas costs beyond all hope, one is tried every ninth evaluation, and the answer stays AR's."""
    settings = SamplerSettings(canvas_length=8)
    given: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "canvas_cost": 9.0}
    ar, verified = (Request(prompt(), mode, settings, **given) for mode in ("ar", "verified"))
    writer = Verified(verified, backend().config, backend().new_context(96), token_bytes)
    canvases = []
    while not writer.done:
        planned = writer.plan()
        canvases.append(planned.canvas is not None)
        writer.absorb(backend().forward([planned])[0])
    assert tuple(writer.output.tokens) == told(run([ar])[0])[0]
    made = np.flatnonzero(canvases)
    assert len(made) >= 4
    assert (np.diff(made) >= 9).all()


def test_a_sharp_model_agrees_with_itself_now_and_then() -> None:
    on = backend(seed=5, spread=0.5)
    settings = SamplerSettings(canvas_length=6)
    asked = [
        Request(prompt(seed=s), mode, settings, max_tokens=40, ignore_eos=True)
        for s in range(8)
        for mode in ("ar", "verified")
    ]
    tickets = run(asked, on)
    spent = {
        mode: sum(told(t)[3] for t in tickets if t.request.decode == mode) for mode in ("ar", "verified")
    }
    assert spent["ar"] == 8 * 39
    assert spent["verified"] < spent["ar"]
    assert [told(t)[:2] for t in tickets[::2]] == [told(t)[:2] for t in tickets[1::2]]


def test_the_answer_may_fill_the_context_to_its_last_token() -> None:
    on = backend(max_position_embeddings=48)
    for canvas in (1, 3, 8, 40):
        settings = SamplerSettings(canvas_length=canvas, temperature=0.7)
        asked = [
            Request(prompt(30), m, settings, max_tokens=None, ignore_eos=True) for m in ("ar", "verified")
        ]
        ar, verified = run(asked, on)
        assert told(ar)[:2] == told(verified)[:2]
        assert len(told(ar)[0]) == 18
        assert told(ar)[1] == "length"


def test_events_tell_of_drafts_and_of_what_was_committed() -> None:
    engine = Engine(backend(seed=5, spread=0.5), token_bytes)
    settings = SamplerSettings(canvas_length=6)
    ticket = engine.submit(Request(prompt(), "verified", settings, max_tokens=20, ignore_eos=True))
    events = finish(engine, [ticket])[ticket]
    committed: list[int] = []
    for event in events:
        if isinstance(event, Step):
            assert event.position == len(committed)
            assert len(event.tokens) == len(event.state) == len(event.probability) == len(event.entropy)
        else:
            committed += event.tokens
    assert tuple(committed) == told(ticket)[0]
    assert any(isinstance(event, Step) for event in events)
    assert isinstance(events[-1], Commit)
    assert events[-1].finish_reason == "length"
    assert all(event.nfe <= told(ticket)[3] for event in events)


@pytest.mark.parametrize("mode", ["ar", "verified"])
def test_ar_never_chooses_a_mask_or_a_null(mode: str) -> None:
    settings = SamplerSettings(temperature=2.0, logit_bias=((NULL, 50.0), (VOCAB - 1, 50.0)))
    ticket: Ticket = run([Request(prompt(), mode, settings, max_tokens=40, ignore_eos=True)])[0]
    assert max(told(ticket)[0]) < NULL
