"""A tiny random model with a context long enough for dialogues, and dialogues prepared for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import redraft
from redraft.api import Model
from redraft.evaluation.prompts import Dialogues, load_dialogues
from redraft.training.data import Document, encode_document, write_corpus
from tests.cli.models import write_network
from tests.hub.conftest import byte_level

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("models") / "tiny-random", max_position_embeddings=1024)


@pytest.fixture(scope="session")
def model(folder: Path) -> Model:
    return redraft.load(folder, backend="torch")


@pytest.fixture(scope="session")
def dialogues(model: Model) -> Dialogues:
    return load_dialogues(model.tokenizer)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A prepared folder with valid and test splits of three dialogues."""
    out = tmp_path_factory.mktemp("data")
    documents = [
        Document(
            (
                ("user", "Find me a café in Zürich."),
                ("assistant", "Sure: 谢谢 is open."),
                ("user", "Book it!"),
            )
        ),
        Document((("user", "Hi."), ("assistant", "Hello! What can I do for you today?"))),
        Document((("assistant", "Where do you want to fly?"), ("user", "To Zürich, today."))),
    ]
    return prepared(out, documents)


def prepared(out: Path, documents: list[Document]) -> Path:
    """The same documents as valid and test splits, by the tokenizer of the tests' models."""
    tokenizer = byte_level()
    encoded = [encode_document(tokenizer, d) for d in documents]
    size = sum(len(d.text.encode()) for d in documents)
    for split in ("valid", "test"):
        write_corpus(out, split, encoded, [0] * len(encoded), size, tokenizer.get_vocab_size())
    return out


def random_texts(count: int, length: int, vocab: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(6, vocab, length) for _ in range(count)]
