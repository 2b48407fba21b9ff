"""What an adaptation trains and keeps: a gated adapter beside a frozen base, or all weights of a copy of the base."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from redraft.denoiser import adapters, checkpoint, families
from redraft.denoiser.adapter_config import ADAPTER_WEIGHTS
from redraft.denoiser.transformer import Denoiser
from redraft.errors import RequestError
from redraft.files import write_atomically
from redraft.hub.store import ModelFolder
from redraft.training import adaptation_start as start
from redraft.training import sharding
from redraft.training.adaptation_recipe import AdaptRecipe


class Method(Protocol):
    """One way of adapting; see the classes."""

    def network(self, recipe: AdaptRecipe, base: ModelFolder, device: torch.device) -> Denoiser:
        """What training begins with. Raises RequestError for a base that can't be adapted so."""

    def trained(self, model: Denoiser) -> nn.Module:
        """The part whose parameters learn."""

    def tensors(self, model: Denoiser) -> dict[str, Tensor]:
        """They by the names that they have in a checkpoint's file, whole: copies. All processes must ask for it."""

    def weights(self, model: Denoiser) -> dict[str, Tensor]:
        """They by the names that a resumed run finds them by, whole. All processes must ask for it."""

    def load(self, model: Denoiser, weights: dict[str, Tensor], source: str) -> None:
        """Puts these in their places. Raises RequestError for those of another network."""

    def write(self, tensors: dict[str, Tensor], model: Denoiser, folder: Path) -> None:
        """A checkpoint's weights and configs into `folder`, which must exist."""

    def read(self, model: Denoiser, folder: Path) -> None:
        """A checkpoint's weights into the model. Raises RequestError for one that doesn't fit."""


class AdapterMethod:
    """A gated adapter (see denoiser.adapters): the AR mode stays the base's, bit for bit."""

    def network(self, recipe: AdaptRecipe, base: ModelFolder, device: torch.device) -> Denoiser:
        return start.network(recipe, base, device)

    def trained(self, model: Denoiser) -> nn.Module:
        return adapters.adapter_of(model)

    def tensors(self, model: Denoiser) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in adapters.adapter_of(model).named_tensors().items()}

    def weights(self, model: Denoiser) -> dict[str, Tensor]:
        return dict(adapters.adapter_of(model).state_dict())

    def load(self, model: Denoiser, weights: dict[str, Tensor], source: str) -> None:
        try:
            adapters.adapter_of(model).load_state_dict(weights)
        except RuntimeError:
            raise RequestError(f"{source} is of another adapter than the recipe's: start anew") from None

    def write(self, tensors: dict[str, Tensor], model: Denoiser, folder: Path) -> None:
        adapters.write(tensors, adapters.adapter_of(model).settings, model.config, folder)

    def read(self, model: Denoiser, folder: Path) -> None:
        adapters.read_into(adapters.adapter_of(model), folder / ADAPTER_WEIGHTS)


class FullMethod:
    """All weights, of a copy of the base that has embeddings for the canvas's rows besides. A checkpoint is a model of
    its own, which needs no base."""

    def network(self, recipe: AdaptRecipe, base: ModelFolder, device: torch.device) -> Denoiser:
        """float32, whatever products are computed in: the optimizer's small steps would be lost in bfloat16."""
        settings = start.adapter_config(recipe, base)
        bare = adapters.cut(families.load(base.path), settings.layers)
        start.check_fit(recipe, bare.config)
        if not bare.config.autoregressive_only:
            raise RequestError(f"{base.name} denoises already: train it on with redraft train")
        config = dataclasses.replace(settings.adapted(bare.config), canvas_rows_marked=True)
        tensors = checkpoint.state_dict(bare)
        for name in ("canvas_embedding", "locked_embedding"):
            tensors[f"model.{name}"] = torch.zeros(config.hidden_size)
        model = checkpoint.build(config, tensors, str(base.path)).train()
        table = model.model.embed_tokens.weight
        generator = torch.Generator().manual_seed(recipe.train.seed)
        with torch.no_grad():
            mean, spread = table.mean(0), table.std(0)
            for token in config.special_slot_ids:  # as an adapter's slots begin
                table[token] = mean + spread * torch.randn(mean.shape, generator=generator)
        return model.to(device)

    def trained(self, model: Denoiser) -> nn.Module:
        return model

    def tensors(self, model: Denoiser) -> dict[str, Tensor]:
        return sharding.gathered({k: v.clone() for k, v in checkpoint.state_dict(model).items()})

    def weights(self, model: Denoiser) -> dict[str, Tensor]:
        return sharding.gathered(checkpoint.state_dict(model))

    def load(self, model: Denoiser, weights: dict[str, Tensor], source: str) -> None:
        with torch.no_grad():
            checkpoint.load_into(model, weights, source)

    def write(self, tensors: dict[str, Tensor], model: Denoiser, folder: Path) -> None:
        checkpoint.save_weights(folder / checkpoint.WEIGHTS, tensors)
        write_atomically(folder / "config.json", model.config.to_json().encode())

    def read(self, model: Denoiser, folder: Path) -> None:
        try:
            tensors = load_file(folder / checkpoint.WEIGHTS)
        except (OSError, SafetensorError) as error:
            told = f"{folder} can't be resumed from ({error}); remove it to go on from an older one"
            raise RequestError(told) from None
        self.load(model, tensors, str(folder))


METHODS: dict[str, Method] = {"adapter": AdapterMethod(), "full": FullMethod()}


def frozen_base(recipe: AdaptRecipe, base: ModelFolder, device: torch.device) -> Denoiser | None:
    """The base as it is, for what is to stay near to it; None where the recipe asks for no such loss."""
    if recipe.method != "full" or not recipe.losses.keep:
        return None
    dtype = torch.bfloat16 if device.type == "cuda" or recipe.train.bfloat16 else torch.float32
    return adapters.cut(families.load(base.path, dtype), recipe.base.layers).requires_grad_(False).to(device)
