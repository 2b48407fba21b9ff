"""Invariants of the network: every way to compute a row gives the same row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.denoiser.layouts import Rows, allowed
from redraft.denoiser.transformer import Denoiser, Visibility
from tests.denoiser.networks import VOCAB, clean_rows, mask_of, tiny, tokens, training_rows

LENGTH, SLOTS = 12, 4
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def dense(rows: Rows, batch: int = 1) -> Visibility:
    return Visibility(dense=Visibility.additive(mask_of(rows).expand(batch, -1, -1, -1)))


def take(rows: Rows, index: Tensor) -> Rows:
    return Rows(*(getattr(rows, n)[index] for n in ("canvas", "document", "position", "start", "block")))


def split(rows: Rows, clean: int, slots: int, batch: int) -> Visibility:
    """The same visibility without the products that are masked anyway."""
    whole = mask_of(rows)[0, 0]
    canvases = (whole.shape[0] - clean) // slots
    each = []
    for i in range(canvases):
        own = slice(clean + i * slots, clean + (i + 1) * slots)
        each.append(torch.cat((whole[own, :clean], whole[own, own]), -1))
    canvas = torch.stack(each)[:, None].repeat(batch, 1, 1, 1)
    return Visibility(
        clean=Visibility.additive(whole[None, None, :clean, :clean].expand(batch, -1, -1, -1)),
        canvas=Visibility.additive(canvas),
    )


def training_pass(
    model: Denoiser, layout: str, visible: Callable[[Rows], Visibility], batch: int = 2
) -> Tensor:
    rows = training_rows(layout, LENGTH, SLOTS)
    text, noisy = tokens(batch, LENGTH), tokens(batch, LENGTH, seed=2)
    ids = torch.cat((text, noisy), 1)
    locked = (rows.canvas & (rows.position % 3 == 0)).expand(batch, -1)
    expected = None
    if model.config.self_conditioning:
        generator = torch.Generator().manual_seed(4)
        expected = torch.rand(batch, 2 * LENGTH, VOCAB, generator=generator).softmax(-1)
    canvas = rows.canvas.expand(batch, -1)
    hidden, _ = model(ids, rows.position.expand(batch, -1), visible(rows), canvas, locked, expected)
    return model.logits(hidden)


@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_bias": True, "qk_norm": True, "self_conditioning": True}, {"num_key_value_heads": 4}],
)
@pytest.mark.parametrize("layout", ["causal_context", "block_causal"])
def test_split_attention_equals_dense_with_gradients(layout: str, changes: dict[str, Any]) -> None:
    results = []
    for visible in (lambda rows: dense(rows, 2), lambda rows: split(rows, LENGTH, SLOTS, 2)):
        model = tiny(layout=layout, **changes)
        logits = training_pass(model, layout, visible)
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).mean().backward()
        results.append((logits.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (logits, gradients), (other_logits, other_gradients) = results
    torch.testing.assert_close(other_logits, logits, **CLOSE)
    assert gradients.keys() == other_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(other_gradients[name], gradient, **CLOSE)


@pytest.mark.parametrize("layout", ["causal_context", "block_causal"])
def test_one_pass_equals_block_by_block_with_a_cache(layout: str) -> None:
    """[x_0 ‖ x_t] at once against what inference does: encode a block, denoise the next over the cache, forget it."""
    model = tiny(layout=layout, qk_norm=True)
    rows = training_rows(layout, LENGTH, SLOTS)
    whole = training_pass(model, layout, lambda r: dense(r, 1), batch=1)
    text, noisy = tokens(1, LENGTH), tokens(1, LENGTH, seed=2)
    past: list[tuple[Tensor, Tensor]] | None = None
    with torch.no_grad():
        for anchor in range(0, LENGTH, SLOTS):
            own = torch.arange(anchor, anchor + SLOTS)
            seen = torch.arange(anchor)
            for start, ids, flagged in ((LENGTH, noisy, True), (0, text, False)):
                present = own + start
                keys = take(rows, torch.cat((seen, present)))
                mask = allowed(take(rows, present).queries(), keys.keys())[None, None]
                canvas = torch.full((1, SLOTS), flagged)
                locked = canvas & (own % 3 == 0)
                visible = Visibility(dense=Visibility.additive(mask))
                hidden, new = model(ids[:, own], own[None], visible, canvas, locked, past=past)
                torch.testing.assert_close(model.logits(hidden), whole[:, present], **CLOSE)
            past = (
                new
                if past is None
                else [
                    (torch.cat((k, nk), 1), torch.cat((v, nv), 1))
                    for (k, v), (nk, nv) in zip(past, new, strict=True)
                ]
            )


@pytest.mark.parametrize("layout", ["causal_context", "block_causal", "full"])
def test_a_row_does_not_depend_on_its_batch_or_padding(layout: str) -> None:
    """Alone, beside other sequences, and with padding rows behind it, whatever they hold."""
    model = tiny(layout=layout)
    rows = clean_rows(layout, LENGTH, SLOTS)
    ids = tokens(3, LENGTH)
    with torch.no_grad():
        together, _ = model(ids, rows.position.expand(3, -1), dense(rows, 3))
        for i in range(3):
            alone, _ = model(ids[i : i + 1], rows.position[None], dense(rows))
            torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)
        pad = torch.arange(LENGTH + 5)
        padded = Rows(
            canvas=pad < 0,
            document=torch.where(pad < LENGTH, 0, -1),
            position=pad,
            start=torch.cat((rows.start, pad[LENGTH:] + 1)),
            block=pad * 0,
        )
        outcomes = []
        for filler in (0, VOCAB - 1):
            longer = torch.cat((ids[:1], torch.full((1, 5), filler)), 1)
            hidden, _ = model(longer, pad[None], dense(padded))
            assert hidden.isfinite().all()
            outcomes.append(hidden[:, :LENGTH])
        assert torch.equal(*outcomes)
        torch.testing.assert_close(outcomes[0], together[:1], **CLOSE)


def test_documents_packed_together_are_as_if_apart() -> None:
    model = tiny()
    first, second = clean_rows("causal_context", 5, 1), clean_rows("causal_context", 7, 1)
    packed = Rows(
        canvas=torch.zeros(12, dtype=torch.bool),
        document=(torch.arange(12) >= 5).long(),
        position=torch.cat((first.position, second.position)),
        start=torch.cat((first.start, second.start)),
        block=torch.zeros(12, dtype=torch.int64),
    )
    ids = tokens(1, 12)
    with torch.no_grad():
        whole, _ = model(ids, packed.position[None], dense(packed))
        for rows, own in ((first, slice(0, 5)), (second, slice(5, 12))):
            alone, _ = model(ids[:, own], rows.position[None], dense(rows))
            torch.testing.assert_close(whole[:, own], alone, **CLOSE)


@pytest.mark.parametrize("changes", [{}, {"self_conditioning": True}])
def test_marks_and_expectations_touch_canvas_rows_only(changes: dict[str, Any]) -> None:
    """Bit for bit: embeddings of clean rows are the bare token's, and a canvas leaves no trace in clean rows."""
    model = tiny(**changes)
    ids = tokens(2, 8)
    canvas = (torch.arange(8) >= 4).expand(2, -1)
    expected = torch.rand(2, 8, VOCAB, generator=torch.Generator().manual_seed(1))
    everywhere = torch.ones_like(canvas)
    bare = model.model.embed(ids, None, None, None)
    marked = model.model.embed(ids, canvas, everywhere, expected)
    assert torch.equal(marked[:, :4], bare[:, :4])
    assert not torch.isclose(marked[:, 4:], bare[:, 4:]).all(-1).any()
    unlocked = model.model.embed(ids, canvas, ~everywhere, expected)
    torch.testing.assert_close(marked[:, 4:] - unlocked[:, 4:], model.model.locked_embedding.expand(2, 4, -1))
    plain = model.model.embed(ids, canvas, None, expected)
    assert torch.equal(plain, unlocked)
    if changes:
        other = model.model.embed(ids, canvas, None, expected.flip(-1))
        assert torch.equal(other[:, :4], plain[:, :4])
        assert not torch.equal(other[:, 4:], plain[:, 4:])


