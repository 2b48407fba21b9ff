"""The numpy side of an adapter's heads, against the formulas written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.errors import RedraftError, RequestError
from redraft.sampling import NoiseKey, SamplerSettings, SlotVocabulary, begin
from redraft.sampling.canvas import Canvas
from redraft.sampling.heads import CANDIDATES, READ_FROM, DraftHeads, _likeliest, draft
from redraft.sampling.noise import gumbel
from redraft.sampling.reading import read

SIZE, HIDDEN, RANK, SLOTS = 200, 12, 3, 7
MASK, NULL, EOS = SIZE - 1, SIZE - 2, 0
VOCABULARY = SlotVocabulary(SIZE, MASK, NULL, (EOS,))
KEY = NoiseKey(5, 1)


def tensors(seed: int = 0, places: int = SLOTS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def made(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "markov_A": made(RANK, HIDDEN),
        "markov_B": made(RANK, HIDDEN),
        "confidence_weight": made(HIDDEN),
        "confidence_bias": made(places),
        "confidence_scale": made(places),
        "confidence_shift": made(places),
    }


def heads(seed: int = 0, candidates: int = SIZE) -> DraftHeads:
    rng = np.random.default_rng(seed + 100)
    embedding, output = (rng.standard_normal((SIZE, HIDDEN)).astype(np.float32) for _ in range(2))
    made = DraftHeads.of(tensors(seed), embedding, output, RANK, SLOTS, "it")
    assert made is not None
    return replace(made, candidates=candidates)


def canvas(first_settled: bool = True, **settings: Any) -> Canvas:
    made = begin(SamplerSettings(canvas_length=SLOTS, **settings), VOCABULARY, KEY, 11, chosen=(4, 4, 9))
    return made.after(settled=np.arange(SLOTS) == 0) if first_settled else made


def hidden_and_logits(of: DraftHeads, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.random.default_rng(seed).standard_normal((rows, HIDDEN)).astype(np.float32)
    return hidden, hidden @ of.output.T


def tables(of: DraftHeads) -> tuple[np.ndarray, np.ndarray]:
    """W1 [V, r] and W2 [r, V]."""
    assert of.markov_a is not None
    assert of.markov_b is not None
    normed = of.embedding / np.sqrt((of.embedding**2).mean(-1, keepdims=True) + 1e-6)
    return normed @ of.markov_a.T, of.markov_b @ of.output.T


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_drafts_go_from_left_to_right_with_the_full_product(seed: int, temperature: float) -> None:
    own, start = heads(seed), 17
    _, logits = hidden_and_logits(own, SLOTS - 1, seed)
    w1, w2 = tables(own)
    due, previous = [], start
    for row, plain in enumerate(logits):
        bent = plain.astype(np.float64) + w1[previous] @ w2
        bent[MASK] = -np.inf
        if temperature:
            bent = bent / temperature + gumbel(KEY, 11 + 1 + row, SIZE)
        due.append(int(bent.argmax()))
        previous = previous if due[-1] == NULL else due[-1]
    got, _ = draft(own, canvas(temperature=temperature), logits.copy(), start)
    assert got is not None
    assert got.tolist() == due
    free, _ = draft(replace(own, markov_a=np.zeros_like(own.markov_a)), canvas(), logits.copy(), start)
    assert free is not None
    assert (free != due).any()  # the head has something to say here


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.8},
        {"temperature": 1.2, "top_k": 20, "top_p": 0.9},
        {"repetition_penalty": 1.4, "logit_bias": ((3, 2.0), (NULL, 4.0))},
        {"temperature": 0.7, "frequency_penalty": 0.5},
    ],
)
@pytest.mark.parametrize("first_settled", [True, False])
def test_what_is_drafted_is_what_the_canvas_reads(settings: dict[str, Any], first_settled: bool) -> None:
    """The logits are corrected in place: reading them anew draws the same tokens."""
    for seed in range(4):
        own = heads(seed, candidates=16)
        begun = canvas(first_settled, **settings)
        _, logits = hidden_and_logits(own, len(begun.wanted), seed)
        tokens, _ = draft(own, begun, logits, 5)
        assert tokens is not None
        assert tokens.tolist() == read(begun, logits).choice[begun.wanted].tolist()


def test_few_candidates_change_only_the_likeliest() -> None:
    own = heads(candidates=10)
    _, plain = hidden_and_logits(own, SLOTS - 1)
    logits = plain.copy()
    tokens, _ = draft(own, canvas(), logits, 5)
    assert tokens is not None
    w1, w2 = tables(own)
    previous = 5
    for before, after, token in zip(plain, logits, tokens.tolist(), strict=True):
        top = np.flatnonzero(after != before)
        assert 10 <= len(top) < 20
        assert before[top].min() > np.delete(before, top).max()
        more = w1[previous] @ w2
        np.testing.assert_allclose(after[top], (before + more - more.mean())[top], atol=1e-4)
        rest = np.setdiff1d(np.arange(SIZE), top)
        np.testing.assert_array_equal(after[rest], before[rest])
        previous = token
    assert own.candidates < CANDIDATES <= SIZE


@given(
    logits=st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=400),
    count=st.integers(1, 12),
)
def test_candidates_are_the_likeliest(logits: list[float], count: int) -> None:
    values = np.array(logits, np.float32)
    few = _likeliest(values, count)
    assert len(few) >= min(count, len(values))
    others = np.delete(values, few)
    assert not len(others) or values[few].min() > others.max()


def test_candidates_are_few() -> None:
    values = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    assert CANDIDATES <= len(_likeliest(values, CANDIDATES)) < 1.2 * CANDIDATES


def test_an_empty_slot_is_passed_over_and_a_settled_one_is_known() -> None:
    own = heads()
    begun = canvas().after(settled=np.isin(np.arange(SLOTS), (0, 3)))
    begun = begun.after(tokens=np.where(np.arange(SLOTS) == 3, 42, begun.tokens))
    _, plain = hidden_and_logits(own, SLOTS - 2)
    plain[0, NULL] = 500  # slot 1 stays empty
    logits = plain.copy()
    tokens, _ = draft(own, begun, logits, 5)
    assert tokens is not None
    assert tokens[0] == NULL
    w1, w2 = tables(own)
    for row, previous in ((0, 5), (1, 5), (2, 42), (3, int(tokens[2]))):  # slots 1, 2, 4, 5
        more = w1[previous] @ w2
        np.testing.assert_allclose(logits[row], plain[row] + more - more.mean(), atol=1e-3)


@pytest.mark.parametrize("markov", [True, False])
def test_chances_are_a_function_of_the_moved_hidden_state(markov: bool) -> None:
    own, given = heads(), tensors()
    if not markov:
        own = replace(own, markov_a=None, markov_b=None)
    hidden, logits = hidden_and_logits(own, SLOTS - 1)
    tokens, chances = draft(own, canvas(), logits, 5)
    assert chances is not None
    assert (tokens is None) != markov
    moved = hidden.copy()
    if tokens is not None:
        before = [5, *tokens[:-1].tolist()]
        moved += np.stack([own.move(token) for token in before])
    odds = moved @ given["confidence_weight"] + given["confidence_bias"][1:]
    odds = given["confidence_scale"][1:] * odds + given["confidence_shift"][1:]
    np.testing.assert_allclose(chances, 1 / (1 + np.exp(-odds)), atol=1e-4)


def test_the_shortest_readout_of_the_first_logits_is_the_vector_times_the_state() -> None:
    own = heads()
    hidden, logits = hidden_and_logits(own, 20)
    assert own.confidence_weight is not None
    assert len(own.readout) == READ_FROM * HIDDEN
    np.testing.assert_allclose(
        logits[:, : len(own.readout)] @ own.readout, hidden @ own.confidence_weight, atol=1e-4
    )
    due = np.linalg.pinv(own.output[: READ_FROM * HIDDEN].T.astype(np.float64)) @ own.confidence_weight
    np.testing.assert_allclose(own.readout, due, atol=1e-5)


def test_a_canvas_longer_than_those_of_training_has_its_last_place() -> None:
    own = heads()
    _, logits = hidden_and_logits(own, 2)
    both = own.chances(np.array([SLOTS - 1, SLOTS + 5]), np.stack((logits[0], logits[0])), None)
    assert both[0] == both[1]


def test_logits_that_are_no_numbers_are_refused() -> None:
    logits = np.zeros((SLOTS - 1, SIZE), np.float32)
    logits[3, 7] = np.nan
    with pytest.raises(RedraftError, match="not finite numbers"):
        draft(heads(), canvas(), logits, 5)


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(RedraftError, match="logits have shape"):
        draft(heads(), canvas(), np.zeros((SLOTS, SIZE), np.float32), 5)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"markov_A": np.zeros((RANK, HIDDEN + 1))}, "markov_A"),
        ({"markov_B": np.zeros((RANK + 1, HIDDEN))}, "markov_B"),
        ({"more": np.zeros(3)}, "more"),
        ({"markov_B": None}, "markov_B"),
        ({"confidence_weight": np.zeros(HIDDEN - 1)}, "confidence_weight"),
        ({"confidence_bias": np.zeros(SLOTS + 2)}, "confidence_bias"),
        ({"confidence_shift": None}, "confidence_shift"),
    ],
)
def test_heads_that_do_not_fit_get_one_line(changes: dict[str, Any], name: str) -> None:
    given = {k: v for k, v in (tensors() | changes).items() if v is not None}
    table = np.zeros((SIZE, HIDDEN), np.float32)
    with pytest.raises(RequestError, match=f"the heads of it don't fit the adapter: {name}") as caught:
        DraftHeads.of(given, table, table, RANK, SLOTS, "it")
    assert "\n" not in str(caught.value)


def test_one_head_alone_and_none() -> None:
    table = np.zeros((SIZE, HIDDEN), np.float32)
    assert DraftHeads.of({}, table, table, 0, 0, "it") is None
    for kind, sizes in (("markov", (RANK, 0)), ("confidence", (0, SLOTS))):
        given = {k: v for k, v in tensors().items() if k.startswith(kind)}
        made = DraftHeads.of(given, table, table, *sizes, "it")
        assert made is not None
        assert (made.markov, made.confident) == (kind == "markov", kind == "confidence")
