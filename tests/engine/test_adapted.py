"""A gated adapter on an AR base: canvas rows are changed, clean rows are the base's own, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import redraft
from redraft.denoiser import adapters, checkpoint
from redraft.denoiser.adapter_config import AdapterConfig
from redraft.denoiser.transformer import Denoiser, Visibility
from redraft.engine import Request
from redraft.engine.backend import Pass
from redraft.engine.backends.torch_backend import TorchBackend, visibility
from redraft.errors import RequestError
from redraft.hub import store
from redraft.sampling import SamplerSettings
from tests.engine.models import EOS, MASK, NOTHING, NULL, VOCAB, network, prompt, run
from tests.hub.conftest import TEMPLATE, byte_level

SETTINGS = AdapterConfig("base", rank=4, alpha=8.0, mask_token_id=MASK, null_token_id=NULL, canvas_length=8)
FAMILIES = [{}, {"qk_norm": True}, {"attention_bias": True}]


def base(**changes: Any) -> Denoiser:
    plain = {"mask_token_id": None, "null_token_id": None, "canvas_rows_marked": False}
    return network(seed=3, **(plain | changes))


# What an adapter may leave out.
FAR = {"targets": ("q_proj", "gate_proj", "down_proj"), "first_layer": 1, "gains": False}
LATE = {"canvas_entry": 1}
SOME = {"exclude": r".*layers\.1\.self_attn\..*|.*layers\.0\.mlp\.up_proj", "gains": False}
REACHES = [
    {},
    {"targets": ("v_proj", "o_proj", "up_proj")},
    {"gains": False},
    {"first_layer": 1},
    FAR,
    LATE,
    SOME,
]


def adapted(
    fill: float | None = None, shift: bool = True, reach: dict[str, Any] | None = None, **changes: Any
) -> Denoiser:
    """fill: what every number of the adapter is, None for random ones. reach: where it acts, by default everywhere."""
    settings = AdapterConfig(**(vars(SETTINGS) | {"shift": shift} | (reach or {})))
    model = adapters.attach(base(**changes), settings).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in adapters.adapter_of(model).parameters():
            p.copy_(
                0.3 * torch.randn(p.shape, generator=generator) if fill is None else torch.full_like(p, fill)
            )
    return model


def canvas(length: int = 8) -> np.ndarray:
    tokens = np.full(length, MASK)
    tokens[2], tokens[5] = 7, NULL
    return tokens


@pytest.mark.parametrize("changes", FAMILIES)
@pytest.mark.parametrize("beside_a_canvas", [False, True])
@pytest.mark.parametrize("reach", [{}, LATE])
def test_clean_rows_are_the_base_bit_for_bit(
    changes: dict[str, Any], beside_a_canvas: bool, reach: dict[str, Any]
) -> None:
    """Alone every number of the adapter is NaN: one that touched a clean row, even times 0, would show. Beside a canvas
    they are random: there attention multiplies a canvas's values by 0."""
    fill = None if beside_a_canvas else float("nan")
    ours, theirs = TorchBackend(adapted(fill, reach=reach, **changes)), TorchBackend(base(**changes))
    context, other = ours.new_context(64), theirs.new_context(64)
    text = np.array(prompt(23))
    for part in (text[:11], text[11:12], text[12:]):
        drafted = canvas() if beside_a_canvas else None
        got = ours.forward([Pass(context, part, "all", canvas=drafted)])[0]
        due = theirs.forward([Pass(other, part, "all")])[0]
        np.testing.assert_array_equal(got.encode, due.encode)
        if beside_a_canvas:
            other_canvas = theirs.forward([Pass(other, NOTHING, canvas=drafted)])[0].canvas  # unshifted
            assert got.canvas is not None
            assert other_canvas is not None
            assert not np.allclose(got.canvas[1:], other_canvas[:-1])
    kept = slice(0, len(text))
    assert torch.equal(context.keys[:, kept], other.keys[:, kept])
    assert torch.equal(context.values[:, kept], other.values[:, kept])


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_verified_gives_the_tokens_of_ar(shift: bool, temperature: float) -> None:
    backend = TorchBackend(adapted(shift=shift))
    sampler = SamplerSettings(canvas_length=6, max_steps=6, temperature=temperature)
    common = {"prompt": prompt(), "max_tokens": 20, "seed": 2, "sampler": sampler, "eos_ids": (EOS,)}
    ((verified,), (ar,)) = (run([Request(decode=d, **common)], backend) for d in ("verified", "ar"))
    assert verified.writer is not None
    assert ar.writer is not None
    assert verified.writer.output.tokens == ar.writer.output.tokens


