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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from redraft.denoiser import checkpoint
from redraft.denoiser.transformer import Denoiser
from redraft.errors import RedraftError, RequestError
from redraft.hub.runs import complete
from redraft.training import sharding
from redraft.training.optim import Ema

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
STATE = "training_state"


Net = TypeVar("Net", bound=torch.nn.Module)


@dataclass
class TrainingState(Generic[Net]):
    """Everything that changes while a run goes on. model: what is trained. seconds: time trained so far, over all its
    sessions."""

    model: Net
    ema: Ema
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0


def names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.nn.Parameter]]:
    """The optimizer's parameters by the model's names."""
    by_id = {id(p): n for n, p in model.named_parameters()}
    return [(by_id[id(p)], p) for g in optimizer.param_groups for p in g["params"]]


def save(state: TrainingState[Denoiser], folder: Path, data: Path, recipe: dict[str, Any], keep: int) -> Path:
    """Writes step-NNNNNN and removes all but the newest `keep`. Raises RedraftError (disk full), the old ones kept."""

    def fill(part: Path) -> None:
        averaged = {k: v for k, v in state.ema.shadow.items() if not _tied(state.model, k)}
        checkpoint.save_weights(part / checkpoint.WEIGHTS, averaged)
        checkpoint.write_atomically(part / "config.json", state.model.config.to_json().encode())
        copy_tokenizer(data, part)
        write_state(state, checkpoint.state_dict(state.model), moments(state), part, recipe)

    return write_step(folder, state.step, keep, fill)


def write_step(folder: Path, step: int, keep: int, fill: Callable[[Path], None]) -> Path:
    """Lets `fill` write a folder, which then appears as step-NNNNNN, and removes all but the newest `keep` of those.

    Raises RedraftError (disk full), nothing removed.
    """
    final = folder / f"step-{step:06d}"
    part = folder / f".{final.name}.part"
    for stale in folder.glob(".step-*.part"):  # a run was killed while it wrote
        shutil.rmtree(stale, ignore_errors=True)
    try:
        (part / STATE).mkdir(parents=True)
        fill(part)
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


def copy_tokenizer(data: Path, folder: Path) -> None:
    """The tokenizer's files of prepared data beside a checkpoint's weights."""
    for name in TOKENIZER_FILES:
        if (data / name).exists():
            shutil.copyfile(data / name, folder / name)


def moments(state: TrainingState[Any]) -> dict[str, torch.Tensor]:
    """What the optimizers remember, by number, parameter and name. Of shares all processes must ask for it."""
    return sharding.gathered(
        {
            f"{i}/{name}/{key}": value
            for i, optimizer in enumerate(state.optimizers)
            for name, p in names(state.model, optimizer)
            for key, value in optimizer.state[p].items()
        }
    )


def write_state(
    state: TrainingState[Any],
    weights: dict[str, torch.Tensor],
    optimizer: dict[str, torch.Tensor],
    folder: Path,
    recipe: dict[str, Any],
) -> None:
    """What a resumed run needs, into the checkpoint's folder. optimizer: of `moments`."""
    inner = folder / STATE
    checkpoint.save_weights(inner / "weights.safetensors", weights)
    checkpoint.save_weights(inner / "optimizer.safetensors", optimizer)
    about = {
        "step": state.step,
        "seconds": state.seconds,
        "ema_updates": state.ema.updates,
        "recipe": recipe,
    }
    checkpoint.write_atomically(inner / "state.json", json.dumps(about, indent=2).encode())


@dataclass(frozen=True)
class Stored:
    """What `write_state` or `portable.fill` wrote, read back in float32. weights: none where a checkpoint's own are the
    ones being trained."""

    step: int
    seconds: float
    updates: int
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]

    @classmethod
    def read(cls, folder: Path) -> Stored:
        """Raises RequestError when the folder can't be resumed from."""
        inner = folder / STATE
        try:
            about = json.loads((inner / "state.json").read_text())
            return cls(
                int(about["step"]),
                float(about["seconds"]),
                int(about["ema_updates"]),
                {} if about.get("portable") else load_file(inner / "weights.safetensors"),
                _parts(inner, bool(about.get("portable"))),
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise RequestError(
                f"{folder} can't be resumed from ({error}); remove it to resume from an older one"
            ) from None

    def restore(self, state: TrainingState[Any]) -> None:
        """Counters and optimizers; the weights are for the caller to place."""
        device = next(state.model.parameters()).device
        for i, optimizer in enumerate(state.optimizers):
            for name, p in names(state.model, optimizer):
                prefix = f"{i}/{name}/"
                held = {k.removeprefix(prefix): v for k, v in self.optimizer.items() if k.startswith(prefix)}
                # Fused AdamW wants its step counter where the parameter lives.
                optimizer.state[p] = {k: sharding.placed(p, v.to(device)) for k, v in held.items()}
        state.step, state.seconds, state.ema.updates = self.step, self.seconds, self.updates


def _parts(inner: Path, several: bool) -> dict[str, torch.Tensor]:
    """The optimizer's tensors, of one file or several."""
    if not several:
        return load_file(inner / "optimizer.safetensors")
    merged: dict[str, torch.Tensor] = {}
    for path in sorted(inner.glob("optimizer-*.safetensors")):
        merged |= {name: tensor.float() for name, tensor in load_file(path).items()}
    return merged


def _tied(model: Denoiser, name: str) -> bool:
    return model.config.tie_word_embeddings and name == "lm_head.weight"


def restore(state: TrainingState[Denoiser], folder: Path) -> None:
    """Continues `state` from a checkpoint folder; raises RequestError when it does not belong to this model."""
    stored = Stored.read(folder)
    try:
        averaged = load_file(folder / checkpoint.WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RequestError(
            f"{folder} can't be resumed from ({error}); remove it to resume from an older one"
        ) from None
    averaged = checkpoint.fitting(state.model, averaged, str(folder))
    with torch.no_grad():
        checkpoint.load_into(state.model, stored.weights, str(folder / STATE))
    for name, value in state.ema.shadow.items():
        source = "model.embed_tokens.weight" if _tied(state.model, name) else name
        value.copy_(averaged[source])
    stored.restore(state)
