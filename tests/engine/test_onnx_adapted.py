"""Adapted bases on ONNX Runtime, one graph for both roles: clean rows the base's own, canvases as on torch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from redraft.denoiser import adapters
from redraft.denoiser.checkpoint import state_dict
from redraft.denoiser.transformer import Denoiser
from redraft.engine import Request
from redraft.engine.backend import Pass
from redraft.engine.backends.onnx_adapted import AdaptedOnnxBackend
from redraft.engine.backends.onnx_backend import BASE_ALONE_FROM, OnnxBackend
from redraft.engine.backends.onnx_graph import PRECISIONS, Precision
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.errors import RequestError
from redraft.sampling import SamplerSettings
from tests.engine.models import EOS, MASK, NOTHING, NULL, prompt, run
from tests.engine.test_adapted import FAMILIES, LATE, REACHES, SETTINGS, adapted, base, canvas

Q = "model.layers.0.self_attn.qkv.lora_B"


def numbers(model: Denoiser) -> dict[str, np.ndarray]:
    """An adapter's, named as AdaptedOnnxBackend.of wants them."""
    named = adapters.adapter_of(model).named_tensors()
    return {name.removeprefix(adapters.PREFIX): p.detach().numpy() for name, p in named.items()}


def weights(**changes: Any) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in state_dict(base(**changes)).items()}


def on_onnx(
    precision: Precision = "fp32", shift: bool = True, reach: dict[str, Any] | None = None, **changes: Any
) -> OnnxBackend:
    model = adapted(shift=shift, reach=reach, **changes)
    settings = adapters.adapter_of(model).settings
    return AdaptedOnnxBackend.of(
        model.config, weights(**changes), numbers(model), settings, precision, threads=1
    )


def plain(precision: Precision = "fp32", **changes: Any) -> OnnxBackend:
    return OnnxBackend(base(**changes).config, weights(**changes), precision, threads=1)