def test_with_a_shift_the_first_slot_is_the_bases_own_guess() -> None:
    backend, plain = TorchBackend(adapted()), TorchBackend(base())
    text = np.array(prompt(9))
    got = backend.forward([Pass(backend.new_context(32), text, canvas=canvas())])[0].canvas
    due = plain.forward([Pass(plain.new_context(32), text, "last")])[0].encode
    assert got is not None
    np.testing.assert_array_equal(got[0], due[0])


def test_a_canvas_does_not_depend_on_another_in_the_same_pass() -> None:
    backend = TorchBackend(adapted(shift=False))
    texts = [np.array(prompt(n, seed=n)) for n in (5, 9, 14)]

    def passes() -> list[Pass]:
        return [
            Pass(backend.new_context(64), t, "last", canvas=canvas(c))
            for t, c in zip(texts, (7, 8, 6), strict=True)
        ]

    together = backend.forward(passes())
    for alone, result in zip([backend.forward([p])[0] for p in passes()], together, strict=True):
        assert alone.canvas is not None
        np.testing.assert_array_equal(alone.canvas, result.canvas)
        np.testing.assert_array_equal(alone.encode, result.encode)


def fresh(model: Denoiser) -> adapters.Adapter:
    adapter = adapters.adapter_of(adapters.attach(model, SETTINGS))
    adapter.reset_parameters(model, torch.Generator().manual_seed(0))
    return adapter


def test_an_untrained_adapter_changes_only_open_and_empty_slots() -> None:
    model, plain = base(), base()
    fresh(model)
    tokens, at = torch.tensor([[5, 6, 7, 8]]), torch.arange(4)[None]
    seen = Visibility(dense=Visibility.additive(torch.ones(1, 1, 4, 4, dtype=torch.bool)))
    with torch.no_grad(), adapters.canvas_rows(model, True):
        same = model(tokens, at, seen)[0]
        other = model(torch.tensor([[5, MASK, 7, 8]]), at, seen)[0]
    assert torch.equal(same, plain(tokens, at, seen)[0])
    assert not torch.allclose(other, plain(torch.tensor([[5, MASK, 7, 8]]), at, seen)[0])


@pytest.mark.parametrize("reach", [{}, LATE])
@pytest.mark.parametrize("alone", [False, True])
def test_all_canvas_rows_over_a_cache_are_as_in_a_mixed_pass(reach: dict[str, Any], alone: bool) -> None:
    """What training does (clean rows first, then canvases alone) against what the engine does. alone: no slot holds a
    token, so that layers may be left out."""
    model = adapted(shift=False, reach=reach)
    backend = TorchBackend(model)
    text, slots = np.array(prompt(10)), canvas()
    slots[2] = MASK if alone else slots[2]
    due = backend.forward([Pass(backend.new_context(32), text, canvas=slots)])[0].canvas
    empty = backend.new_context(32)
    both = torch.from_numpy(visibility(model.config, Pass(empty, text, canvas=slots), 18))[None, None]
    clean, over = both[:, :, :10, :10], both[:, :, 10:]
    with torch.no_grad():
        _, past = model(
            torch.from_numpy(text)[None], torch.arange(10)[None], Visibility(Visibility.additive(clean))
        )
        with adapters.canvas_rows(model, True):
            hidden, _ = model(
                torch.from_numpy(slots)[None],
                10 + torch.arange(8)[None],
                Visibility(Visibility.additive(over)),
                past=past,
                alone=alone,
            )
    np.testing.assert_allclose(model.logits(hidden)[0].detach().numpy(), due, atol=2e-4)


