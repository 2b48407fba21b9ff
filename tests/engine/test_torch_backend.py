"""The torch backend against the network itself, without a cache, and against its own promises about rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.denoiser.layouts import Rows, allowed, canvas_start, clean_start
from redraft.denoiser.transformer import Visibility
from redraft.engine.agreement import smallest_exact_rows
from redraft.engine.backend import Pass
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.errors import RedraftError, RequestError
from tests.engine.models import MASK, NOTHING, VOCAB, backend, network

FAMILIES: dict[str, dict[str, Any]] = {
    "ours": {},
    "self_conditioning": {"self_conditioning": True},
    "shift": {"shift": True},
    "qwen2": {"attention_bias": True, "layout": "block_causal", "canvas_rows_marked": False},
    "qwen3": {"qk_norm": True, "layout": "block_causal", "num_key_value_heads": 4},
    "fast_dllm": {"layout": "block_causal", "shift": True, "attention_bias": True},
    "llada": {"layout": "full", "canvas_rows_marked": False},
    "dream": {"layout": "full", "shift": True},
    "one_group": {"num_key_value_heads": 1, "num_attention_heads": 3, "hidden_size": 24},
}


def random_tokens(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, length)


def uncached(
    on: TorchBackend,
    clean: np.ndarray,
    canvas: np.ndarray,
    locked: np.ndarray | None = None,
    expected: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the clean rows and of the canvas's slots, all rows in one call of the network, nothing
    cached."""
    config = on.config
    count, total = len(clean), len(clean) + len(canvas)
    position = np.arange(total)
    on_canvas = position >= count
    start = np.where(
        on_canvas,
        canvas_start(config.layout, np.full(total, count), config.canvas_length),
        clean_start(config.layout, position, config.canvas_length),
    )
    rows = Rows(*(torch.from_numpy(a) for a in (on_canvas, position * 0, position, start, position * 0)))
    visible = Visibility(dense=Visibility.additive(allowed(rows.queries(), rows.keys()))[None, None])
    flags = torch.zeros(1, total, dtype=torch.bool)
    if locked is not None:
        flags[0, count:] = torch.from_numpy(locked)
    soft = None
    if expected is not None:
        soft = torch.zeros(1, total, config.vocab_size)
        soft[0, count:] = torch.from_numpy(expected)
    with torch.no_grad():
        tokens = torch.from_numpy(np.concatenate((clean, canvas)))[None]
        hidden, _ = on.model(
            tokens, torch.from_numpy(position)[None], visible, rows.canvas[None], flags, soft
        )
        logits = on.model.logits(hidden)[0].numpy()
    slots = logits[count:]
    if config.shift:
        slots = np.concatenate((logits[count - 1 : count] if count else logits[:1], logits[count:-1]))
    return logits[:count], slots


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pieces", [(16,), (8, 8), (8, 0, 8)])
def test_cached_equals_uncached(family: str, pieces: tuple[int, ...]) -> None:
    """A text read in pieces, then a canvas, in the same or in a pass of its own, as if all were one call."""
    on = backend(**FAMILIES[family])
    full = on.config.layout == "full"
    clean, canvas = (NOTHING, random_tokens(24)) if full else (random_tokens(16), random_tokens(8, 1))
    locked = np.random.default_rng(2).random(len(canvas)) < 0.3
    expected = None
    if on.config.self_conditioning:
        expected = np.random.default_rng(3).dirichlet(np.ones(VOCAB), len(canvas)).astype(np.float32)
    want_clean, want = uncached(on, clean, canvas, locked, expected)
    context = on.new_context(4)
    at = 0
    got_clean: list[np.ndarray] = []
    for number, size in enumerate(pieces):
        piece, at = clean[at : at + size], at + size
        last = number == len(pieces) - 1
        if not len(piece) and not last:
            continue
        call = (
            Pass(context, piece, "all", canvas, locked, None, expected)
            if last
            else Pass(context, piece, "all")
        )
        result = on.forward([call])[0]
        got_clean.append(result.encode)
    assert result.canvas is not None
    np.testing.assert_allclose(np.concatenate(got_clean), want_clean, atol=2e-4)
    np.testing.assert_allclose(result.canvas, want, atol=2e-4)
    # Later steps on the same canvas, whose first is now the context's neighbour.
    rows = np.array([3, 0, 5])
    again = on.forward([Pass(context, NOTHING, "none", canvas, locked, rows, expected)])[0].canvas
    assert again is not None
    np.testing.assert_array_equal(again, result.canvas[rows])


