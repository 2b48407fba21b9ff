"""From a run's last checkpoint to a model folder that can be given away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from redraft.denoiser import checkpoint
from redraft.files import MANIFEST, manifest, write_atomically
from redraft.hub.runs import newest
from redraft.training.checkpoints import TOKENIZER_FILES


def ship(run: str | Path, out: str | Path, generation: dict[str, Any]) -> Path:
    """Writes weights in bfloat16, config, tokenizer, generation_config.json and manifest.json into `out`.

    run: a run's folder (its last complete checkpoint is taken) or a model folder. generation: the defaults of
    generation_config.json. A model card that lies in `out` stays and is listed in the manifest. Raises RequestError
    for a folder without a model, RedraftError when `out` can't be written.
    """
    source, folder = newest(run), Path(out)
    model = checkpoint.load(source)
    checkpoint.save(model, folder, torch.bfloat16)
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, folder / name)
    write_atomically(folder / "generation_config.json", (json.dumps(generation, indent=2) + "\n").encode())
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Writes manifest.json anew: size and sha256 of every file, which loading checks."""
    write_atomically(folder / MANIFEST, (json.dumps(manifest(folder), indent=2) + "\n").encode())
