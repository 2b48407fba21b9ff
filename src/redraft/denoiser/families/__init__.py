"""Checkpoints of other families, read as they were published: no conversion, no remote code.

A family is one file with a FAMILY and one line in FAMILIES. Reading a config needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.denoiser.config import DenoiserConfig, read_config
from redraft.denoiser.families import dream, fast_dllm, llada, llama, qwen2, qwen3, sdar, tiny_a2d
from redraft.denoiser.families.family import Family, Raw
from redraft.denoiser.families.special_tokens import SpecialTokens
from redraft.errors import RequestError

if TYPE_CHECKING:
    import torch

    from redraft.denoiser.transformer import Denoiser

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    llada.FAMILY,
    dream.FAMILY,
    sdar.FAMILY,
    fast_dllm.FAMILY,
    tiny_a2d.FAMILY,
)


def identify(raw: Raw, source: str = "config.json") -> Family | None:
    """The family of a config.json, None for our own. RequestError for any other network, naming what is supported."""
    model_type = raw.get("model_type")
    if model_type == "redraft":
        return None
    architectures = raw.get("architectures") or ["a network"]
    for family in FAMILIES:
        if any((architecture, model_type) in family.networks for architecture in architectures):
            return family
    known = ", ".join(architecture for family in FAMILIES for architecture, _ in family.networks)
    experts = " (mixture of experts)" if _has_experts(raw) else ""
    if model_type is None and not raw.get("architectures"):
        raise RequestError(f"{source}: names neither model_type nor architectures, so it's no model's config")
    found = f"{architectures[0]} with model_type {model_type!r}{experts}"
    raise RequestError(f"{source}: {found} is not supported; redraft reads its own models and {known}")


def load_config(folder: str | Path, **overrides: Any) -> DenoiserConfig:
    """config.json of ours or of another family as a DenoiserConfig.

    overrides: fields that the folder gets wrong or can't know, as for a diffusion model that was saved as its AR base:
    `load_config(folder, layout="full", shift=True)`. Raises RequestError.
    """
    raw = read_config(folder)
    family = identify(raw, str(folder))
    if family is None:
        return DenoiserConfig.from_dict(raw | overrides)
    fields = family.translate(raw, SpecialTokens(folder)) | overrides
    for name in family.needs:
        if fields.get(name) is None:
            where = "config.json and the tokenizer's files" if name == "mask_token_id" else "config.json"
            raise RequestError(
                f"{folder} is a {family.name} model whose {where} don't tell its {name}: give {name}"
            )
    return DenoiserConfig.from_dict(fields)


def load(folder: str | Path, dtype: torch.dtype | None = None, **overrides: Any) -> Denoiser:
    """A denoiser in eval mode from a folder of ours or of another family; dtype None is float32. See load_config."""
    import torch

    from redraft.denoiser import checkpoint

    config = load_config(folder, **overrides)
    family = identify(read_config(folder))
    tensors = checkpoint.read_tensors(folder)
    if family is not None:
        renamed = {family.rename(name): tensor for name, tensor in tensors.items()}
        tensors = {name: tensor for name, tensor in renamed.items() if name is not None}
    return checkpoint.build(config, tensors, str(folder), dtype or torch.float32)


def _has_experts(raw: Raw) -> bool:
    nested = raw.get("text_config")
    places = [raw, nested] if isinstance(nested, dict) else [raw]
    return any("expert" in key and value for place in places for key, value in place.items())
