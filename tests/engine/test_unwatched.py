"""An answer that nobody watches is the same answer, told in its commits alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from redraft.engine import Commit, Engine, Request, Step
from redraft.sampling import SamplerSettings
from tests.engine.models import backend, finish, prompt, token_bytes, told


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("decode", ["ar", "diffusion", "verified"])
@pytest.mark.parametrize("accept", ["threshold", "entropy_bound", "ancestral"])
def test_unwatched_is_watched_without_steps(decode: str, temperature: float, accept: str) -> None:
    settings = SamplerSettings(
        canvas_length=8, threshold=0.2, accept=accept, temperature=temperature, confident_entropy=0.5
    )
    for seed in range(4):
        watched = Request(prompt(seed=seed), decode, settings, max_tokens=24, seed=seed)
        engine = Engine(backend(), token_bytes)
        tickets = [engine.submit(watched), engine.submit(replace(watched, watched=False))]
        events = finish(engine, tickets)
        assert told(tickets[0]) == told(tickets[1])
        assert all(isinstance(event, Commit) for event in events[tickets[1]])
        assert [e for e in events[tickets[0]] if not isinstance(e, Step)] == events[tickets[1]]
        assert tickets[1].first_draft is not None
