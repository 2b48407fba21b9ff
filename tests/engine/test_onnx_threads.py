"""Calls of few rows run on one thread and wider ones on all of them, and the bits are the same."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.engine.backend import Pass
from redraft.engine.backends import onnx_backend
from redraft.engine.backends.onnx_cache import OnnxContext
from redraft.engine.backends.onnx_crews import THREAD_NAME, Workers, crews_of
from redraft.engine.backends.onnx_graph import Precision
from redraft.engine.backends.onnx_rows import Share, visible, write_mask
from redraft.engine.backends.onnx_session import Kind
from redraft.errors import RedraftError
from tests.engine.onnx_models import denoiser, onnx, tokens

WIDE = {"hidden_size": 192, "intermediate_size": 512, "vocab_size": 1000, "num_hidden_layers": 2}


@pytest.mark.parametrize("precision", ["fp32", "blocks", "int8"])
def test_a_row_is_the_same_on_any_number_of_threads(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_backend, "physical_cores", lambda: 2)
    model = denoiser(**WIDE)
    work = onnx_backend.linear_weights(model.config)
    monkeypatch.setattr(onnx_backend, "ONE_THREAD_BELOW", 8 * work)
    backend = onnx(model, precision, threads=0)
    ids = tokens(40)
    context = backend.new_context(64)
    whole = backend.forward([Pass(context, ids, "all")])[0].encode  # 40 rows: on two threads
    assert {kind.threads for kind, _ in backend._runners} == {1, 2}
    context.truncate(0)
    parts = [
        backend.forward([Pass(context, ids[at : at + n], "all")])[0].encode
        for at, n in ((0, 1), (1, 2), (3, 5), (8, 8), (16, 9), (25, 15))  # up to 8 rows: on one
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_few_rows_of_many_requests_are_parted_among_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_backend, "physical_cores", lambda: 2)
    backend = onnx(denoiser(**WIDE), threads=0)
    alone = backend.new_context(64)
    backend.forward([Pass(alone, tokens(20))])
    one = backend.forward([Pass(alone, tokens(1), "last")])[0].encode
    assert set(backend._runners) == {(Kind(1), 0)}
    contexts = [backend.new_context(64) for _ in range(onnx_backend.FEW_LANES + 1)]
    for context in contexts:
        backend.forward([Pass(context, tokens(20))])
    together = backend.forward([Pass(context, tokens(1), "last") for context in contexts])
    assert set(backend._runners) == {(Kind(1), 0), (Kind(1), 1)}
    assert sorted(c.crew for c in contexts if c.crew is not None) == [0, 0, 1]
    assert all(np.array_equal(result.encode, one) for result in together)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([None, 0, 1, 5]), st.integers(1, 90)), min_size=1, max_size=9))
def test_crews_are_even_and_whoever_can_stays(given_crews: list[tuple[int | None, int]]) -> None:
    config = denoiser().config
    contexts = [OnnxContext(config, 1) for _ in given_crews]
    for context, (crew, _) in zip(contexts, given_crews, strict=True):
        context.crew = crew
    needed = [rows for _, rows in given_crews]
    crews = crews_of(contexts, needed, 3)
    assert sorted(i for crew in crews for i in crew) == list(range(len(contexts)))
    assert len(crews) == min(3, len(contexts))
    sizes = [len(crew) for crew in crews]
    assert max(sizes) <= min(sizes) + 1
    assert all(len({contexts[i].crew for i in crew}) == 1 for crew in crews)
    before = [context.crew for context in contexts]
    assert crews_of(contexts, needed, 3) == crews  # and nobody moves again
    assert [context.crew for context in contexts] == before


def test_what_fails_on_another_core_is_raised_here_when_all_have_ended() -> None:
    ended = []

    def fail() -> None:
        raise RedraftError("no")

    workers = Workers(2)
    for _ in range(3):
        with pytest.raises(RedraftError, match="^no$"):
            workers.run([lambda: ended.append(1), fail, lambda: ended.append(2)])
        workers.run([lambda: ended.append(3)])
    assert sorted(ended) == [1] * 3 + [2] * 3 + [3] * 3


def test_threads_end_with_the_backend() -> None:
    before = set(threading.enumerate())  # other tests' backends may have threads of the same name
    workers = Workers(2)
    own = [t for t in threading.enumerate() if t not in before and t.name.startswith(THREAD_NAME)]
    assert len(own) == 2
    del workers
    for thread in own:
        thread.join(10)
    assert not any(thread.is_alive() for thread in own)


@pytest.mark.parametrize("precision", ["fp32", "blocks", "int8"])
def test_any_company_on_any_number_of_cores_gives_the_same_bits(precision: Precision) -> None:
    """Requests that come and go, of one to thirty rows each, alone on one thread and parted among three."""
    model = denoiser(**WIDE)
    parted, single = onnx(model, precision, threads=3), onnx(model, precision, threads=1)
    rng = np.random.default_rng(0)
    pairs = [(parted.new_context(8), single.new_context(8)) for _ in range(7)]
    for step in range(40):
        gone = int(rng.integers(7))
        pairs[gone] = (parted.new_context(8), single.new_context(8))
        chosen = rng.permutation(7)[: 1 + int(rng.integers(7))].tolist()
        calls = [
            (tokens(1 + int(rng.integers(6)), step), tokens(int(rng.integers(1, 25)), step)) for _ in chosen
        ]
        together = parted.forward(
            [Pass(pairs[i][0], e, "all", canvas=c) for i, (e, c) in zip(chosen, calls, strict=True)]
        )
        for i, (encode, canvas), got in zip(chosen, calls, together, strict=True):
            due = single.forward([Pass(pairs[i][1], encode, "all", canvas=canvas)])[0]
            np.testing.assert_array_equal(got.encode, due.encode)
            np.testing.assert_array_equal(got.canvas, due.canvas)
        by_arena: dict[int, set[int | None]] = {}
        for i in chosen if len(chosen) > 1 else []:
            by_arena.setdefault(id(pairs[i][0].arena), set()).add(pairs[i][0].crew)
        assert all(len(crews) == 1 for crews in by_arena.values())
    assert {crew for _, crew in parted._runners} == {0, 1, 2}


def test_a_given_number_of_threads_holds_for_every_call() -> None:
    backend = onnx(denoiser(), threads=2)
    context = backend.new_context(64)
    for rows in (1, 40):
        backend.forward([Pass(context, tokens(rows))])
    assert set(backend._runners) == {(Kind(2), 0)}


@pytest.mark.parametrize("encode", [0, 1, 5, 16, 17])
@pytest.mark.parametrize(("canvas", "branches"), [(0, ()), (1, ()), (4, ()), (4, (1, 3)), (6, (1, 2, 4))])
def test_a_mask_written_row_by_row_is_the_layouts(
    encode: int, canvas: int, branches: tuple[int, ...]
) -> None:
    config = denoiser().config
    share = Share(1, encode, canvas, 7, branches if max(branches, default=0) <= encode else ())
    mask = np.full((3, 1, max(2, share.rows), 48), np.nan, np.float32)
    write_mask(config, (share,), mask)
    assert np.array_equal(mask[1, 0, : share.rows] == 0, visible(config, share, 48))
    assert (mask[[0, 2]] == 0).all()
