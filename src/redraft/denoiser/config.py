"""Shape and conventions of one denoiser, as written in config.json. Needs no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.denoiser.rotary import RopeScaling
from redraft.errors import RequestError

LAYOUTS = ("causal_context", "block_causal", "full")


@dataclass(frozen=True)
class DenoiserConfig:
    """One transformer in two roles. Sizes carry transformers' names so that a config reads like any other.

    layout: how rows see one another (see `layouts`). canvas_length: slots denoised together by default.
    shift: row i predicts position i + 1 (an AR base's habit) in place of i.
    rope_scaling: stretched rotary frequencies (see `rotary`); partial_rotary_factor: the share of each head that turns.
    attention_bias: q, k and v projections have a bias (Qwen2). qk_norm: RMSNorm on each head's q and k (Qwen3).
    self_conditioning: canvas rows also read the last step's expectation (DiffusionGemma).
    canvas_rows_marked: canvas rows carry a learnt embedding of their role, locked slots another; False for
    checkpoints of other families, which tell noise from text by the mask token alone.
    canvas_entry: number of the layer at which open and empty slots enter (see adapters.Slots); None: the first.
    eos_token_ids end an answer. mask_token_id: an open slot, behind which the canvas is calibrated; draft_token_id: one
    behind which it was distilled to guess what its AR self would write, surer and less diverse; null_token_id: an empty
    slot, dropped at commit. The encode role never predicts these three.
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
    rope_scaling: RopeScaling | None = None
    partial_rotary_factor: float = 1.0
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = True
    self_conditioning: bool = False
    canvas_rows_marked: bool = True
    canvas_entry: int | None = None
    layout: str = "causal_context"
    canvas_length: int = 16
    shift: bool = False
    mask_token_id: int | None = None
    null_token_id: int | None = None
    draft_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    model_type: str = "redraft"

    def __post_init__(self) -> None:
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))
        if self.layout not in LAYOUTS:
            raise RequestError(f"config: layout {self.layout!r} is unknown; one of {', '.join(LAYOUTS)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise RequestError("config: num_attention_heads must be a multiple of num_key_value_heads")
        if self.head_dim % 2 or self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise RequestError("config: head_dim and its rotary part must be even (rotary embedding)")
        for name in ("mask_token_id", "null_token_id", "draft_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise RequestError(f"config: {name} {token} lies outside the vocabulary of {self.vocab_size}")
        if self.canvas_entry is not None and not 0 < self.canvas_entry < self.num_hidden_layers:
            raise RequestError(
                f"config: canvas_entry {self.canvas_entry} is no layer behind the first of {self.num_hidden_layers}"
            )
        outside = [t for t in self.eos_token_ids if not 0 <= t < self.vocab_size]
        if outside:
            raise RequestError(
                f"config: eos token {outside[0]} lies outside the vocabulary of {self.vocab_size}"
            )

    @property
    def rotary_dim(self) -> int:
        """Leading entries of each head that carry the position; the rest stay as they are."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def autoregressive_only(self) -> bool:
        """An AR base that nobody has adapted: nothing tells it an open slot from text."""
        return self.mask_token_id is None and not self.canvas_rows_marked and not self.self_conditioning

    @property
    def noise_token_ids(self) -> tuple[int, ...]:
        """Tokens that stand for "not known yet": no slot may end as one."""
        return tuple(t for t in (self.mask_token_id, self.draft_token_id) if t is not None)

    @property
    def special_slot_ids(self) -> tuple[int, ...]:
        """Tokens that exist on a canvas only and that AR never predicts."""
        null = () if self.null_token_id is None else (self.null_token_id,)
        return (*self.noise_token_ids, *null)

    def to_dict(self) -> dict[str, Any]:
        out = dataclasses.asdict(self)
        out["eos_token_ids"] = list(self.eos_token_ids)
        return out

    def to_json(self) -> str:
        """config.json's text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> DenoiserConfig:
        """Raises RequestError when a size is missing or of the wrong type; unknown keys are ignored."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        known = {k: v for k, v in raw.items() if k in fields}
        missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in known]
        if missing:
            raise RequestError(f"config.json lacks {', '.join(missing)}")
        for name, value in known.items():
            accepted, wanted = _KINDS.get(str(fields[name].type), (None, ""))
            if accepted is not None and not accepted(value):
                raise RequestError(f"config.json: {name} must be {wanted}, not {value!r}")
        if known.get("rope_scaling") is not None:
            known["rope_scaling"] = _rope_scaling(known["rope_scaling"])
        return cls(**known)

    @classmethod
    def load(cls, folder: str | Path) -> DenoiserConfig:
        return cls.from_dict(read_config(folder))


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json as it stands. Raises RequestError when the folder has none or it is no JSON object."""
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError(f"{folder} has no config.json: not a model directory") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise RequestError(f"{path} is not a JSON object")
    return raw


def _rope_scaling(raw: Any) -> RopeScaling:
    names = {f.name for f in dataclasses.fields(RopeScaling)}
    if not isinstance(raw, dict) or not {"rope_type", "factor"} <= raw.keys() <= names:
        raise RequestError(f"config.json: rope_scaling must have rope_type and factor, not {raw!r}")
    return RopeScaling(**raw)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# By a field's annotation: what config.json may hold there, and how to say so.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda v: _whole(v) and v > 0, "a positive whole number"),
    "int | None": (lambda v: v is None or (_whole(v) and v >= 0), "a whole number or null"),
    "float": (lambda v: (_whole(v) or isinstance(v, float)) and 0 < v < math.inf, "a positive number"),
    "bool": (lambda v: isinstance(v, bool), "true or false"),
    "str": (lambda v: isinstance(v, str), "a string"),
    "tuple[int, ...]": (
        lambda v: isinstance(v, list | tuple) and all(_whole(t) for t in v),
        "a list of token ids",
    ),
}
