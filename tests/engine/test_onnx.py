"""The ONNX backend against the torch denoiser, and each of its rows against itself in other company."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.denoiser import checkpoint
from redraft.engine.backend import Pass
from redraft.engine.backends import onnx_backend
from redraft.engine.backends.onnx_backend import OnnxBackend
from redraft.errors import RedraftError, RequestError
from tests.engine.onnx_models import OPTIONS, denoiser, onnx, reference, tokens

NONE = np.empty(0, np.int64)


@pytest.fixture(scope="module", params=["fp32", "blocks", "int8"])
def backend(request: pytest.FixtureRequest) -> OnnxBackend:
    return onnx(denoiser(seed=3), request.param)


def near_ties_only(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """The argmax of each row agrees, or a's lead over b's choice is within twice the tolerance."""
    at = np.arange(len(a))
    return bool((a[at, a.argmax(-1)] - a[at, b.argmax(-1)] <= 2 * tolerance).all())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_fp32_is_the_torch_denoiser(options: dict) -> None:
    model = denoiser(**options)
    prompt, canvas = tokens(16), tokens(8, seed=1)
    locked = np.arange(8) % 3 == 0
    expected = np.random.default_rng(2).dirichlet(np.ones(50), 8).astype(np.float32)
    expected = expected if model.config.self_conditioning else None
    backend = onnx(model)
    context = backend.new_context(32)
    result = backend.forward([Pass(context, prompt, "all", canvas, locked, expected=expected)])[0]
    truth = reference(model, prompt, canvas, locked, expected)
    got = np.concatenate((result.encode, result.canvas))
    assert got.dtype == np.float32
    assert np.abs(got - truth).max() < 1e-4
    assert near_ties_only(truth, got, 1e-4)
    assert truth.std() > 0.3  # the reference is no constant that anything would match
    assert context.length == 16


def test_first_step_of_self_conditioning_expects_nothing() -> None:
    model = denoiser(self_conditioning=True)
    backend = onnx(model)
    prompt, canvas = tokens(5), tokens(8, seed=1)
    context = backend.new_context(32)
    got = backend.forward([Pass(context, prompt, canvas=canvas)])[0].canvas
    assert np.abs(got - reference(model, prompt, canvas)[5:]).max() < 1e-4


def test_roles_reach_the_network() -> None:
    """Canvas, locked and clean rows of the same tokens differ, so a flag that got lost would show."""
    backend = onnx(denoiser())
    context = backend.new_context(16)
    row = tokens(4)
    clean = backend.forward([Pass(context, row, "all")])[0].encode
    context.truncate(0)
    free = backend.forward([Pass(context, NONE, canvas=row)])[0].canvas
    locked = backend.forward([Pass(context, NONE, canvas=row, locked=np.array([False, True, False, False]))])[
        0
    ].canvas
    assert np.abs(clean - free).max() > 0.1
    assert np.abs(locked - free).max() > 0.1


@pytest.mark.parametrize(
    "options", [OPTIONS["plain"], OPTIONS["qwen2"], OPTIONS["qwen3"]], ids=["plain", "qwen2", "qwen3"]
)
def test_eight_bits_are_close_to_fp32_and_blocks_are_closer(options: dict) -> None:
    model = denoiser(**options, hidden_size=128, intermediate_size=192)
    prompt, canvas = tokens(24), tokens(8, seed=1)
    results = []
    for precision in ("fp32", "blocks", "int8"):
        backend = onnx(model, precision)
        result = backend.forward([Pass(backend.new_context(32), prompt, "all", canvas)])[0]
        results.append(np.concatenate((result.encode, result.canvas)))
    blocks, int8 = (np.linalg.norm(results[0] - r) / np.linalg.norm(results[0]) for r in results[1:])
    assert 0 < blocks < int8 < 0.05


def test_wanted_rows_only(backend: OnnxBackend) -> None:
    prompt, canvas = tokens(6), tokens(8, seed=1)
    context = backend.new_context(32)
    whole = backend.forward([Pass(context, prompt, "all", canvas)])[0]
    rows = np.array([5, 0, 7])
    context.truncate(0)
    part = backend.forward([Pass(context, prompt, "last", canvas, canvas_rows=rows)])[0]
    assert np.array_equal(part.encode, whole.encode[-1:])
    assert np.array_equal(part.canvas, whole.canvas[rows])
    context.truncate(0)
    nothing = backend.forward([Pass(context, prompt)])[0]
    assert nothing.encode.shape == (0, 50)
    assert nothing.canvas is None
    no_slot = backend.forward([Pass(context, NONE, canvas=canvas, canvas_rows=NONE)])[0]
    assert no_slot.canvas.shape == (0, 50)
    assert backend.forward([]) == []


def test_canvas_leaves_no_trace(backend: OnnxBackend) -> None:
    """Denoising writes beyond the context; what is encoded next is as if it hadn't."""
    prompt, more = tokens(9), tokens(5, seed=4)
    context, other = backend.new_context(64), backend.new_context(64)
    for c in (context, other):
        backend.forward([Pass(c, prompt)])
    for seed in range(3):
        backend.forward([Pass(context, NONE, canvas=tokens(12, seed))])
    after, alone = (backend.forward([Pass(c, more, "all")])[0].encode for c in (context, other))
    assert np.array_equal(after, alone)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_row_never_depends_on_its_neighbours(backend: OnnxBackend, data: st.DataObject) -> None:
    """Prompts cut anywhere, requests of any sizes in one call or alone, in any order: the same bits."""
    draw = data.draw
    count = draw(st.integers(1, 5))
    texts = [tokens(draw(st.integers(1, 40)), seed=i) for i in range(count)]
    canvases = [
        tokens(draw(st.integers(1, 12)), seed=100 + i) if draw(st.booleans()) else None for i in range(count)
    ]
    alone = []
    for text, canvas in zip(texts, canvases, strict=True):
        context = backend.new_context(8)
        alone.append(backend.forward([Pass(context, text, "all", canvas)])[0])
    contexts = [backend.new_context(8) for _ in texts]
    parts: list[list[np.ndarray]] = [[] for _ in texts]
    done = [0] * count
    while any(d < len(t) for d, t in zip(done, texts, strict=True)):
        who = [i for i in draw(st.permutations(range(count))) if done[i] < len(texts[i])]
        who = who[: draw(st.integers(1, len(who)))]
        step = {i: draw(st.integers(1, len(texts[i]) - done[i])) for i in who}
        passes = [Pass(contexts[i], texts[i][done[i] :][: step[i]], "all") for i in who]
        for i, result in zip(who, backend.forward(passes), strict=True):
            parts[i].append(result.encode)
            done[i] += step[i]
    who = [i for i in range(count) if canvases[i] is not None]
    together = backend.forward([Pass(contexts[i], NONE, canvas=canvases[i]) for i in who])
    for i in range(count):
        assert np.array_equal(np.concatenate(parts[i]), alone[i].encode)
    for i, result in zip(who, together, strict=True):
        assert np.array_equal(result.canvas, alone[i].canvas)


