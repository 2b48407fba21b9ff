"""A model folder with tiny random weights: it writes nonsense, by the same code as any other model."""

from __future__ import annotations

import json
from pathlib import Path

from redraft.denoiser import checkpoint
from redraft.files import manifest
from tests.engine.models import network
from tests.hub.conftest import TEMPLATE, byte_level


def write_network(folder: Path, **changes: object) -> Path:
    """Context of 192 tokens, canvases of 8 slots; the effort level "instant" takes two steps a canvas."""
    fast = byte_level()
    sizes = {
        "vocab_size": fast.get_vocab_size(),
        "mask_token_id": fast.token_to_id("<|mask|>"),
        "null_token_id": fast.token_to_id("<|null|>"),
        "eos_token_ids": (fast.token_to_id("<|eos|>"), fast.token_to_id("<|user|>")),
    }
    checkpoint.save(network(seed=1, **(sizes | changes)), folder)
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    generation = {
        "canvas_length": 8,
        "threshold": 0.4,
        "max_new_tokens": 24,
        "temperature": 0.7,
        "effort": {"instant": {"max_steps": 2}},
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "manifest.json").write_text(json.dumps(manifest(folder)))
    return folder
