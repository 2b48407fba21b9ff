"""A tiny AR base in a store of its own, a text that it can be adapted on, and the recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

import redraft
from redraft.denoiser import adapters, checkpoint
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.transformer import Denoiser
from redraft.hub import store
from redraft.hub.runs import complete
from redraft.training.adaptation_recipe import AdaptRecipe
from redraft.training.data import prepare
from redraft.training.recipe import Prepare
from tests.hub.conftest import TEMPLATE, byte_level

NAME = "tiny-base"
EOS = 0


def make_base(spare: int = 2, seed: int = 0, **changes: Any) -> Path:
    """A random network with byte_level's tokenizer; `spare` rows of its embedding lie past the vocabulary."""
    tokenizer = byte_level()
    sizes: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size() + spare,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "canvas_rows_marked": False,
        "eos_token_ids": (EOS,),
    }
    model = Denoiser(DenoiserConfig(**(sizes | changes)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            centre = {"model.norm.weight": 2.0}.get(name, 1.0 if "norm" in name else 0.0)  # sure of itself
            spread = 0.4 if "embed" in name else 0.2
            p.copy_(centre + spread * torch.randn(p.shape, generator=generator))
    folder = store.local_root() / NAME
    checkpoint.save(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


def make_data(folder: Path, documents: int = 24) -> Path:
    """Letters in the order of the alphabet, from anywhere on: what comes next is no secret."""
    letters = "abcdefghijklmnopqrstuvwxyz" * 3
    path = folder / "letters.jsonl"
    texts = [letters[i % 26 : i % 26 + 40] for i in range(documents)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = folder / "data"
    prepare(Prepare(sources=[{"path": str(path)}], tokenizer=NAME, holdout=4), data)  # type: ignore[list-item]
    return data


def recipe(data: Path, **changes: Any) -> AdaptRecipe:
    """changes: of the sections train, canvas, losses, adapter, optimizer and base; and method."""
    raw: dict[str, Any] = {
        "name": "toy",
        "data": str(data),
        "base": {"name": NAME},
        "adapter": {"rank": 8},
        "canvas": {"length": 6, "per_row": 4},
        "optimizer": {"learning_rate": 0.02, "ema": 0.9},
        "train": {
            "steps": 4,
            "batch_rows": 4,
            "row_length": 48,
            "threads": 1,
            "device": "cpu",
            "log_every": 1,
            "evaluate_every": 100,
            "evaluate_rows": 4,
            "save_every": 2,
            "sample_prompts": [],
        },
    }
    for name, section in changes.items():
        raw[name] = raw.get(name, {}) | section if isinstance(section, dict) else section
    return AdaptRecipe.model_validate(raw)


def torchrun(own: AdaptRecipe, folder: Path, *more: str) -> subprocess.Popen[str]:
    """Two processes that adapt by this recipe into `folder`, with these arguments besides."""
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(own.model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["-m", "redraft.cli", "adapt", str(path), "--out", str(folder), "--plain", *more]
    environment = os.environ | {"PYTHONPATH": str(Path(redraft.__file__).parents[1])}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What they told; they must have ended well."""
    told, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, told
    return told


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a run's last checkpoint: those being trained, and the average by its own names."""
    last = complete(folder)[-1]
    held = load_file(last / "training_state" / "weights.safetensors")
    (own,) = (p for p in (last / "adapter_model.safetensors", last / "model.safetensors") if p.exists())
    return held | {f"average/{name}": value for name, value in load_file(own).items()}


def shake(model: Denoiser) -> None:
    """Random numbers onto the adapter's: an untrained one hides what goes wrong in it."""
    with torch.no_grad():
        for p in adapters.adapter_of(model).parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