def test_a_step_is_exact_at_the_row_count_it_claims(backend: OnnxBackend) -> None:
    """The claim of `exact_rows`, on other tokens and lengths than it was measured with."""
    assert backend.exact_rows == 1
    for prompt in (3, 16, 47):
        context = backend.new_context(64)
        text = tokens(prompt + 8, seed=prompt)
        many = backend.forward([Pass(context, text, "all")])[0].encode[prompt:]
        context.truncate(prompt)
        single = [
            backend.forward([Pass(context, t, "last")])[0].encode[0] for t in np.split(text[prompt:], 8)
        ]
        assert np.array_equal(many, np.stack(single))


@pytest.mark.parametrize("precision", ["fp32", "blocks", "int8"])
def test_rows_are_exact_at_real_widths(precision: str) -> None:
    """Kernels choose their way by size, so what holds 32 wide is checked at redraft-tiny's width and cache lengths."""
    sizes = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 768, "head_dim": 64}
    backend = onnx(denoiser(**sizes), precision, threads=2)
    text = np.random.default_rng(0).integers(0, 512, 250)
    context = backend.new_context(256)
    whole = backend.forward([Pass(context, text, "all")])[0].encode
    for start, count in ((249, 1), (200, 1), (127, 2), (64, 5), (30, 17), (9, 130)):
        context.truncate(start)
        part = backend.forward([Pass(context, text[start : start + count], "all")])[0].encode
        assert np.array_equal(part, whole[start : start + count])


def test_threads_change_no_bit() -> None:
    model = denoiser(hidden_size=64, intermediate_size=512)
    text, canvas = tokens(40), tokens(16, seed=1)
    results = []
    for threads in (1, 2):
        backend = onnx(model, "int8", threads)
        results.append(backend.forward([Pass(backend.new_context(64), text, "all", canvas)])[0])
    assert np.array_equal(results[0].encode, results[1].encode)
    assert np.array_equal(results[0].canvas, results[1].canvas)


