"""Training tests run on one thread: they are tiny, and other work may share the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from redraft.training.data import prepare
from redraft.training.recipe import Prepare, Source
from tests.training.bases import make_base, make_data
from tests.training.toys import dialogues, write_jsonl

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder: 60 little dialogues, of which 6 held out and 5 more as a test."""
    folder = tmp_path_factory.mktemp("corpus")
    write_jsonl(folder / "all.jsonl", [{"text": t} for t in dialogues(60)])
    write_jsonl(folder / "test.jsonl", [{"text": t} for t in dialogues(5, seed=1)])
    settings = Prepare(
        sources=[Source(path=str(folder / "all.jsonl"), format="dialogue")],
        tests=[Source(path=str(folder / "test.jsonl"), format="dialogue")],
        vocab_size=300,
        holdout=6,
    )
    prepare(settings, folder / "data")
    return folder / "data"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base in a store of its own, and data for it in the folder that is returned."""
    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path / "home"))
    make_base()
    return make_data(tmp_path)
