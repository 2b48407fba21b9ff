"""Fixed shapes on torch, run as they stand and as recordings, against the backend that has none of them."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from redraft.denoiser.transformer import Denoiser
from redraft.engine import Engine, Request
from redraft.engine.backend import Backend, Pass
from redraft.engine.backends import torch_static
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.engine.backends.torch_backend import visibility as seen_by
from redraft.engine.backends.torch_graphs import Recording
from redraft.engine.backends.torch_pool import SCRATCH, Pool, StaticContext
from redraft.engine.backends.torch_shapes import size_up, visibility
from redraft.engine.backends.torch_static import NARROW, StaticTorchBackend
from redraft.errors import RedraftError, RequestError
from redraft.sampling import SamplerSettings
from tests.engine.models import NOTHING, VOCAB, finish, network, prompt, token_bytes, told
from tests.engine.test_adapted import LATE, adapted
from tests.engine.test_torch_backend import FAMILIES, random_tokens

aten = torch.ops.aten
MODES = ("diffusion", "ar", "verified")


class _Taping(TorchDispatchMode):
    """Notes what is computed, and refuses what a CUDA graph can't hold: values read back, shapes that hang on them."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or func in (aten._local_scalar_dense.default, aten.nonzero.default):
            raise RuntimeError(f"{func} is not permitted when stream is capturing\nand more")
        out = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, out))
        return out


class Tape:
    """A recorder that plays what a CUDA graph would: the same operations on the same memory, without Python."""

    def __init__(self) -> None:
        self.replays = 0

    def record(self, run: Callable[[], Tensor]) -> Recording:
        with _Taping() as taping:
            output = run()
        output.fill_(float("nan"))  # recording computes nothing that counts

        def replay() -> None:
            self.replays += 1
            for func, args, kwargs, held in taping.tape:
                made = func(*args, **kwargs)
                for old, new in zip(_tensors(held), _tensors(made), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)

        return Recording(replay, output)

    def seconds(self, recording: Recording) -> float:
        return 0.0


def _tensors(held: Any) -> list[Tensor]:
    found = held if isinstance(held, list | tuple) else [held]
    return [t for t in found if isinstance(t, Tensor)]