@pytest.mark.parametrize("layout", ["causal_context", "block_causal"])
def test_long_prompts_in_pieces(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = denoiser(layout=layout)
    backend = onnx(model)
    text, canvas = tokens(90), tokens(8, seed=1)
    whole = backend.forward([Pass(backend.new_context(128), text, "all", canvas)])[0]
    monkeypatch.setattr(onnx_backend, "LONGEST_ENCODE", 20)
    for mode, rows in (("all", slice(0, 90)), ("last", slice(89, 90)), ("none", slice(0, 0))):
        context = backend.new_context(128)
        cut = backend.forward([Pass(context, text, mode, canvas)])[0]
        assert np.array_equal(cut.encode, whole.encode[rows])
        assert np.array_equal(cut.canvas, whole.canvas)
        assert context.length == 90


def test_positions_beyond_the_first_table() -> None:
    model = denoiser(max_position_embeddings=6000, num_hidden_layers=1, num_key_value_heads=4)
    backend = onnx(model)
    context = backend.new_context(1)
    text, far = tokens(12), tokens(12, seed=1)
    near = backend.forward([Pass(context, text, canvas=far)])[0].canvas
    angles: dict[str, np.ndarray] = {}
    backend._rotary.write(
        np.array([5999, 4096, 3]),
        lambda name, shape, kind: angles.setdefault(name, np.empty(shape, kind)),
        6000,
    )
    assert np.abs(angles["cos"][:, 0] - np.cos(np.array([5999.0, 4096.0, 3.0]))).max() < 1e-6
    assert np.abs(angles["sin"][:, 0] - np.sin(np.array([5999.0, 4096.0, 3.0]))).max() < 1e-6
    context.truncate(0)
    assert np.array_equal(backend.forward([Pass(context, text, canvas=far)])[0].canvas, near)


def test_no_row_past_the_models_positions() -> None:
    backend = onnx(denoiser(max_position_embeddings=10))
    context = backend.new_context(100)
    backend.forward([Pass(context, tokens(6))])
    with pytest.raises(RequestError, match="14 tokens don't fit into the context of 10"):
        backend.forward([Pass(context, NONE, canvas=tokens(8))])
    assert backend.forward([Pass(context, NONE, canvas=tokens(4))])[0].canvas.shape == (4, 50)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_shifted_canvas(precision: str) -> None:
    """Slot j is predicted by the row before it, slot 0 by the last clean row, whenever that was encoded."""
    model = denoiser(shift=True)
    backend = onnx(model, precision)
    prompt, canvas = tokens(6), tokens(8, seed=1)
    context = backend.new_context(32)
    together = backend.forward([Pass(context, prompt, "all", canvas)])[0]
    if precision == "fp32":
        rows = reference(model, prompt, canvas)
        assert np.abs(together.encode - rows[:6]).max() < 1e-4
        assert np.abs(together.canvas - rows[5:13]).max() < 1e-4
    later = backend.forward([Pass(context, NONE, canvas=canvas)])[0].canvas
    assert np.array_equal(later, together.canvas)
    some = backend.forward([Pass(context, NONE, canvas=canvas, canvas_rows=np.array([3, 0]))])[0].canvas
    assert np.array_equal(some, together.canvas[[3, 0]])
    context.truncate(5)
    with pytest.raises(RedraftError, match="last clean row"):
        backend.forward([Pass(context, NONE, canvas=canvas)])
    again = backend.forward([Pass(context, prompt[5:], canvas=canvas)])[0].canvas
    assert np.array_equal(again, together.canvas)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_shifted_canvas_may_ask_for_the_slot_behind_its_last_row(precision: str) -> None:
    """With the text's last row known or not, alone and as branches."""
    model = denoiser(shift=True)
    backend = onnx(model, precision)
    text, new, canvas = tokens(6), tokens(3, 1), tokens(4, 2)
    context = backend.new_context(40)
    backend.forward([Pass(context, text)])
    usual = backend.forward([Pass(context, NONE, canvas=canvas)])[0].canvas
    more = backend.forward([Pass(context, NONE, canvas=canvas, ahead=True)])[0].canvas
    assert more.shape == (5, 50)
    assert np.array_equal(more[:4], usual)
    if precision == "fp32":
        assert np.abs(more - reference(model, text, canvas)[5:10]).max() < 1e-4
    asked = np.array([1, 2, 3, 4, 6, 9])
    branched = Pass(context, new, "all", np.tile(canvas, 2), canvas_rows=asked, branches=(1, 3), ahead=True)
    found = backend.forward([branched])[0].canvas
    for number, start in enumerate((1, 3)):
        alone = backend.new_context(40)
        backend.forward([Pass(alone, text)])
        due = backend.forward([Pass(alone, new[:start], canvas=canvas, ahead=True)])[0].canvas
        own = asked // 5 == number
        np.testing.assert_allclose(found[own], due[asked[own] % 5], atol=2e-5)


def test_shifted_canvas_with_nothing_before_it() -> None:
    model = denoiser(shift=True)
    canvas = tokens(8)
    backend = onnx(model)
    got = backend.forward([Pass(backend.new_context(8), NONE, canvas=canvas)])[0].canvas
    assert np.abs(got - reference(model, NONE, canvas)[[0, 0, 1, 2, 3, 4, 5, 6]]).max() < 1e-4


def test_canvases_over_one_context(backend: OnnxBackend) -> None:
    context = backend.new_context(32)
    backend.forward([Pass(context, tokens(7))])
    passes = [Pass(context, NONE, canvas=tokens(8, seed)) for seed in range(3)]
    together = backend.forward(passes)
    for p, result in zip(passes, together, strict=True):
        assert np.array_equal(result.canvas, backend.forward([p])[0].canvas)
    with pytest.raises(RedraftError, match="same call"):
        backend.forward([Pass(context, tokens(2)), Pass(context, NONE, canvas=tokens(2))])


@pytest.mark.parametrize("shift", [False, True])
def test_a_branch_is_a_canvas_behind_the_tokens_it_has_seen(shift: bool) -> None:
    backend = onnx(denoiser(shift=shift))
    text, new, slots, starts = tokens(9), tokens(4, 1), tokens(15, 2), (1, 2, 4)
    wanted = np.array([0, 1, 4, 5, 8, 10, 14])
    contexts = [backend.new_context(40) for _ in range(2)]
    backend.forward([Pass(c, text) for c in contexts])
    branched = Pass(contexts[0], new, "all", canvas=slots, canvas_rows=wanted, branches=starts)
    beside = Pass(contexts[1], new[:2], "last", canvas=slots[:7])
    found, other = backend.forward([branched, beside])
    for number, start in enumerate(starts):
        alone = backend.new_context(40)
        backend.forward([Pass(alone, text)])
        rows = wanted[wanted // 5 == number] - 5 * number
        one = Pass(alone, new[:start], "all", canvas=slots[5 * number : 5 * number + 5], canvas_rows=rows)
        due = backend.forward([one])[0]
        np.testing.assert_allclose(found.canvas[wanted // 5 == number], due.canvas, atol=2e-5)
        np.testing.assert_array_equal(found.encode[:start], due.encode)
    alone = backend.new_context(40)
    backend.forward([Pass(alone, text)])
    due = backend.forward([Pass(alone, new[:2], "last", canvas=slots[:7])])[0]
    np.testing.assert_array_equal(other.canvas, due.canvas)


def test_what_a_pass_may_not_be(backend: OnnxBackend) -> None:
    with pytest.raises(RedraftError, match="must encode or denoise"):
        backend.forward([Pass(backend.new_context(8), NONE)])

    class Foreign:
        length = 0

        def truncate(self, length: int) -> None: ...

    with pytest.raises(RedraftError, match="another backend"):
        backend.forward([Pass(Foreign(), tokens(2))])


def test_a_failed_pass_leaves_the_context_as_it_was(backend: OnnxBackend) -> None:
    context = backend.new_context(16)
    text = tokens(4)
    before = backend.forward([Pass(context, text, "all")])[0].encode
    with pytest.raises(RedraftError):
        backend.forward([Pass(context, np.array([5000]))])
    assert context.length == 4
    context.truncate(0)
    assert np.array_equal(backend.forward([Pass(context, text, "all")])[0].encode, before)


def test_unknown_precision() -> None:
    with pytest.raises(RequestError, match="fp32, blocks, int8"):
        OnnxBackend(denoiser().config, {}, "fp8")  # type: ignore[arg-type]


def test_loads_a_folder_without_torch(tmp_path) -> None:
    """In a process of its own: bfloat16 on disk, logits equal to torch's, torch never imported."""
    import torch

    model = denoiser().to(torch.bfloat16)
    checkpoint.save(model, tmp_path, torch.bfloat16)
    script = (
        "import sys, numpy as np\n"
        "from redraft.engine.backend import Pass\n"
        "from redraft.engine.backends.onnx_backend import OnnxBackend\n"
        "b = OnnxBackend.load(sys.argv[1], 'fp32', threads=1)\n"
        "r = b.forward([Pass(b.new_context(16), np.arange(12), 'all')])[0]\n"
        "np.save(sys.argv[1] + '/out.npy', r.encode)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    truth = reference(model.float(), np.arange(12))
    assert np.abs(np.load(tmp_path / "out.npy") - truth).max() < 1e-4
