"""A tokenizer and a model folder as training writes them, small enough to make in a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from safetensors.numpy import save_file
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers, trainers

from redraft.files import manifest
from redraft.hub.chat_template import ChatTemplate
from redraft.hub.tokenizer import Tokenizer

# A busy machine is no fault.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

SPECIALS = ["<|eos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|mask|>", "<|null|>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = [
    "Where do you want to fly? I want to fly to Zürich today.",
    "the table is booked — thank you, 谢谢",
] * 4


def byte_level(extra: list[str] | None = None) -> Fast:
    """A byte-level BPE tokenizer of about 320 tokens, specials first."""
    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fast.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=SPECIALS + (extra or []),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return fast


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(byte_level(), ChatTemplate(TEMPLATE))


def write_model(folder: Path) -> Path:
    """A folder that looks like one of ours, weights and all (the weights fit no network; nothing here runs
    one).
    """
    folder.mkdir(parents=True, exist_ok=True)
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": TEMPLATE, "eos_token": "<|eos|>"})
    )
    (folder / "config.json").write_text(
        json.dumps({"model_type": "redraft", "eos_token_ids": [0, 1], "mask_token_id": 4})
    )
    (folder / "generation_config.json").write_text(json.dumps({"threshold": 0.8}))
    (folder / "README.md").write_text("---\nlicense: cc-by-sa-4.0\ntags: [x]\n---\n# A model\n")
    save_file(
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)},
        folder / "model.safetensors",
    )
    (folder / "manifest.json").write_text(json.dumps(manifest(folder)))
    return folder


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "a-model")