def test_a_locked_slot_is_told_from_a_draft() -> None:
    backend = TorchBackend(adapted(shift=False))
    slots, locked = canvas(), np.zeros(8, bool)
    locked[2] = True
    results = []
    for flags in (None, np.zeros(8, bool), locked):
        call = Pass(backend.new_context(32), np.array(prompt(5)), canvas=slots, locked=flags)
        results.append(backend.forward([call])[0].canvas)
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.allclose(results[0], results[2])


def test_only_the_adapter_is_trained() -> None:
    model = adapters.attach(base(), SETTINGS)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if n.startswith("adapter.")}


# -- on disk --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter that names a base of the store, two layers of which one is used."""
    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path / "home"))
    tokenizer = byte_level()
    sizes = {"vocab_size": tokenizer.get_vocab_size() + 2}
    checkpoint.save(base(**sizes), store.local_root() / "base")
    tokenizer.save(str(store.local_root() / "base" / "tokenizer.json"))
    out = tmp_path / "mine"
    out.mkdir()
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    settings = AdapterConfig(**(vars(SETTINGS) | {"layers": 1, "mask_token_id": sizes["vocab_size"] - 1}))
    model = adapters.attach(adapters.cut(base(**sizes), 1), settings)
    with torch.no_grad():
        for p in adapters.adapter_of(model).parameters():
            p.normal_(0, 0.1)
    adapters.save(adapters.adapter_of(model), model.config, out)
    return out


def test_an_adapter_loads_on_the_base_that_it_names(folder: Path) -> None:
    model = redraft.load(folder, backend="torch")
    assert model.config.num_hidden_layers == 1
    loaded = adapters.adapter_of(model.backend.model)  # type: ignore[attr-defined]
    again = folder.parent / "again"
    again.mkdir()
    adapters.save(loaded, model.config, again)
    for name in ("adapter_model.safetensors", "adapter_config.json", "config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    for decode in ("diffusion", "ar", "verified"):
        assert model.generate("hello", decode=decode, max_tokens=6, ignore_eos=True).tokens > 0
    told = store.describe(store.find(folder))
    assert told["parameters"] == sum(p.numel() for p in loaded.parameters())


def test_the_file_reads_like_a_peft_adapter(folder: Path) -> None:
    raw = json.loads((folder / "adapter_config.json").read_text())
    assert (raw["peft_type"], raw["base_model_name_or_path"], raw["r"]) == ("LORA", "base", 4)
    names = adapters.adapter_of(redraft.load(folder, "torch").backend.model).named_tensors()  # type: ignore[attr-defined]
    for name in ("self_attn.q_proj.lora_A.weight", "mlp.down_proj.lora_B.weight", "input_layernorm.weight"):
        assert f"base_model.model.model.layers.0.{name}" in names


def _rename_base(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"base"', '"bass"'))


def _other_base(folder: Path) -> None:
    checkpoint.save(base(num_hidden_layers=3, vocab_size=VOCAB), store.local_root() / "base")


def _ordinary(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))


def _more_layers(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"layers": 1', '"layers": 2'))


def _truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (_rename_base, "is an adapter on bass: unknown model 'bass', did you mean base"),
        (_other_base, "lies outside the vocabulary|was trained on another base"),
        (_ordinary, "has no redraft section"),
        (_more_layers, "their num_hidden_layers differs"),
        (_truncate, "can't be read|is truncated"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    ],
)
def test_what_does_not_belong_together_gets_one_line(folder: Path, harm: Any, line: str) -> None:
    harm(folder)
    for backend in ("torch", "onnx"):
        with pytest.raises(RequestError, match=line) as caught:
            redraft.load(folder, backend)
        assert "\n" not in str(caught.value)


def test_a_model_that_denoises_already_is_no_base() -> None:
    with pytest.raises(RequestError, match="denoises already"):
        adapters.attach(network(), SETTINGS)


@pytest.mark.parametrize("entry", [0, 2, -1])
def test_a_canvas_enters_at_a_layer_behind_the_first(entry: int) -> None:
    with pytest.raises(RequestError, match=f"canvas_entry {entry} is no layer behind the first of 2"):
        adapted(reach={"canvas_entry": entry})