@pytest.mark.parametrize("layout", ["causal_context", "block_causal"])
def test_training_pass_equals_block_by_block(layout: str) -> None:
    """[x_0 ‖ x_t] with every block's canvas in one call gives what a cache and one canvas at a time give."""
    on = backend(layout=layout)
    block = on.config.canvas_length
    clean, noisy = random_tokens(3 * block), random_tokens(3 * block, 1)
    position = np.tile(np.arange(3 * block), 2)
    on_canvas = np.arange(6 * block) >= 3 * block
    number = position // block
    start = np.where(
        on_canvas, canvas_start(layout, number * block, block), clean_start(layout, position, block)
    )
    rows = Rows(*(torch.from_numpy(a) for a in (on_canvas, position * 0, position, start, number)))
    visible = Visibility(dense=Visibility.additive(allowed(rows.queries(), rows.keys()))[None, None])
    with torch.no_grad():
        tokens = torch.from_numpy(np.concatenate((clean, noisy)))[None]
        hidden, _ = on.model(tokens, torch.from_numpy(position)[None], visible, rows.canvas[None])
        want = on.model.logits(hidden)[0, 3 * block :].numpy()
    context = on.new_context(3 * block)
    for index in range(3):
        here = slice(index * block, (index + 1) * block)
        before = NOTHING if not index else clean[(index - 1) * block : index * block]
        got = on.forward([Pass(context, before, canvas=noisy[here])])[0].canvas
        assert got is not None
        np.testing.assert_allclose(got, want[here], atol=2e-4)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Any:
    """Kernels split rows among threads, so the promises are tested with more than one."""
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


