"""Models to edit with; torch is loaded only where a test asks for random weights."""

from __future__ import annotations

import pytest

import redraft
from redraft.api import Model
from tests.editing.models import write_editor


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Tiny random weights: it writes nonsense, much of it no valid UTF-8, by the same code as any other model."""
    import torch

    torch.set_num_threads(1)
    return redraft.load(write_editor(tmp_path_factory.mktemp("models") / "tiny-editor"), backend="torch")


@pytest.fixture(scope="session")
def shipped() -> Model:
    return redraft.load("redraft-tiny")
