"""From a run's last checkpoint to a model folder that can be given away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from redraft.denoiser import checkpoint
from redraft.denoiser.transformer import Denoiser
from redraft.files import seal, write_atomically
from redraft.hub.runs import newest
from redraft.training.checkpoints import TOKENIZER_FILES


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
