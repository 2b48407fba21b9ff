"""An adapter with heads on both backends: what they make of a canvas, verified against ar, and on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import redraft
from redraft.denoiser import adapters, checkpoint
from redraft.denoiser.adapter_config import AdapterConfig
from redraft.denoiser.checkpoint import state_dict
from redraft.denoiser.transformer import Denoiser
from redraft.engine import Request
from redraft.engine.backends.onnx_adapted import AdaptedOnnxBackend
from redraft.engine.backends.onnx_backend import OnnxBackend
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.engine.writers.verified import BEFORE, COST, Verified
from redraft.errors import RequestError
from redraft.hub import store
from redraft.sampling import SamplerSettings
from tests.engine.models import run, token_bytes, told
from tests.engine.test_adapted import SETTINGS, adapted, base
from tests.engine.test_verified import options
from tests.hub.conftest import TEMPLATE, byte_level

WITH_HEADS = replace(SETTINGS, markov_rank=3, confidence=True)


def with_heads(settings: AdapterConfig = WITH_HEADS, **changes: Any) -> Denoiser:
    """An adapter as test_adapted has it, and heads of random numbers."""
    plain = adapters.adapter_of(adapted(shift=settings.shift, **changes)).state_dict()
    model = adapters.attach(base(**changes), settings).eval()
    adapter = adapters.adapter_of(model)
    adapter.load_state_dict(plain, strict=False)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in adapter.heads.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return model


def on_onnx(model: Denoiser) -> OnnxBackend:
    numbers = {
        name.removeprefix(adapters.PREFIX): p.detach().numpy()
        for name, p in adapters.adapter_of(model).named_tensors().items()
    }
    weights = {k: v.numpy() for k, v in state_dict(base()).items()}
    return AdaptedOnnxBackend.of(
        model.config, weights, numbers, adapters.adapter_of(model).settings, "fp32", 1
    )


def test_numpy_and_torch_agree_on_what_the_heads_do() -> None:
    for changes in ({}, {"tie_word_embeddings": False}):
        model = with_heads(**changes)
        own, heads = TorchBackend(model).heads, adapters.adapter_of(model).heads
        assert own is not None
        hidden, previous = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), [3, 9, 20, 4, 3]
        with torch.no_grad():
            moved = heads.move(hidden, model.model.embed_tokens(torch.tensor(previous)))
            odds = heads.raw_confidence(moved, torch.arange(1, 6))
            due = torch.sigmoid(odds * heads.confidence_scale[1:6] + heads.confidence_shift[1:6])
            logits = model.logits(hidden).numpy()
        moves = np.stack([own.move(token) for token in previous])
        np.testing.assert_allclose(moves, (moved - hidden).numpy(), atol=1e-5)
        np.testing.assert_allclose(own.chances(np.arange(1, 6), logits, moves), due.numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_verified_is_ar_with_heads(kind: str) -> None:
    """Greedy and sampled, all layouts, one draft step (on torch several), watched or not."""
    model = with_heads()
    backend: Any = TorchBackend(model) if kind == "torch" else on_onnx(model)
    assert backend.heads is not None
    requests = []
    for seed in range(60 if kind == "torch" else 30):
        given = options(seed) | ({"draft_steps": 1} if kind == "onnx" else {})
        verified = Request(decode="verified", watched=seed % 2 == 0, **given)
        requests += [Request(decode="ar", **given), verified]
    tickets = run(requests, backend, max_batch=12, prefix_contexts=0)
    for ar, verified in zip(tickets[::2], tickets[1::2], strict=True):
        assert told(ar)[:3] == told(verified)[:3], ar.request


def proposals(model: Denoiser, backend: Any = None, **changes: Any) -> list[tuple[int, ...]]:
    """What is proposed, pass after pass, for one answer."""
    seen: list[tuple[int, ...]] = []

    class Told(Verified):
        def _propose(self, slots: Iterable[tuple[int, float]]) -> None:
            super()._propose(slots)
            seen.append(self._proposal)

    on = backend or TorchBackend(model)
    settings = SamplerSettings(canvas_length=8, temperature=changes.pop("temperature", 0.0))
    request = Request((5, 6, 7), "verified", settings, max_tokens=24, ignore_eos=True, **changes)
    writer = Told(request, model.config, on.new_context(64), token_bytes, on.heads)
    while not writer.done:
        writer.absorb(on.forward([writer.plan()])[0])
    return seen


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_both_backends_propose_the_same_and_watching_changes_nothing(temperature: float) -> None:
    model = with_heads()
    due = proposals(model, draft_layout="strided", temperature=temperature)
    assert any(due)
    assert due == proposals(model, on_onnx(model), draft_layout="strided", temperature=temperature)
    assert due == proposals(model, draft_layout="strided", temperature=temperature, watched=False)
    without = with_heads(SETTINGS)
    assert due != proposals(without, draft_layout="strided", temperature=temperature)


def sure(model: Denoiser, odds: float) -> Denoiser:
    """With a confidence head that says the same of every slot."""
    heads = adapters.adapter_of(model).heads
    with torch.no_grad():
        heads.confidence_scale.zero_()
        heads.confidence_shift.fill_(odds)
    return model


def test_a_confidence_that_cuts_everything_gives_ar() -> None:
    none = sure(with_heads(), -30.0)
    assert not any(proposals(none))
    assert any(proposals(none, draft_layout="strided"))  # a cut is for layouts that weigh costs
    request = {"prompt": (5, 6, 7), "max_tokens": 20, "ignore_eos": True}
    ar, verified = run([Request(decode=d, **request) for d in ("ar", "verified")], TorchBackend(none))  # type: ignore[arg-type]
    assert told(ar) == told(verified)  # as many evaluations, too


@pytest.mark.parametrize(
    ("odds", "row_cost"), [(0.0, 0.06), (-1.0, 0.06), (2.0, 0.05), (30.0, 0.06), (0.0, 0.0)]
)
def test_a_draft_is_cut_where_its_chance_no_longer_pays_for_a_row(odds: float, row_cost: float) -> None:
    chance = 1 / (1 + np.exp(-odds))
    # What a token has cost so far: two of them, the prompt's for nothing, and those that an answer is begun with.
    worth = min(1, (BEFORE * COST + 1 + 7 * row_cost + 0.2) / (BEFORE + 2))
    due = sum(chance**k >= row_cost / worth for k in range(1, 8))
    assert len(proposals(sure(with_heads(), odds), row_cost=row_cost, canvas_cost=0.2)[0]) == due


# -- on disk --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter with heads that names a base of the store."""
    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path / "home"))
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size() + 2
    checkpoint.save(base(vocab_size=size), store.local_root() / "base")
    tokenizer.save(str(store.local_root() / "base" / "tokenizer.json"))
    out = tmp_path / "mine"
    out.mkdir()
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    ids = {"mask_token_id": size - 1, "null_token_id": size - 2}
    model = with_heads(replace(WITH_HEADS, **ids), vocab_size=size)
    adapters.save(adapters.adapter_of(model), model.config, out)
    return out


