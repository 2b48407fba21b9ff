"""What the engine holds and computes: memory goes back, grows with live tokens alone, and a token costs the same rows
at any context."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Sequence

import numpy as np
import pytest

from redraft.engine import Engine, Request
from redraft.engine.backend import Pass, PassResult
from redraft.engine.backends import onnx_cache
from redraft.engine.backends.onnx_backend import OnnxBackend
from redraft.engine.scheduler import row_bytes
from redraft.sampling import SamplerSettings
from tests.engine.models import prompt
from tests.engine.onnx_models import denoiser, onnx, tokens

MODES = ("diffusion", "ar", "verified")
LONGEST = 1024


@pytest.fixture(scope="module")
def backend() -> OnnxBackend:
    return onnx(denoiser(max_position_embeddings=LONGEST))


class Counted:
    """A backend that counts its evaluations and their rows."""

    def __init__(self, inner: OnnxBackend) -> None:
        self.inner, self.config, self.name = inner, inner.config, inner.name
        self.heads = inner.heads
        self.evaluations = self.rows = 0

    def new_context(self, capacity: int) -> onnx_cache.OnnxContext:
        return self.inner.new_context(capacity)

    def forward(self, passes: Sequence[Pass]) -> list[PassResult]:
        self.evaluations += 1
        self.rows += sum(len(p.encode) + (0 if p.canvas is None else len(p.canvas)) for p in passes)
        return self.inner.forward(passes)


def serve(engine: Engine, count: int, first: int) -> None:
    """Answers `count` requests of all modes and many lengths, eight at a time."""
    for number in range(first, first + count):
        asked = Request(
            prompt(1 + 7 * number % 90, number),
            MODES[number % 3],
            SamplerSettings(canvas_length=3 + number % 6, max_steps=1),
            max_tokens=1 + number % 3,
            seed=number,
        )
        engine.submit(asked)
        while engine.waiting + engine.running >= 8:
            engine.step()
    while engine.has_work:
        engine.step()


def test_memory_is_back_where_it_started_after_a_thousand_requests(
    backend: OnnxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    arenas: weakref.WeakSet[onnx_cache.Arena] = weakref.WeakSet()
    made = onnx_cache.Arena.__init__

    def noted(self: onnx_cache.Arena, *arguments: object) -> None:
        made(self, *arguments)  # type: ignore[arg-type]
        arenas.add(self)

    monkeypatch.setattr(onnx_cache.Arena, "__init__", noted)
    engine = Engine(backend, lambda token: b"a", max_batch=8, prefix_contexts=0)
    tracemalloc.start()
    serve(engine, 300, 0)  # what is kept of shapes and plans is bounded, and by then nearly full
    gc.collect()
    start = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    serve(engine, 1000, 300)
    gc.collect()
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert engine.rows_in_use == 0
    assert not arenas
    assert most - start > 8 * 64 * row_bytes(backend.config)  # the measure sees keys and values
    assert held - start < 1_000_000  # less than a kilobyte a request: not one of them stays


@pytest.mark.parametrize("together", [1, 6])
def test_memory_grows_with_live_tokens(backend: OnnxBackend, together: int) -> None:
    """Keys and values of n tokens take n rows and less than a block more, alone and in company."""
    row, block = row_bytes(backend.config), onnx_cache.ARENA_BLOCK
    for length in (64, 128, 320, 640, 1000):
        contexts = [backend.new_context(1) for _ in range(together)]
        for at in range(0, length, 160):
            part = tokens(min(160, length - at), at)
            backend.forward([Pass(c, part) for c in contexts])
        held = {id(c.arena): c.arena for c in contexts}.values()
        whole = sum(array.nbytes for arena in held for array in arena.arrays)
        most = length * 3 // 2 if together == 1 else length  # alone it grows by half, not to be copied often
        assert length * row * together <= whole <= (most + block) * row * together
        assert whole == sum(c.nbytes for c in contexts)


@pytest.mark.parametrize("mode", MODES)
def test_a_token_costs_the_same_rows_at_any_context(backend: OnnxBackend, mode: str) -> None:
    """From 64 tokens to the longest context: the prompt is read once, and what is computed after it is the same."""
    costs = []
    for length in (64, 256, LONGEST - 64):
        counted = Counted(backend)
        engine = Engine(counted, lambda token: b"a", prefix_contexts=0)
        ticket = engine.submit(
            Request(
                prompt(length),
                mode,
                SamplerSettings(canvas_length=8, max_steps=4, accept="quota", logit_bias=((49, -1e6),)),
                max_tokens=32,
                ignore_eos=True,
                draft_layout="separate",
                banned=(48,),
            )
        )
        while engine.has_work:
            engine.step()
        assert ticket.writer is not None
        assert len(ticket.writer.output.tokens) == 32
        costs.append((counted.rows - length, ticket.writer.nfe))
    rows, evaluations = np.array(costs).T
    if mode == "verified":  # how much of a draft is right depends on the text, and at worst nothing
        assert (evaluations <= 2 * 32).all()
        assert (rows <= 2 * 32 * (8 + 8)).all()
    else:
        assert len(set(rows)) == len(set(evaluations)) == 1
        assert evaluations[0] == {"ar": 31, "diffusion": 16}[mode]
