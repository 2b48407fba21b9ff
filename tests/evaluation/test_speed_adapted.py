"""bench speed on an adapted base: every mode on one set of weights, and outside programs on the base that it names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import redraft
from redraft.denoiser import adapters, checkpoint
from redraft.denoiser.adapter_config import AdapterConfig
from redraft.engine.backend import Pass
from redraft.evaluation import speed
from redraft.evaluation.benches import Options, run_bench
from redraft.evaluation.peers import PEERS, transformers_twin
from tests.cli.models import write_network


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with random numbers on the first layer of a base of two, which lies beside it."""
    place = tmp_path_factory.mktemp("models")
    plain = {"mask_token_id": None, "null_token_id": None, "canvas_rows_marked": False}
    base = write_network(place / "base", max_position_embeddings=1024, **plain)
    network = checkpoint.load(base)
    assert network.config.num_hidden_layers == 2
    out = place / "mine"
    out.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(base / name, out)
    pieces = {t["content"]: t["id"] for t in json.loads((out / "tokenizer.json").read_text())["added_tokens"]}
    settings = AdapterConfig(
        "../base", 4, 8.0, pieces["<|mask|>"], pieces["<|null|>"], canvas_length=8, layers=1
    )
    model = adapters.attach(adapters.cut(network, 1), settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in adapters.adapter_of(model).parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    adapters.save(adapters.adapter_of(model), model.config, out)
    return out


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_speed_measures_every_mode_and_program(adapted: Path, backend: str) -> None:
    model = redraft.load(adapted, backend=backend)
    told = run_bench("speed", model, Options(folder=adapted, quick=True))
    assert list(told["modes"]) == ["ar", "diffusion", "verified"]
    assert all(m["tokens"] == 32 and m["tokens_per_second"] > 0 for m in told["modes"].values())
    assert told["bound"].keys() == told["ratio"].keys() == {"diffusion", "verified"}
    assert told["same_as_ar"] == 1.0
    assert {"canvas_4", "commit_and_canvas_4"} <= told["costs"]["over_ar"].keys()
    assert told["peers"].keys() == PEERS.keys()
    for peer in told["peers"].values():
        assert "is not installed" in peer["skipped"] if "skipped" in peer else peer["tokens_per_second"] > 0
    printed = "\n".join(speed.lines(told))
    assert all(name in printed for name in ("verified", "bound", "llama.cpp"))


def test_outside_programs_get_the_layers_that_the_adapter_uses(adapted: Path) -> None:
    ids = np.random.default_rng(0).integers(6, 300, 12)
    backend = redraft.load(adapted, backend="torch").backend
    ours = backend.forward([Pass(backend.new_context(32), ids, "all")])[0].encode
    with torch.no_grad():
        theirs = transformers_twin(adapted)(torch.from_numpy(ids)[None]).logits[0].numpy()
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4)
