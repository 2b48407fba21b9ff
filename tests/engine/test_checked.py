"""Diffusion whose canvases the AR self checks: verified decoding with a tolerance."""

from __future__ import annotations

import numpy as np
import pytest

from redraft.engine import Request
from redraft.engine.backend import Pass
from redraft.errors import RequestError
from redraft.sampling import SamplerSettings
from tests.engine.models import backend, prompt, run, told

SAMPLER = SamplerSettings(canvas_length=6)


def checked(seed: int, ratio: float | None, **given: object) -> Request:
    settings = {"sampler": SAMPLER, "max_tokens": 24, "ignore_eos": True, "seed": seed} | given
    return Request(prompt(9, seed), check_ratio=ratio, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_ratio_of_one_is_ar(temperature: float) -> None:
    sampler = SamplerSettings(canvas_length=6, temperature=temperature)
    for seed in range(20):
        ar = Request(prompt(9, seed), "ar", sampler, max_tokens=24, ignore_eos=True, seed=seed)
        same = checked(seed, 1.0, sampler=sampler)
        first, second = run([ar, same])
        assert told(first)[0] == told(second)[0]


@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.1])
def test_every_token_has_its_share_of_the_likeliest_ones_probability(ratio: float) -> None:
    lowest = 1.0
    for seed in range(12):
        request = checked(seed, ratio)
        ticket = run([request])[0]
        tokens = told(ticket)[0]
        text = np.array([*request.prompt, *tokens])
        context = backend().new_context(len(text))
        logits = backend().forward([Pass(context, text, "all")])[0].encode
        assert ticket.writer is not None
        rows = logits[len(request.prompt) - 1 : -1].astype(np.float64)
        rows[:, list(ticket.writer.config.special_slot_ids)] = -np.inf
        shares = np.exp(rows[np.arange(len(tokens)), list(tokens)] - rows.max(-1))
        assert shares.min() >= ratio * (1 - 1e-4)
        lowest = min(lowest, float(shares.min()))
    assert lowest < 0.999  # some tokens are not AR's own choice


def test_a_laxer_check_takes_fewer_evaluations() -> None:
    def evaluations(ratio: float) -> int:
        return sum(told(t)[3] for t in run([checked(seed, ratio) for seed in range(12)]))

    assert evaluations(1e-6) < evaluations(0.5) < evaluations(1.0)


def test_alone_and_in_a_batch_the_same() -> None:
    requests = [checked(seed, 0.4) for seed in range(6)]
    together = [told(t) for t in run(requests, max_batch=6)]
    assert together == [told(run([request])[0]) for request in requests]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"check_ratio": 0.0}, "above 0"),
        ({"check_ratio": 1.5}, "at most 1"),
        ({"check_ratio": 0.5, "decode": "verified"}, "is for decode diffusion"),
        ({"check_ratio": 0.5, "locked": {0: 3}}, "with a check writes from left to right"),
    ],
)
def test_what_a_check_can_not_go_with(given: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Request(prompt(), **given).check(backend().config)  # type: ignore[arg-type]
