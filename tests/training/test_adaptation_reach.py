"""Adapters that act on some projections and layers alone, and those that go on from another's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import redraft
from redraft.denoiser import adapters
from redraft.denoiser.adapter_config import ADAPTER_WEIGHTS, AdapterConfig
from redraft.engine.backend import Pass
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.errors import RequestError
from redraft.hub.runs import complete
from redraft.training.adaptation import Adaptation, adapt
from redraft.training.adaptation_batch import build
from redraft.training.adaptation_canvases import DRAFT, HOLE
from tests.training.bases import recipe

FEW: dict[str, Any] = {"targets": ["q_proj", "up_proj"], "first_layer": 1, "gains": False}


@pytest.fixture
def trained(data: Path, tmp_path: Path) -> Path:
    adapt(recipe(data, train={"steps": 3}), tmp_path / "trained")
    return tmp_path / "trained"


def begun(data: Path, folder: Path, **adapter: Any) -> Adaptation:
    return Adaptation(recipe(data, adapter=adapter), folder, resume=False)


def drafted(run: Adaptation) -> np.ndarray:
    backend = TorchBackend(run.model)
    mask = run.model.config.mask_token_id
    assert mask is not None
    result = backend.forward([Pass(backend.new_context(16), np.arange(5, 9), canvas=np.full(4, mask))])
    assert result[0].canvas is not None
    return result[0].canvas


def test_only_what_is_named_gets_a_part_and_learns(data: Path, tmp_path: Path) -> None:
    run = begun(data, tmp_path / "run", **FEW)
    due = {"model/layers/1/self_attn/q_proj", "model/layers/1/mlp/up_proj"}
    assert set(adapters.adapter_of(run.model).parts) == due
    before = drafted(run)
    folder = run.train()
    assert np.abs(drafted(run) - before).max() > 1e-3
    settings = AdapterConfig.read(folder)
    assert (settings.targets, settings.first_layer, settings.gains) == (("q_proj", "up_proj"), 1, False)
    model = redraft.load(str(tmp_path / "run"), backend="onnx")
    written = [
        model.generate("ab", max_tokens=8, decode=d, temperature=0.0).token_ids for d in ("ar", "verified")
    ]
    assert written[0] == written[1] != []


def test_a_larger_rank_begins_as_the_smaller_one_ended(data: Path, tmp_path: Path, trained: Path) -> None:
    same = begun(data, tmp_path / "same", start=str(trained))
    grown = begun(data, tmp_path / "grown", start=str(trained), rank=12, alpha=6.0)
    np.testing.assert_allclose(drafted(grown), drafted(same), atol=1e-4)
    assert np.abs(drafted(same) - drafted(begun(data, tmp_path / "fresh"))).max() > 1e-3
    ours, theirs = (adapters.adapter_of(run.model).named_tensors() for run in (grown, same))
    for name, tensor in theirs.items():
        if name.endswith("lora_A.weight"):
            assert torch.equal(ours[name][:8], tensor)
            assert ours[name][8:].abs().min() > 0  # the new ones can learn


def test_what_the_start_has_elsewhere_is_left_out(data: Path, tmp_path: Path, trained: Path) -> None:
    same = begun(data, tmp_path / "same", start=str(trained))
    few = begun(data, tmp_path / "few", start=str(trained), **FEW)
    theirs = adapters.adapter_of(same.model).named_tensors()
    ours = adapters.adapter_of(few.model).named_tensors()
    assert ours.keys() < theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_canvas_rows_may_enter_late(data: Path, tmp_path: Path, trained: Path) -> None:
    """They begin as the layers before left them, on average, and learn on; all decode modes know where they enter."""
    same = begun(data, tmp_path / "same", start=str(trained))
    late = begun(data, tmp_path / "late", start=str(trained), canvas_entry=1)
    theirs, ours = (adapters.adapter_of(run.model) for run in (same, late))
    assert {name.split("/")[2] for name in ours.parts if name != "model/norm"} == {"1"}
    seen: list[torch.Tensor] = []
    same.model.model.layers[1].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    mask, canvases = same.tokens.mask, 0
    total = torch.zeros_like(ours.slots.mask)
    for kind in (0, 3):
        for row in range(8):
            parts = same.recipe.canvas, same.recipe.losses, same.tokens, True
            batch = build(
                same.rows,
                *parts,
                step=0,
                rows=range(row, row + 1),
                batch_rows=8,
                seed=same.recipe.train.seed,
                kind=kind,
            )
            same.objective.hidden(batch)
            open_ = (batch.shown == mask) & ~batch.locked & (batch.document >= 0)[..., None]
            total += seen[-1].view(*open_.shape, -1)[torch.from_numpy(open_)].sum(0)
            canvases += int(open_.sum())
    torch.testing.assert_close(ours.slots.late_mask.data, total / canvases, atol=1e-4, rtol=1e-4)
    assert torch.equal(ours.slots.mask, theirs.slots.mask)
    before = drafted(late)
    folder = late.train()
    assert np.abs(drafted(late) - before).max() > 1e-3
    assert AdapterConfig.read(folder).canvas_entry == 1
    again = begun(data, tmp_path / "again", start=str(tmp_path / "late"), canvas_entry=1)
    torch.testing.assert_close(
        adapters.adapter_of(again.model).slots.late_mask, load(folder)["slots.late_mask"]
    )
    model = redraft.load(str(tmp_path / "late"), backend="onnx")
    written = [
        model.generate("ab", max_tokens=8, decode=d, temperature=0.0).token_ids for d in ("ar", "verified")
    ]
    assert written[0] == written[1] != []


def load(folder: Path) -> dict[str, torch.Tensor]:
    own = load_file(folder / ADAPTER_WEIGHTS)
    return {name.removeprefix(adapters.PREFIX): tensor for name, tensor in own.items()}


def test_training_canvases_may_be_shorter_than_those_of_the_model(data: Path, tmp_path: Path) -> None:
    run = Adaptation(recipe(data, canvas={"slots": 4}), tmp_path / "run", resume=False)
    assert run.batch(range(2)).shown.shape[2] == 4
    assert run.model.config.canvas_length == 6
    with pytest.raises(RequestError, match=r"canvas\.slots must not exceed canvas\.length"):
        Adaptation(recipe(data, canvas={"slots": 7}), tmp_path / "other", resume=False)


def test_a_draft_is_trained_as_it_is_decoded(data: Path, tmp_path: Path, trained: Path) -> None:
    """Without the last slot, which with a shift predicts none: what slots learn from are the logits of such a pass."""
    run = begun(data, tmp_path / "run", start=str(trained), canvas_entry=1)
    batch = run._build(run.rows, 0, range(1), 1, DRAFT)
    backend, mask, slots = TorchBackend(run.model), run.tokens.mask, batch.shown.shape[2]
    with torch.no_grad():
        pairs = run.objective.pairs(batch)
        learning = run.model.logits(pairs.canvas).numpy()
    used = np.flatnonzero(batch.document[0] >= 0)
    assert len(used) > 1
    for n in used:
        own = batch.clean_document[0] == batch.document[0, n]
        text = batch.clean[0, own & (batch.positions[0] < batch.slot_positions[0, n, 0])]
        given = Pass(backend.new_context(64), text, canvas=np.full(slots - 1, mask), ahead=True)
        decoded = backend.forward([given])[0].canvas
        assert decoded is not None
        assert len(decoded) == slots
        mine = (pairs.number == n).numpy()
        np.testing.assert_allclose(learning[mine], decoded[pairs.slot[mine].numpy()], atol=1e-4)
    whole = run._build(run.rows, 0, range(1), 1, HOLE)
    assert run.objective._seen(whole) is whole


def test_what_is_excluded_gets_no_part_and_is_left_out_of_a_start(
    data: Path, tmp_path: Path, trained: Path
) -> None:
    run = begun(data, tmp_path / "run", start=str(trained), exclude=r".*layers\.1\.self_attn\..*|.*up_proj")
    parts = set(adapters.adapter_of(run.model).parts)
    theirs = {
        name for name in adapters.adapter_of(begun(data, tmp_path / "whole").model).parts if "proj" in name
    }
    assert theirs - parts == {n for n in theirs if "layers/1/self_attn" in n or n.endswith("up_proj")}
    folder = run.train()
    assert AdapterConfig.read(folder).exclude == r".*layers\.1\.self_attn\..*|.*up_proj"
    written = [
        redraft.load(str(tmp_path / "run"), backend=backend)
        .generate("ab", max_tokens=8, decode="verified", temperature=0.0)
        .token_ids
        for backend in ("torch", "onnx")
    ]
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("target_modules", ["q_proj", "w_proj"], "target_modules must be a list of some of q_proj, "),
        ("target_modules", ["q_proj", ["k_proj"]], "target_modules must be a list of some of q_proj, "),
        ("target_modules", "all-linear", "target_modules must be a list of some of q_proj, "),
        ("target_modules", [], "target_modules must be a list of some of q_proj, "),
        ("target_modules", None, "is malformed"),
        ("gains", "no", "gains must be true or false"),
        ("first_layer", True, "first_layer must be a whole number of at least 0"),
        ("first_layer", -1, "first_layer must be a whole number of at least 0"),
        ("exclude_modules", "(", "exclude_modules must be a regular expression: missing "),
        ("exclude_modules", ["k_proj"], "exclude_modules must be a regular expression"),
        ("canvas_entry", 0, "canvas_entry must be a whole number of at least 1, or null"),
        ("canvas_entry", True, "canvas_entry must be a whole number of at least 1, or null"),
    ],
)
def test_an_adapters_file_that_names_something_else_gets_one_line(
    data: Path, tmp_path: Path, trained: Path, key: str, value: Any, line: str
) -> None:
    path = complete(trained)[-1] / "adapter_config.json"
    raw = json.loads(path.read_text())
    where = raw if key in raw or key == "exclude_modules" else raw["redraft"]
    where[key] = value
    path.write_text(json.dumps(raw))
    with pytest.raises(RequestError, match=line) as caught:
        AdapterConfig.read(path.parent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("adapter", "line"),
    [
        ({"first_layer": 2}, "first_layer is 2, but the base's last layer is number 1"),
        (
            {"exclude": r".*layers\.7.*"},
            "matches no module that the adapter acts on; names are like model.layers.0.",
        ),
        ({"exclude": "[a"}, "adapter.exclude must be a regular expression: unterminated"),
        ({"canvas_entry": 2}, "canvas_entry is 2, but the base's last layer is number 1"),
        (
            {"frozen": True, "markov_rank": 2, "canvas_entry": 1, "first_layer": 1},
            "must stay as it is: give its own rank, targets",
        ),
        (
            {"frozen": True, "markov_rank": 2, "gains": False},
            "must stay as it is: give its own rank, targets",
        ),
        (
            {"frozen": True, "markov_rank": 2, "rank": 9},
            "must stay as it is: give its own rank, targets",
        ),
    ],
)
def test_what_reaches_nowhere_or_can_never_learn_is_refused(
    data: Path, tmp_path: Path, trained: Path, adapter: dict[str, Any], line: str
) -> None:
    with pytest.raises(RequestError, match=line) as caught:
        begun(data, tmp_path / "run", start=str(trained), **adapter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["first_layer", "canvas_entry"])
def test_all_weights_have_no_reach(data: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=rf"adapter\.{name} is of method adapter"):
        Adaptation(recipe(data, method="full", adapter={name: 1}), tmp_path / "run", resume=False)


@pytest.mark.parametrize("damage", ["missing", "wide"])
def test_a_damaged_start_is_refused(data: Path, tmp_path: Path, trained: Path, damage: str) -> None:
    path = complete(trained)[-1] / ADAPTER_WEIGHTS
    tensors = load_file(path)
    name = next(n for n in sorted(tensors) if n.endswith("lora_A.weight"))
    if damage == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.cat((tensors[name], tensors[name]), 1)
    save_file(tensors, path)
    with pytest.raises(RequestError, match=f"doesn't fit its base: {name}"):
        begun(data, tmp_path / "run", start=str(trained))


def test_slots_that_training_does_not_show_are_as_sure_as_its_last(data: Path, tmp_path: Path) -> None:
    own = recipe(
        data, canvas={"slots": 4}, adapter={"markov_rank": 2, "confidence": True}, train={"steps": 2}
    )
    folder = Adaptation(own, tmp_path / "run", resume=False).train()
    held = load_file(folder / ADAPTER_WEIGHTS)
    scale, shift, bias = (held[f"{adapters.HEADS}confidence_{part}"] for part in ("scale", "shift", "bias"))
    assert torch.equal(scale[4:], scale[3].expand(2))
    base = shift + scale * bias
    assert torch.allclose(base[4:], base[3].expand(2), atol=1e-5)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = [r for r in records if "valid_right" in r]
    assert {len(r["valid_right"]) for r in measured} == {3}
