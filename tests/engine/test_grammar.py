"""A grammar holds in every mode, and changes nothing about verified being ar."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from redraft.engine import Request
from redraft.errors import RedraftError, RequestError
from redraft.sampling import SamplerSettings
from tests.engine.models import EOS, NULL, VOCAB, backend, prompt, run, told

OPEN, CLOSE, WORD = range(2, 6), range(6, 10), range(10, 40)


def brackets(before: list[int]) -> np.ndarray:
    """Words in brackets at most two deep, each word followed by a bracket; the end only where all are closed."""
    depth = sum((t in OPEN) - (t in CLOSE) for t in before)
    mask = np.zeros(VOCAB, dtype=bool)
    mask[OPEN] = depth < 2
    mask[CLOSE] = depth > 0
    mask[WORD] = depth > 0 and before[-1] not in WORD
    mask[EOS] = depth == 0 and len(before) > 0
    mask[NULL] = True  # a grammar need not know what a null is
    return mask


def valid(tokens: tuple[int, ...]) -> bool:
    return all(brackets(list(tokens[:i]))[t] and t != NULL for i, t in enumerate(tokens))


def request(decode: str, seed: int = 0, temperature: float = 0.0, **changes: Any) -> Request:
    sampler = changes.pop("sampler", {})
    settings = SamplerSettings(temperature=temperature, **({"canvas_length": 8, "threshold": 0.05} | sampler))
    options = {"max_tokens": 30, "seed": seed, "allow": brackets} | changes
    return Request(prompt(seed=seed), decode, settings, **options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("decode", ["ar", "verified", "diffusion"])
def test_every_answer_follows_the_grammar(decode: str, temperature: float) -> None:
    by_chance = 0
    for seed in range(12):
        ticket = run([request(decode, seed, temperature)])[0]
        tokens = told(ticket)[0]
        assert tokens
        assert valid(tokens)
        free = told(run([request(decode, seed, temperature, allow=None)])[0])[0]
        by_chance += valid(free)
    assert by_chance < 6  # the network has not learnt the grammar


@pytest.mark.parametrize(
    "sampler",
    [{"max_steps": 2}, {"accept": "quota", "steps": 2}, {"accept": "entropy_bound", "entropy_bound": 99.0}],
)
def test_rules_that_would_settle_all_at_once_keep_to_it(sampler: dict[str, Any]) -> None:
    for seed in range(6):
        assert valid(told(run([request("diffusion", seed, 0.7, sampler=sampler)])[0])[0])


def test_several_tokens_settle_in_one_step_where_the_grammar_lets_them() -> None:
    def any_word(before: list[int]) -> np.ndarray:
        return np.isin(np.arange(VOCAB), list(WORD))

    ticket = run([request("diffusion", allow=any_word, sampler={"threshold": 0.0}, ignore_eos=True)])[0]
    assert ticket.writer is not None
    assert len(ticket.writer.output.tokens) == 30
    assert ticket.writer.nfe < 30


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_verified_is_ar_under_a_grammar(temperature: float) -> None:
    sampler = {"repetition_penalty": 1.3, "top_k": 12}
    for seed in range(20):
        pair = [request(m, seed, temperature, sampler=sampler) for m in ("ar", "verified")]
        assert told(run(pair[:1])[0])[:3] == told(run(pair[1:])[0])[:3]


def test_a_grammar_that_allows_everything_changes_no_ar_answer() -> None:
    free = told(run([request("ar", 3, 0.9, allow=None)])[0])
    assert told(run([request("ar", 3, 0.9, allow=lambda before: np.ones(VOCAB, dtype=bool))])[0]) == free


@pytest.mark.parametrize("decode", ["ar", "diffusion"])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(VOCAB, dtype=bool), "no token is allowed at this place"),
        (np.ones(VOCAB - 1, dtype=bool), "allow must return one bool for each of 44 tokens"),
        (np.ones(VOCAB), "allow must return one bool for each of 44 tokens, not float64"),
    ],
)
def test_what_a_grammar_must_return(decode: str, mask: np.ndarray, message: str) -> None:
    ticket = run([request(decode, allow=lambda before: mask)])[0]
    assert isinstance(ticket.error, RedraftError)
    assert message in str(ticket.error)


def test_what_a_grammar_does_not_go_with() -> None:
    with pytest.raises(RequestError, match="given slots"):
        request("diffusion", locked={2: 7}).check(backend().config)
    with pytest.raises(RequestError, match="stay once accepted"):
        request("diffusion", sampler={"edit_threshold": 0.9}).check(backend().config)