def walk(on: Backend, seed: int, layout: str, conditioned: bool, steps: int = 10) -> list[np.ndarray | None]:
    """Logits of calls by contexts that come and go: pieces of text, canvases, locked slots, branches, a wide prompt."""
    rng = np.random.default_rng(seed)
    unit = 8 if layout == "block_causal" else 1
    contexts = [on.new_context(4) for _ in range(5)]
    out: list[np.ndarray | None] = []
    for step in range(steps):
        if step % 4 == 2:
            contexts[int(rng.integers(5))] = on.new_context(40)
        if step % 4 == 3:
            contexts[int(rng.integers(5))].truncate(unit)
        passes = []
        for i in rng.permutation(5)[: 1 + int(rng.integers(5))].tolist():
            wide = 5 if rng.random() < 0.15 else 1
            count = 0 if layout == "full" else unit * int(rng.integers(0, 1 + 8 // unit)) * wide
            encode, slots = rng.integers(0, VOCAB, count), int(rng.integers(0 if count else 1, 9))
            canvas = rng.integers(0, VOCAB, slots) if slots else None
            locked = rows = expected = branches = None
            ahead = on.config.shift and slots > 0 and bool(rng.random() < 0.3)
            if slots and layout == "causal_context" and count and rng.random() < 0.3:
                branches = tuple(sorted({1, count}))
                canvas = rng.integers(0, VOCAB, slots * len(branches))
            elif slots:
                locked, known = rng.random(slots) < 0.3, slots + ahead
                rows = rng.permutation(known)[: 1 + int(rng.integers(known))]
                if conditioned and rng.random() < 0.7:
                    expected = rng.dirichlet(np.ones(VOCAB), slots).astype(np.float32)
            wanted = ("none", "last", "all")[int(rng.integers(3))]
            if contexts[i].length + count + 40 > on.config.max_position_embeddings:
                contexts[i].truncate(0)
            passes.append(Pass(contexts[i], encode, wanted, canvas, locked, rows, expected, branches, ahead))  # type: ignore[arg-type]
        for result in on.forward(passes):
            out += [result.encode, result.canvas]
    return out


def static(model: Denoiser, taped: bool = False) -> StaticTorchBackend:
    return StaticTorchBackend(model, Tape() if taped else None)


def same(one: list[np.ndarray | None], other: list[np.ndarray | None]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, atol=3e-4)


@pytest.mark.parametrize("taped", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_plain_backend(family: str, taped: bool) -> None:
    model = network(**FAMILIES[family])
    config = model.config
    for seed in range(2):
        walks = [
            walk(on, seed, config.layout, config.self_conditioning)
            for on in (static(model, taped), TorchBackend(model))
        ]
        same(*walks)


@pytest.mark.parametrize(
    ("shift", "changes"),
    [(True, {"qk_norm": True}), (False, {"attention_bias": True}), (True, {"reach": LATE})],
)
def test_adapted_models_agree_and_their_clean_rows_are_the_bases(
    shift: bool, changes: dict[str, Any]
) -> None:
    model = adapted(shift=shift, **changes)
    taped = static(model, taped=True)
    same(walk(taped, 5, "causal_context", False), walk(TorchBackend(model), 5, "causal_context", False))
    assert taped.recorded
    clean, text = [], np.array(prompt(9))
    for other in (adapted(0.7, shift=shift, **changes), model):
        backend = static(other)
        call = Pass(backend.new_context(32), text, "all", canvas=np.arange(4))
        clean.append(backend.forward([call])[0].encode)
    np.testing.assert_array_equal(*clean)


def requests() -> list[Request]:
    """Every mode, greedy and sampled, of lengths that make them come and go; some go on from one another's prompts."""
    out = []
    for seed in range(15):
        sampler = SamplerSettings(
            canvas_length=2 + seed % 7,
            max_steps=4,
            threshold=0.3 + 0.05 * (seed % 7),
            temperature=(0.0, 0.0, 0.8)[seed // 3 % 3],
        )
        text = prompt(40)[: 5 + 3 * seed] if seed % 2 else prompt(1 + 9 * seed % 64, seed)
        layout = ("auto", "branches", "strided")[seed % 3]
        out.append(
            Request(text, MODES[seed % 3], sampler, max_tokens=4 + seed, seed=seed, draft_layout=layout)
        )
    return out


@pytest.mark.parametrize(
    "model",
    [network(), network(shift=True), adapted(), adapted(reach=LATE)],
    ids=["ours", "shift", "adapted", "late"],
)
def test_answers_are_those_of_the_plain_backend_in_any_company(model: Denoiser) -> None:
    answers = []
    for on in (TorchBackend(model), static(model, taped=True)):
        engine = Engine(on, token_bytes, max_batch=6, prefix_contexts=2)
        tickets = [engine.submit(request) for request in requests()]
        finish(engine, tickets)
        answers.append([told(ticket) for ticket in tickets])
    assert answers[0] == answers[1]


def test_each_shape_is_recorded_once_and_what_moves_is_recorded_anew() -> None:
    recorder = Tape()
    on = StaticTorchBackend(network(), recorder)
    assert on.name == "torch-graphs"
    context = on.new_context(100)
    on.forward([Pass(context, random_tokens(NARROW + 1))])
    assert not on.recorded  # a prompt
    for token in range(6):
        on.forward([Pass(context, random_tokens(1, token), "last")])
    (bucket,) = on.recorded
    assert (bucket.rows, bucket.lanes, bucket.columns, bucket.context, bucket.drafts) == (1, 1, 1, 128, False)
    assert recorder.replays == 6
    others = [on.new_context(20) for _ in range(3)]  # the lanes move
    on.forward([Pass(c, random_tokens(1), "last") for c in others])
    on.forward([Pass(context, random_tokens(1), "last")])
    assert len(on.recorded) == 2
    assert on.unrecorded().name == "torch-static"


def test_when_recording_fails_one_line_says_so_and_results_are_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(Tape):
        def record(self, run: Callable[[], Tensor]) -> Recording:
            if self.replays:
                raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")
            return super().record(run)

    model = network()
    on = StaticTorchBackend(model, Failing())
    with caplog.at_level(logging.WARNING, "redraft"):
        same(walk(on, 0, "causal_context", False), walk(TorchBackend(model), 0, "causal_context", False))
    (line,) = caplog.messages
    assert line.startswith("no graph could be recorded (CUDA error: out of memory): ")
    assert not on.recorded
    assert on.name == "torch-static"


def test_the_faster_way_to_attend_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(Tape):
        def seconds(self, recording: Recording) -> float:
            times.append(recording)
            return -len(times)

    times: list[Recording] = []
    on = StaticTorchBackend(network(), Clock())
    on.forward([Pass(on.new_context(9), random_tokens(2), "last")])
    assert len(times) == len(torch_static.ATTENTIONS)
    assert [plan.recording for plan in on._plans.values()] == [times[-1]]


def test_canvases_may_share_a_context_and_wrong_passes_are_refused() -> None:
    on, plain = static(network()), TorchBackend(network())
    results = []
    for backend in (on, plain):
        context = backend.new_context(40)
        backend.forward([Pass(context, random_tokens(20))])
        results.append(
            [
                r.canvas
                for r in backend.forward(
                    [Pass(context, NOTHING, canvas=random_tokens(n, n)) for n in (3, 8, 5)]
                )
            ]
        )
    same(*results)
    context = on.new_context(4)
    assert on.forward([]) == []
    with pytest.raises(RedraftError, match="must encode or denoise"):
        on.forward([Pass(context, NOTHING)])
    with pytest.raises(RedraftError, match="can't be extended"):
        on.forward([Pass(context, random_tokens(2)), Pass(context, NOTHING, canvas=random_tokens(3))])
    with pytest.raises(RequestError, match=r"^193 tokens don't fit into the context of 192"):
        on.forward([Pass(context, random_tokens(193))])
    with pytest.raises(RedraftError, match="another backend"):
        on.forward([Pass(plain.new_context(4), random_tokens(2))])
    assert context.length == 0


@settings(max_examples=60)
@given(st.integers(0, 9), st.integers(0, 6), st.integers(0, 9), st.booleans())
def test_three_numbers_say_what_a_row_sees(length: int, encoded: int, slots: int, branched: bool) -> None:
    class Short:
        pass

    context = Short()
    context.length = length  # type: ignore[attr-defined]
    for layout in ("causal_context", "block_causal", "full"):
        branches = (1, encoded) if branched and encoded > 1 and layout == "causal_context" else None
        canvas = np.zeros(slots * len(branches or (0,)), np.int64) if slots else None
        if not encoded + slots:
            continue
        config = network(layout=layout, canvas_length=4).config
        p = Pass(context, np.zeros(encoded, np.int64), canvas=canvas, branches=branches if slots else None)  # type: ignore[arg-type]
        start, low, high = (numbers[:, None] for numbers in visibility(config, p))
        key = np.arange(40)
        np.testing.assert_array_equal((key < start) | ((key >= low) & (key < high)), seen_by(config, p, 40))


@given(st.integers(1, 5000))
def test_sizes_hold_what_they_must_and_waste_at_most_half(count: int) -> None:
    size = size_up(count)
    assert count <= size < 2 * count
    assert size_up(size) == size


class Company:
    """Contexts whose lanes hold a number of their own, so that a mix-up shows."""

    def __init__(self) -> None:
        self.pool = Pool(network(shift=True).config, torch.float32, torch.device("cpu"))
        self.held: dict[int, StaticContext] = {}
        self.next = 1

    @torch.inference_mode()
    def come(self) -> None:
        context = StaticContext(self.pool, 100)
        at = context.seat.lane + SCRATCH
        for tensor in (self.pool.keys[:, at], self.pool.values[:, at], self.pool.hidden[at]):
            tensor.fill_(self.next)
        self.held[self.next] = context
        self.next += 1

    def check(self) -> None:
        lanes = [context.seat.lane for context in self.held.values()]
        assert len(set(lanes)) == len(lanes)
        assert all(0 <= lane < self.pool.lanes for lane in lanes)
        for number, context in self.held.items():
            at = context.seat.lane + SCRATCH
            whole = self.pool.keys[:, at, :128], self.pool.values[:, at, :128], self.pool.hidden[at, :128]
            assert all((tensor == number).all() for tensor in whole)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from(["come", "go", "gather", "grow"]), st.integers(0, 99)), max_size=25)
)
def test_lanes_keep_what_they_hold_whoever_trades_places(deeds: list[tuple[str, int]]) -> None:
    company = Company()
    for deed, number in deeds:
        held = sorted(company.held)
        if deed == "come":
            company.come()
        elif deed == "go" and held:
            del company.held[held[number % len(held)]]
            gc.collect(0)
        elif deed == "gather" and held:
            chosen = [company.held[n].seat for n in held[number % len(held) :]]
            company.pool.bring_forward(chosen, len(chosen))
            assert sorted(seat.lane for seat in chosen) == list(range(len(chosen)))
        elif deed == "grow":
            company.pool.grow(company.pool.lanes, 128 + number)
        company.check()
    most = max(1, company.next - 1)
    assert company.pool.lanes <= 2 * most


def test_lanes_of_those_who_have_gone_are_taken_again() -> None:
    on = static(network())
    for _ in range(20):
        contexts = [on.new_context(8) for _ in range(3)]
        on.forward([Pass(c, random_tokens(3), "last") for c in contexts])
        del contexts
        gc.collect()
    assert on._pool.lanes == 4
