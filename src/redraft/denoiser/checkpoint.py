"""A denoiser on disk: Hugging Face's directory layout, safetensors only, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.shards import INDEX, WEIGHTS, Entry, read_entries
from redraft.denoiser.transformer import Denoiser
from redraft.errors import RedraftError, RequestError
from redraft.files import manifest, sha256, write_atomically

__all__ = [
    "INDEX",
    "WEIGHTS",
    "build",
    "fitting",
    "load",
    "load_into",
    "manifest",
    "read_tensors",
    "save",
    "save_weights",
    "sha256",
    "state_dict",
    "write_atomically",
]

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool, "U8": torch.uint8},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
}


def save_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """safetensors, atomically; raises RedraftError when the disk is full or the folder can't be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, temporary, {"format": "pt"})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):  # as on a read-only disk; the first error is the one to tell
            temporary.unlink()
        raise RedraftError(f"{path} could not be written: {_reason(error)}") from None


def _reason(error: OSError | SafetensorError) -> str:
    """The system's own words ("No space left on device"), without what safetensors puts around them."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return re.sub(r"^Error while serializing: I/O error: (.*) \(os error \d+\)$", r"\1", str(error))


def state_dict(model: Denoiser, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Parameters by name, a tied head left out."""
    tied = model.config.tie_word_embeddings
    return {
        k: v.detach() if dtype is None else v.detach().to(dtype)
        for k, v in model.state_dict().items()
        if not (tied and k == "lm_head.weight")
    }


def save(model: Denoiser, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """config.json and model.safetensors into `folder` (made if absent)."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder} can't be made: {error.strerror}") from None
    save_weights(folder / WEIGHTS, state_dict(model, dtype))
    write_atomically(folder / "config.json", model.config.to_json().encode())


def read_tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of model.safetensors, or of the shards that its index lists; they may share memory with the file.

    Raises RequestError as read_entries does, and for a dtype that torch has no name for.
    """
    return {name: _tensor(entry) for name, entry in read_entries(folder).items()}


def _tensor(entry: Entry) -> torch.Tensor:
    if entry.dtype not in DTYPES:
        raise RequestError(f"{entry.path}: {entry.name} is {entry.dtype}; redraft reads {', '.join(DTYPES)}")
    return torch.from_numpy(entry.data).view(DTYPES[entry.dtype]).reshape(entry.shape)


def fitting(model: Denoiser, tensors: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """The tensors that the model wants, checked: RequestError on a missing, surplus or misshapen one."""
    own = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        own.pop("lm_head.weight", None)
        tensors = {k: v for k, v in tensors.items() if k != "lm_head.weight"}
    missing, surplus = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"holds {surplus[0]}, which the config has no place for"
        raise RequestError(f"{source} {what}: config.json and weights don't belong together")
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            shapes = f"{list(tensors[name].shape)} where the config wants {list(parameter.shape)}"
            raise RequestError(f"{source}: {name} is {shapes}")
    return tensors


def load_into(model: Denoiser, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Copies tensors into the model in its dtype; raises RequestError on a missing, surplus or misshapen one."""
    own = model.state_dict()
    for name, tensor in fitting(model, tensors, source).items():
        own[name].copy_(tensor)


def build(
    config: DenoiserConfig, tensors: dict[str, torch.Tensor], source: str, dtype: torch.dtype = torch.float32
) -> Denoiser:
    """A denoiser in eval mode with these weights. Draws no random numbers; holds each weight once, in `dtype`."""
    with torch.device("meta"):
        model = Denoiser(config)
    # Copies: what read_tensors gives may be a view of the mapped file, which others can overwrite.
    own = {name: t.to(dtype, copy=True) for name, t in fitting(model, tensors, source).items()}
    model.load_state_dict(own, strict=False, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def load(
    folder: str | Path, dtype: torch.dtype = torch.float32, config: DenoiserConfig | None = None
) -> Denoiser:
    """A denoiser in eval mode from a folder of ours (`families.load` reads other families' too)."""
    return build(config or DenoiserConfig.load(folder), read_tensors(folder), str(folder), dtype)
