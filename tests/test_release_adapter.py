"""recipes/release_adapter.py from a checkpoint to a named model with a card, on a tiny stand-in."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

import redraft
from redraft.files import MANIFEST, sha256
from redraft.hub import catalogue, store
from redraft.hub.catalogue import Base
from tests.hub.conftest import byte_level
from tests.training.bases import NAME, make_base

ROOT = Path(__file__).parents[1]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release_adapter", ROOT / "recipes" / "release_adapter.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_becomes_a_named_model_with_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from redraft.denoiser import adapters, families
    from redraft.denoiser.adapter_config import AdapterConfig
    from redraft.training import ship

    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setitem(catalogue.BASES, NAME, Base(NAME, "someone/tiny", "apache-2.0"))
    size = byte_level().get_vocab_size()
    base = families.load(make_base(max_position_embeddings=2048))
    model = adapters.attach(base, AdapterConfig(NAME, 4, 4.0, size, size + 1, canvas_length=6))
    made = tmp_path / "run"
    made.mkdir()
    adapters.save(adapters.adapter_of(model), model.config, made)
    (made / "metrics.jsonl").write_text('{"step": 2, "seconds": 60, "tokens_per_second": 10}\n')
    recipe = {"name": "toy", "canvas": {"per_row": 2, "length": 6}, "train": {"row_length": 8}}
    (made / "recipe.yaml").write_text(json.dumps(recipe))

    root = tmp_path / "root"
    for name in ("docs", "adapters", "recipes"):
        (root / name).mkdir(parents=True)
    (root / "recipes" / "toy-generation.json").write_text('{"threshold": 0.7}')
    pins = tmp_path / "pins.json"
    pins.write_text("{}")
    module = load()
    monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(module, "pin", lambda folder: ship.pin(folder, pins))
    monkeypatch.setattr(module, "TUNING", module.Acceptance(tokens=6, seed=1))
    arguments = [str(made), "--name", "toy", "--prompts", "1", "--tokens", "6", "--machine", "a toy"]
    monkeypatch.setattr(sys, "argv", ["release_adapter.py", *arguments])
    module.main()

    folder = root / "adapters" / "toy"
    store.check(folder)
    assert json.loads(pins.read_text()) == {"toy": {"base": NAME, "manifest": sha256(folder / MANIFEST)}}
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["threshold"] == 0.7
    assert generation["draft_length"] in (3, 4, 5, 6)
    assert set(generation["step_costs"]) == {"4", "8", "16", "32"}
    told = json.loads((root / "docs" / "toy.json").read_text())
    assert told["acceptance"]["overall"]["same_as_ar"] == 1.0
    assert "2 steps in 1 minutes on a toy" in (folder / "README.md").read_text()
    assert redraft.load(folder).generate("abc", decode="verified", max_tokens=4).tokens
