"""From a run's last checkpoint to a model folder that can be given away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from redraft.denoiser import adapters, checkpoint
from redraft.denoiser.adapter_config import ADAPTER_WEIGHTS, AdapterConfig
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.transformer import Denoiser
from redraft.errors import RequestError
from redraft.files import MANIFEST, seal, sha256, write_atomically
from redraft.hub.catalogue import BASES, PINNED
from redraft.hub.runs import newest
from redraft.training.checkpoints import TOKENIZER_FILES
from redraft.training.data import make_folder

LARGEST = 16 << 20  # bytes of an adapter that a repository carries


def average(model: Denoiser, other: Denoiser, share: float) -> Denoiser:
    """model's weights moved towards `other`, which it was trained on from: share of model's own, 0..1.

    Weights on one training path may be averaged (Wortsman et al., 2022, "robust fine-tuning"): this wins back most of
    what learning to draft cost the AR self. The draft token, which `other` may not know, stays as it is.
    """
    weights, theirs = checkpoint.state_dict(model), checkpoint.state_dict(other)  # a tied head is there once
    draft = model.config.draft_token_id
    with torch.no_grad():
        for name, value in weights.items():
            mixed = share * value + (1 - share) * theirs[name]
            if draft is not None and name in ("model.embed_tokens.weight", "lm_head.weight"):
                mixed[draft] = value[draft]
            value.copy_(mixed)
    return model


def ship(
    run: str | Path,
    out: str | Path,
    generation: dict[str, Any],
    before: str | Path | None = None,
    share: float = 1.0,
) -> Path:
    """Writes weights in bfloat16, config, tokenizer, generation_config.json and manifest.json into `out`.

    run: a run's folder (its last complete checkpoint is taken) or a model folder. generation: the defaults of
    generation_config.json. before, share: the run that this one went on from, and how much of this one to keep (see
    `average`). A model card that lies in `out` stays and is listed in the manifest. Raises RequestError
    for a folder without a model, RedraftError when `out` can't be written.
    """
    source, folder = newest(run), Path(out)
    model = checkpoint.load(source)
    if before is not None:
        model = average(model, checkpoint.load(newest(before)), share)
    checkpoint.save(model, folder, torch.bfloat16)
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, folder / name)
    write_atomically(folder / "generation_config.json", (json.dumps(generation, indent=2) + "\n").encode())
    seal(folder)
    return folder


def ship_adapter(run: str | Path, out: str | Path, generation: dict[str, Any]) -> Path:
    """Writes an adapter in bfloat16, its configs, generation_config.json and manifest.json into `out`; its tokenizer is
    the base's.

    run: an adaptation's folder (its last complete checkpoint is taken) or an adapter's. generation: as in `ship`;
    canvas_length and draft_length are the adapter's own unless given. A model card that lies in `out` stays. Raises
    RequestError for what is no adapter, or one of more than LARGEST bytes or on a base that has no name.
    """
    source, folder = newest(run), Path(out)
    settings = AdapterConfig.read(source)
    if settings.base not in BASES or settings.layers is not None:
        raise RequestError(f"{source} goes on {settings.base}, no whole base that others can fetch by name")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(source / ADAPTER_WEIGHTS).items()}
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    if size > LARGEST:
        raise RequestError(
            f"the adapter takes {size / 2**20:.1f} MiB, more than the {LARGEST >> 20} that are carried"
        )
    make_folder(folder)
    adapters.write(tensors, settings, DenoiserConfig.load(source), folder)
    own = {"canvas_length": settings.canvas_length, "draft_length": settings.canvas_length}
    write_atomically(
        folder / "generation_config.json", (json.dumps(own | generation, indent=2) + "\n").encode()
    )
    seal(folder)
    return folder


def pin(folder: Path, catalogue: Path = PINNED) -> None:
    """Enters a shipped adapter, as it is now, into the catalogue of those that are fetched by name."""
    raw = json.loads(catalogue.read_text(encoding="utf-8"))
    raw[folder.name] = {"base": AdapterConfig.read(folder).base, "manifest": sha256(folder / MANIFEST)}
    write_atomically(catalogue, (json.dumps(raw, indent=2) + "\n").encode())
