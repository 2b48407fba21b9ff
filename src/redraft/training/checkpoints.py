"""Checkpoints of a run: a model anyone can load, and beside it all that a resumed run needs, written as one folder.

    step-000500/                 config.json, model.safetensors (averaged weights), tokenizer files
    step-000500/training_state/  weights.safetensors, optimizer.safetensors, state.json

A folder appears under its name only when it is complete. There is no RNG to store: every draw is keyed by
(seed, step, row), so weights, averages, optimizer and step say everything.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from redraft.denoiser import checkpoint
from redraft.denoiser.transformer import Denoiser
from redraft.errors import RedraftError, RequestError
from redraft.hub.runs import complete
from redraft.training.optim import Ema

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass
class TrainingState:
    """Everything that changes while a run goes on. seconds: time trained so far, over all its sessions."""

    model: Denoiser
    ema: Ema
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0


def names(model: Denoiser, optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.nn.Parameter]]:
    """The optimizer's parameters by the model's names."""
    by_id = {id(p): n for n, p in model.named_parameters()}
    return [(by_id[id(p)], p) for g in optimizer.param_groups for p in g["params"]]


def save(state: TrainingState, folder: Path, data: Path, recipe: dict[str, Any], keep: int) -> Path:
    """Writes step-NNNNNN and removes all but the newest `keep`. Raises RedraftError (disk full), the old ones kept."""
    final = folder / f"step-{state.step:06d}"
    part = folder / f".{final.name}.part"
    for stale in folder.glob(".step-*.part"):  # a run was killed while it wrote
        shutil.rmtree(stale, ignore_errors=True)
    try:
        (part / "training_state").mkdir(parents=True)
        averaged = {k: v for k, v in state.ema.shadow.items() if not _tied(state.model, k)}
        checkpoint.save_weights(part / checkpoint.WEIGHTS, averaged)
        config = json.dumps(state.model.config.to_dict(), indent=2) + "\n"
        checkpoint.write_atomically(part / "config.json", config.encode())
        for name in TOKENIZER_FILES:
            if (data / name).exists():
                shutil.copyfile(data / name, part / name)
        checkpoint.save_weights(
            part / "training_state" / "weights.safetensors", checkpoint.state_dict(state.model)
        )
        tensors = {
            f"{i}/{name}/{key}": value
            for i, optimizer in enumerate(state.optimizers)
            for name, p in names(state.model, optimizer)
            for key, value in optimizer.state[p].items()
        }
        checkpoint.save_weights(part / "training_state" / "optimizer.safetensors", tensors)
        about = {
            "step": state.step,
            "seconds": state.seconds,
            "ema_updates": state.ema.updates,
            "recipe": recipe,
        }
        checkpoint.write_atomically(
            part / "training_state" / "state.json", json.dumps(about, indent=2).encode()
        )
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
    except (OSError, RedraftError) as error:
        shutil.rmtree(part, ignore_errors=True)
        what = str(error)
        if isinstance(error, OSError):
            what = f"{final} could not be written: {error.strerror or error}"
        good = complete(folder)
        then = f"; {good[-1]} is good: --resume goes on from it" if good else ""
        raise RedraftError(what.replace(str(part), str(final)) + then) from None
    for old in complete(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _tied(model: Denoiser, name: str) -> bool:
    return model.config.tie_word_embeddings and name == "lm_head.weight"


def restore(state: TrainingState, folder: Path) -> None:
    """Continues `state` from a checkpoint folder; raises RequestError when it does not belong to this model."""
    inner = folder / "training_state"
    try:
        about = json.loads((inner / "state.json").read_text())
        step, seconds, updates = int(about["step"]), float(about["seconds"]), int(about["ema_updates"])
        weights, averaged = load_file(inner / "weights.safetensors"), load_file(folder / checkpoint.WEIGHTS)
        saved = load_file(inner / "optimizer.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RequestError(
            f"{folder} can't be resumed from ({error}); remove it to resume from an older one"
        ) from None
    averaged = checkpoint.fitting(state.model, averaged, str(folder))
    with torch.no_grad():
        checkpoint.load_into(state.model, weights, str(inner))
    device = next(state.model.parameters()).device
    for name, value in state.ema.shadow.items():
        source = "model.embed_tokens.weight" if _tied(state.model, name) else name
        value.copy_(averaged[source])
    for i, optimizer in enumerate(state.optimizers):
        for name, p in names(state.model, optimizer):
            prefix = f"{i}/{name}/"
            held = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
            # Fused AdamW wants its step counter where the parameter lives.
            optimizer.state[p] = {k: v.to(device) for k, v in held.items()}
    state.step, state.seconds, state.ema.updates = step, seconds, updates