@pytest.mark.parametrize("layout", ["causal_context", "block_causal"])
def test_clean_rows_are_the_same_whatever_the_canvas_holds(layout: str) -> None:
    """Equal bits for equal shapes; and close to a pass that has no canvas at all."""
    model = tiny(layout=layout, self_conditioning=True)
    rows = training_rows(layout, LENGTH, SLOTS)
    text = tokens(1, LENGTH)
    canvas = rows.canvas[None]
    seen = []
    with torch.no_grad():
        for seed in (5, 6):
            ids = torch.cat((text, tokens(1, LENGTH, seed)), 1)
            locked = canvas & (rows.position % seed == 0)
            hidden, _ = model(ids, rows.position[None], dense(rows), canvas, locked)
            seen.append(hidden)
        assert torch.equal(seen[0][:, :LENGTH], seen[1][:, :LENGTH])
        assert not torch.equal(seen[0][:, LENGTH:], seen[1][:, LENGTH:])
        clean = clean_rows(layout, LENGTH, SLOTS)
        alone, _ = model(text, clean.position[None], dense(clean))
        torch.testing.assert_close(seen[0][:, :LENGTH], alone, **CLOSE)
        unflagged = model(text, clean.position[None], dense(clean), torch.zeros(1, LENGTH, dtype=torch.bool))[
            0
        ]
        assert torch.equal(unflagged, alone)


def test_without_marks_noise_is_told_by_the_tokens_alone() -> None:
    model = tiny(canvas_rows_marked=False)
    ids, canvas = tokens(1, 6), torch.ones(1, 6, dtype=torch.bool)
    assert torch.equal(model.model.embed(ids, canvas, canvas, None), model.model.embed(ids, None, None, None))


def test_a_tied_head_is_one_tensor_and_counted_once() -> None:
    tied, untied = tiny(tie_word_embeddings=True), tiny(tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.parameter_count() - tied.parameter_count() == VOCAB * 32
