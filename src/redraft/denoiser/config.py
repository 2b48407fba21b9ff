"""Shape and conventions of one denoiser, as written in config.json. Needs no torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.errors import RequestError

LAYOUTS = ("causal_context", "block_causal", "full")


@dataclass(frozen=True)
class DenoiserConfig:
    """One transformer in two roles. Sizes carry transformers' names so that a config reads like any other.

    layout: how rows see one another (see `layouts`). canvas_length: slots denoised together by default.
    shift: row i predicts position i + 1 (an AR base's habit) in place of i.
    attention_bias: q, k and v projections have a bias (Qwen2). qk_norm: RMSNorm on each head's q and k (Qwen3).
    self_conditioning: canvas rows also read the last step's expectation (DiffusionGemma).
    canvas_rows_marked: canvas rows carry a learnt embedding of their role, locked slots another; False for
    checkpoints of other families, which tell noise from text by the mask token alone.
    eos_token_ids end an answer; mask_token_id and null_token_id (an empty slot, dropped at commit) are never
    predicted by the encode role.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = True
    self_conditioning: bool = False
    canvas_rows_marked: bool = True
    layout: str = "causal_context"
    canvas_length: int = 16
    shift: bool = False
    mask_token_id: int | None = None
    null_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    model_type: str = "redraft"

    def __post_init__(self) -> None:
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))
        if self.layout not in LAYOUTS:
            raise RequestError(f"config: layout {self.layout!r} is unknown; one of {', '.join(LAYOUTS)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise RequestError("config: num_attention_heads must be a multiple of num_key_value_heads")
        if self.head_dim % 2:
            raise RequestError("config: head_dim must be even (rotary embedding)")
        for name in ("mask_token_id", "null_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise RequestError(f"config: {name} {token} lies outside the vocabulary of {self.vocab_size}")

    @property
    def special_slot_ids(self) -> tuple[int, ...]:
        """Tokens that exist on a canvas only and that AR never predicts."""
        return tuple(t for t in (self.mask_token_id, self.null_token_id) if t is not None)

    def to_dict(self) -> dict[str, Any]:
        out = dataclasses.asdict(self)
        out["eos_token_ids"] = list(self.eos_token_ids)
        return out

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> DenoiserConfig:
        """Raises RequestError when a size is missing or of the wrong type; unknown keys are ignored."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        known = {k: v for k, v in raw.items() if k in fields}
        missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in known]
        if missing:
            raise RequestError(f"config.json lacks {', '.join(missing)}")
        for name, value in known.items():
            if fields[name].type == "int" and not (isinstance(value, int) and value > 0):
                raise RequestError(f"config.json: {name} must be a positive whole number, not {value!r}")
        return cls(**known)

    @classmethod
    def load(cls, folder: str | Path) -> DenoiserConfig:
        path = Path(folder) / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RequestError(f"{folder} has no config.json: not a model directory") from None
        except (OSError, ValueError) as error:
            raise RequestError(f"{path} can't be read as JSON: {error}") from None
        return cls.from_dict(raw)