@pytest.mark.parametrize("family", ["one_group", "fast_dllm"])
def test_rows_have_the_same_bits_however_they_are_cut_and_whoever_is_near(family: str, threads: int) -> None:
    on = backend(**FAMILIES[family])
    unit = on.config.canvas_length if on.config.layout == "block_causal" else 1
    rng = np.random.default_rng(threads)
    # Two threads take turns on a busy machine, so they get less to do.
    length, rounds = (96, 3) if threads == 1 else (32, 1)
    text = random_tokens(length)
    canvases = {at: random_tokens(int(rng.integers(1, 9)), at) for at in range(0, length + 1, unit)}
    whole = on.new_context(8)
    want = on.forward([Pass(whole, text, "all")])[0].encode
    for _ in range(rounds):
        context, at = on.new_context(8), 0
        while at < len(text):
            size = min(unit * int(rng.integers(1, 1 + 24 // unit)), len(text) - at)
            near = [Pass(on.new_context(4), random_tokens(unit * int(rng.integers(1, 4)), at))]
            near += [Pass(on.new_context(4), NOTHING, canvas=random_tokens(int(rng.integers(1, 9))))]
            mine = Pass(context, text[at : at + size], "all", canvases[at + size])
            calls = near[: int(rng.integers(0, 3))]
            calls.insert(int(rng.integers(0, len(calls) + 1)), mine)
            result = on.forward(calls)[calls.index(mine)]
            np.testing.assert_array_equal(result.encode, want[at : at + size])
            at += size
            alone = on.forward([Pass(context, NOTHING, canvas=canvases[at])])[0].canvas
            np.testing.assert_array_equal(result.canvas, alone)


def test_one_row_is_as_good_as_many() -> None:
    """What verified decoding rests on, measured; without padding the answer depends on the machine's kernels."""
    assert smallest_exact_rows(backend()) == 1
    assert smallest_exact_rows(backend(**FAMILIES["one_group"])) == 1
    assert 1 <= smallest_exact_rows(TorchBackend(network(), row_multiple=1)) <= 8


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 2**16))
def test_truncating_and_going_on_leaves_no_trace(cuts: list[int], seed: int) -> None:
    on = backend(shift=True)
    context, rng = on.new_context(1), np.random.default_rng(seed)
    text: list[int] = []
    for cut in cuts:
        more = rng.integers(0, VOCAB, int(rng.integers(1, 30)))
        on.forward([Pass(context, more, canvas=rng.integers(0, VOCAB, 5))])
        text = [*text, *more.tolist()][: max(0, len(text) + len(more) - cut)]
        context.truncate(len(text))
    assert context.length == len(text)
    canvas = np.full(6, MASK)
    fresh = on.new_context(1)
    if text:
        on.forward([Pass(fresh, np.array(text))])
    got = on.forward([Pass(context, NOTHING, canvas=canvas)])[0].canvas
    np.testing.assert_array_equal(got, on.forward([Pass(fresh, NOTHING, canvas=canvas)])[0].canvas)


def test_a_context_grows_by_doubling_up_to_the_positions() -> None:
    on = backend(max_position_embeddings=700)
    context = on.new_context(1)
    sizes = []
    for _ in range(7):
        on.forward([Pass(context, random_tokens(99))])
        sizes.append(context.nbytes)
    assert [size // sizes[0] for size in sizes] == [1, 2, 4, 4, 4, 6, 6]
    with pytest.raises(RequestError, match=r"^702 tokens don't fit into the context of 700"):
        on.forward([Pass(context, random_tokens(4), canvas=random_tokens(5))])
    assert context.length == 693


def test_passes_that_encode_nothing_may_share_a_context() -> None:
    on = backend()
    context = on.new_context(40)
    on.forward([Pass(context, random_tokens(20))])
    canvases = [random_tokens(n, n) for n in (3, 8, 5)]
    together = on.forward([Pass(context, NOTHING, canvas=c) for c in canvases])
    for canvas, result in zip(canvases, together, strict=True):
        np.testing.assert_array_equal(
            result.canvas, on.forward([Pass(context, NOTHING, canvas=canvas)])[0].canvas
        )


@pytest.mark.parametrize("family", ["ours", "shift"])
def test_a_branch_is_a_canvas_behind_the_tokens_it_has_seen(family: str) -> None:
    on = backend(**FAMILIES[family])
    text, new, slots = random_tokens(9), random_tokens(4, 1), random_tokens(15, 2)
    context = on.new_context(40)
    on.forward([Pass(context, text)])
    starts = (1, 2, 4)
    wanted = np.array([1, 4, 5, 8, 10, 14])  # a first slot among them: with a shift its row is a clean one
    found = on.forward([Pass(context, new, "all", canvas=slots, canvas_rows=wanted, branches=starts)])[0]
    assert found.canvas is not None
    for number, start in enumerate(starts):
        alone = on.new_context(40)
        on.forward([Pass(alone, text)])
        rows = wanted[wanted // 5 == number] - 5 * number
        one = Pass(alone, new[:start], "all", canvas=slots[5 * number : 5 * number + 5], canvas_rows=rows)
        due = on.forward([one])[0]
        assert due.canvas is not None
        np.testing.assert_allclose(found.canvas[wanted // 5 == number], due.canvas, atol=2e-5)
        np.testing.assert_allclose(found.encode[:start], due.encode, atol=2e-5)
    on.forward([Pass(context, NOTHING, canvas=slots[:5])])  # what the branches wrote is scratch
    assert context.length == 13


def test_wrong_passes_are_refused() -> None:
    on = backend()
    assert on.forward([]) == []
    with pytest.raises(RedraftError, match="must encode or denoise"):
        on.forward([Pass(on.new_context(1), NOTHING)])


def test_locked_and_canvas_rows_are_told_apart_from_clean_ones() -> None:
    on = TorchBackend(network())
    canvas, context = random_tokens(8), on.new_context(8)
    free = on.forward([Pass(context, NOTHING, canvas=canvas)])[0].canvas
    held = on.forward([Pass(context, NOTHING, canvas=canvas, locked=np.arange(8) < 2)])[0].canvas
    assert free is not None
    assert held is not None
    assert np.abs(free - held).max() > 1e-3