@pytest.mark.parametrize("changes", [*FAMILIES, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("shift", [True, False])
def test_canvases_are_as_on_torch(changes: dict[str, Any], shift: bool) -> None:
    same(on_onnx(shift=shift, **changes), TorchBackend(adapted(shift=shift, **changes)))


@pytest.mark.parametrize("changes", FAMILIES)
@pytest.mark.parametrize("reach", REACHES[1:])
def test_an_adapter_may_leave_layers_projections_and_norms_out(
    changes: dict[str, Any], reach: dict[str, Any]
) -> None:
    model = adapted(reach=reach, **changes)
    same(on_onnx(reach=reach, **changes), TorchBackend(model))
    everywhere = TorchBackend(adapted(**changes))
    contexts = [backend.new_context(64) for backend in (everywhere, TorchBackend(model))]
    whole, part = (
        b.forward([Pass(c, np.array(prompt(9)), canvas=canvas())])[0].canvas
        for b, c in zip((everywhere, TorchBackend(model)), contexts, strict=True)
    )
    assert whole is not None
    assert part is not None
    assert np.abs(whole - part).max() > 1e-2  # what is left out counts


def same(ours: OnnxBackend, theirs: TorchBackend) -> None:
    contexts = ours.new_context(64), theirs.new_context(64)
    text, locked = np.array(prompt(15)), np.arange(8) == 2
    open_ = np.array([MASK, NULL, MASK, MASK, NULL, MASK])
    # with the first rows, over a cache, and both; canvases that hold a token, and those that don't
    for part, slots in itertools.product((text, NOTHING, text[:3]), (canvas(), open_)):
        got, due = (
            backend.forward(
                [Pass(context, part, "all", canvas=slots, locked=locked[: len(slots)] & (slots == 7))]
            )[0]
            for backend, context in zip((ours, theirs), contexts, strict=True)
        )
        assert got.canvas is not None
        assert due.canvas is not None
        np.testing.assert_allclose(got.canvas, due.canvas, atol=2e-3)
        np.testing.assert_allclose(got.encode, due.encode, atol=2e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("changes", FAMILIES)
@pytest.mark.parametrize("reach", [{}, LATE])
def test_clean_rows_beside_a_canvas_are_the_base_bit_for_bit(
    precision: Precision, changes: dict[str, Any], reach: dict[str, Any]
) -> None:
    """Their logits, and the keys and values that they leave."""
    ours, theirs = on_onnx(precision, reach=reach, **changes), plain(precision, **changes)
    context, other = ours.new_context(64), theirs.new_context(64)
    text = np.array(prompt(23))
    for part in (text[:11], text[11:12], text[12:14], text[14:]):
        for slots in (1, 8):
            context.truncate(other.length)
            got = ours.forward([Pass(context, part, "all", canvas=canvas()[:slots])])[0].encode
            due = theirs.forward([Pass(other, part, "all")])[0].encode
            np.testing.assert_array_equal(got, due)
            for mine, base_own in zip(context.arena.arrays, other.arena.arrays, strict=True):
                np.testing.assert_array_equal(mine[0, : context.length], base_own[0, : other.length])
            other.truncate(other.length - len(part))
        theirs.forward([Pass(other, part)])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("reach", [{}, LATE])
def test_without_a_canvas_it_is_the_base_bit_for_bit(
    precision: Precision, exact: bool, reach: dict[str, Any]
) -> None:
    """Every number of the adapter is NaN: one that met a row would show. One call after another, until the base's own
    graph has taken over, and with a canvas in between."""
    model = adapted(float("nan"), reach=reach)
    settings = adapters.adapter_of(model).settings
    ours: OnnxBackend = AdaptedOnnxBackend.of(
        model.config, weights(), numbers(model), settings, precision, threads=1
    )
    theirs = plain(precision)
    if not exact:
        ours, theirs = ours.unpadded(), theirs.unpadded()
    context, other = ours.new_context(64), theirs.new_context(64)
    for number, token in enumerate(prompt(3 * BASE_ALONE_FROM)):
        if number == 2 * BASE_ALONE_FROM:
            ours.forward([Pass(ours.new_context(64), NOTHING, canvas=canvas())])
        got = ours.forward([Pass(context, np.array([token]), "last")])[0].encode
        np.testing.assert_array_equal(got, theirs.forward([Pass(other, np.array([token]), "last")])[0].encode)


def test_a_session_for_the_base_alone_is_made_when_steps_without_a_canvas_keep_coming() -> None:
    ours = on_onnx()
    context = ours.new_context(64)

    def made() -> set[bool]:
        return {kind.gated for kind in ours._sessions._made}

    for canvas_of in (None, canvas(), None, canvas()):
        ours.forward([Pass(context, np.array(prompt(2)), "last", canvas=canvas_of)])
        assert made() == {True}
    for _ in range(BASE_ALONE_FROM):
        ours.forward([Pass(context, np.array(prompt(1)), "last")])
    assert made() == {True, False}


@pytest.mark.parametrize("wanted", [[], [0], [0, 3], [7]])
def test_any_rows_of_a_canvas_may_be_wanted(wanted: list[int]) -> None:
    """With a shift slot 0 comes from a clean row, so that none of the wanted rows may be the canvas's."""
    backend = on_onnx()
    text = np.array(prompt(9))
    every, some = (
        backend.forward([Pass(backend.new_context(64), text, "last", canvas=canvas(), canvas_rows=rows)])[0]
        for rows in (None, np.array(wanted, np.int64))
    )
    assert every.canvas is not None
    assert some.canvas is not None
    np.testing.assert_array_equal(some.canvas, every.canvas[wanted])
    np.testing.assert_array_equal(some.encode, every.encode)


@pytest.mark.parametrize("rank", [4, 32])
@pytest.mark.parametrize(("precision", "error"), [("blocks", 0.1), ("int8", 0.1)])
def test_fewer_bits_change_a_canvas_little(precision: Precision, error: float, rank: int) -> None:
    text, reach = np.array(prompt(15)), {"rank": rank, "alpha": 2.0}
    made = on_onnx("fp32", reach=reach), on_onnx(precision, reach=reach)
    assert (f"{Q}.blocks" in made[1].weights) == (rank == 32 and precision == "blocks")
    exact, rough = (
        backend.forward([Pass(backend.new_context(64), text, canvas=canvas())])[0].canvas for backend in made
    )
    assert exact is not None
    assert rough is not None
    assert np.abs(rough - exact).mean() < error * exact.std()


def test_a_shifted_canvas_remembers_the_last_clean_row() -> None:
    """Whether its logits were asked for, or nobody's were."""
    backend = on_onnx()
    text = np.array(prompt(9))
    due = backend.forward([Pass(backend.new_context(64), text, "last", canvas=canvas())])[0]
    for logits in ("none", "last", "all"):
        context = backend.new_context(64)
        backend.forward([Pass(context, text, logits)])  # type: ignore[arg-type]
        got = backend.forward([Pass(context, NOTHING, canvas=canvas())])[0].canvas
        assert got is not None
        assert due.canvas is not None
        np.testing.assert_array_equal(got[0], due.encode[0])
        np.testing.assert_allclose(got, due.canvas, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda own: own.pop("slots.mask"), "lacks 'slots.mask'"),
        (lambda own: own.update({"slots.null": np.zeros(3, np.float32)}), "slots.null is \\[3\\]"),
        (
            lambda own: own.update({"model.layers.0.mlp.down_proj.lora_A.weight": np.zeros((3, 48))}),
            "doesn't fit its base",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(change: Any, said: str) -> None:
    model = adapted()
    own = numbers(model)
    change(own)
    with pytest.raises(RequestError, match=said):
        AdaptedOnnxBackend.of(model.config, weights(), own, SETTINGS, threads=1)


@pytest.mark.parametrize("draft_steps", [1, 2, 3])
@pytest.mark.parametrize("layout", ["strided", "branches", "separate"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("reach", [{}, LATE])
def test_verified_gives_the_tokens_of_ar(
    temperature: float, layout: str, draft_steps: int, reach: dict[str, Any]
) -> None:
    """The base's rows are shifted: what a first slot would have been is the last clean row's to say, and forgotten
    where a draft is rejected."""
    backend = on_onnx(reach=reach)
    sampler = SamplerSettings(canvas_length=6, max_steps=6, temperature=temperature)
    common = {"prompt": prompt(), "max_tokens": 20, "seed": 2, "sampler": sampler, "eos_ids": (EOS,)}
    common |= {"draft_steps": draft_steps, "draft_layout": layout}
    ((verified,), (ar,)) = (run([Request(decode=d, **common)], backend) for d in ("verified", "ar"))  # type: ignore[arg-type]
    assert verified.writer is not None
    assert ar.writer is not None
    assert verified.writer.output.tokens == ar.writer.output.tokens


@pytest.mark.parametrize("reach", [{}, LATE])
@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("holding", [0, 4, 1])
def test_lanes_in_groups_get_what_they_get_alone(reach: dict[str, Any], every: int, holding: int) -> None:
    """Many lanes of two lengths, which a graph parts into groups: all, some or a few of them with a canvas, some with
    nothing to encode. holding: every which canvas holds a token, 0 for none."""
    backend = on_onnx(reach=reach)

    def passes(numbers: range) -> list[Pass]:
        made = []
        for n in numbers:
            context = backend.new_context(96)
            backend.forward([Pass(context, np.array(prompt(60 if n % 5 == 0 else 6, seed=n)))])
            encode = np.array(prompt(1 + n % 3, seed=n)) if n % 4 else NOTHING
            drafted = canvas(6) if holding and n % holding == 0 else np.full(6, MASK)
            if n % every and len(encode):
                drafted = None
            made.append(Pass(context, encode, "all", canvas=drafted))
        return made

    together = backend.forward(passes(range(14)))
    assert any(kind.groups > 1 for kind in backend._sessions._made)
    for n, result in enumerate(together):
        alone = backend.forward(passes(range(n, n + 1)))[0]
        np.testing.assert_array_equal(alone.encode, result.encode)
        assert (alone.canvas is None) == (result.canvas is None)
        if alone.canvas is not None:
            np.testing.assert_array_equal(alone.canvas, result.canvas)


@pytest.mark.parametrize("reach", [{}, LATE])
def test_requests_that_share_a_call_get_what_they_get_alone(reach: dict[str, Any]) -> None:
    backend = on_onnx(reach=reach)

    def passes() -> list[Pass]:
        first = Pass(backend.new_context(64), np.array(prompt(9)), "last", canvas=canvas())
        second = Pass(backend.new_context(64), np.array(prompt(5, seed=1)), "all")
        third = Pass(backend.new_context(64), np.array(prompt(7, seed=2)), canvas=canvas(6))
        return [first, second, third]

    together = backend.forward(passes())
    for alone, result in zip([backend.forward([p])[0] for p in passes()], together, strict=True):
        np.testing.assert_array_equal(alone.encode, result.encode)
        if result.canvas is None:
            assert alone.canvas is None
        else:
            np.testing.assert_array_equal(alone.canvas, result.canvas)


def test_entering_late_takes_an_adapter() -> None:
    with pytest.raises(RequestError, match="the model has a canvas_entry: that takes an adapter"):
        plain(canvas_entry=1)