def test_heads_come_back_from_disk_on_both_backends(folder: Path) -> None:
    loaded = {name: redraft.load(folder, name) for name in ("torch", "onnx")}
    heads = [model.backend.heads for model in loaded.values()]
    assert heads[0] is not None
    assert heads[1] is not None
    for name, array in vars(heads[0]).items():
        np.testing.assert_array_equal(array, getattr(heads[1], name), err_msg=name)
    again = folder.parent / "again"
    again.mkdir()
    model = loaded["torch"].backend.model  # type: ignore[attr-defined]
    adapters.save(adapters.adapter_of(model), model.config, again)
    for file in ("adapter_model.safetensors", "adapter_config.json", "config.json"):
        assert (again / file).read_bytes() == (folder / file).read_bytes()
    given = {"max_tokens": 12, "temperature": 0.0, "seed": 0}
    said = [
        m.generate("hello", decode=d, **given).token_ids for m in loaded.values() for d in ("ar", "verified")
    ]
    assert said[0] == said[1] == said[2] == said[3]


def test_an_adapter_from_before_there_were_heads_loads(folder: Path) -> None:
    path = folder / "adapter_config.json"
    raw = json.loads(path.read_text())
    del raw["redraft"]["markov_rank"], raw["redraft"]["confidence"]
    path.write_text(json.dumps(raw))
    weights = folder / "adapter_model.safetensors"
    kept = {name: t for name, t in load_file(weights).items() if not name.startswith(adapters.HEADS)}
    save_file(kept, weights)
    for backend in ("torch", "onnx"):
        model = redraft.load(folder, backend)
        assert model.backend.heads is None
        assert model.generate("hello", decode="verified", max_tokens=6, ignore_eos=True).tokens == 6


def _change(folder: Path, name: str, shape: tuple[int, ...] | None) -> None:
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    del tensors[f"{adapters.HEADS}{name}"]
    if shape is not None:
        tensors[f"{adapters.HEADS}{name}"] = torch.zeros(shape)
    save_file(tensors, weights)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("markov_B", (3, 31)), ("markov_A", None), ("confidence_weight", (5,)), ("confidence_bias", (9,))],
)
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_heads_that_do_not_fit_the_adapter_get_one_line(
    folder: Path, name: str, shape: tuple[int, ...] | None, backend: str
) -> None:
    _change(folder, name, shape)
    with pytest.raises(RequestError, match=f"the heads of .* don't fit the adapter: {name}; train") as caught:
        redraft.load(folder, backend)
    assert "\n" not in str(caught.value)


def test_a_rank_that_is_none_gets_one_line(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"markov_rank": 3', '"markov_rank": "3"'))
    with pytest.raises(RequestError, match="markov_rank must be a whole number"):
        redraft.load(folder, "torch")
