"""Dream, Dream-Coder, DreamOn and DiffuCoder: Qwen2's network and its shift, full attention."""

from __future__ import annotations

from redraft.denoiser.families.family import Family, Raw
from redraft.denoiser.families.qwen2 import qwen2_shape
from redraft.denoiser.families.special_tokens import SpecialTokens


def translate(raw: Raw, tokens: SpecialTokens) -> Raw:
    ends = tokens.ends(raw, "<|im_end|>")
    own = {"layout": "full", "shift": True, "canvas_length": 32, "eos_token_ids": ends}
    return qwen2_shape(raw, tokens) | own


FAMILY = Family("dream", (("DreamModel", "Dream"),), translate)
