"""adapter_config.json: which base an adapter goes on, its rank, and how the adapted model's canvas works. No torch."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from redraft.denoiser.config import DenoiserConfig
from redraft.errors import RequestError
from redraft.files import write_atomically

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's, before the base's own name of a module
Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS: tuple[Target, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Reach:
    """Where an adapter acts: LoRA of this rank on the `targets` of the layers from number `first_layer` on, but for
    modules whose whole name `exclude` matches (a regular expression, as PEFT's exclude_modules), and, with gains,
    RMSNorm gains of the canvas's own in these layers and behind the last."""

    rank: int
    targets: tuple[Target, ...] = TARGETS
    first_layer: int = 0
    gains: bool = True
    exclude: str | None = None

    def acts(self, name: str) -> bool:
        """Whether a module of the base of this name ("model.layers.3.mlp.up_proj") has a part of the adapter."""
        if self.exclude is not None and re.fullmatch(self.exclude, name):
            return False
        found = re.fullmatch(r"model\.layers\.(\d+)\..*?(\w+)", name)
        if found is None:
            return self.gains and name == "model.norm"
        layer, kind = int(found[1]), found[2]
        return layer >= self.first_layer and (self.gains if kind.endswith("norm") else kind in self.targets)


@dataclass(frozen=True)
class AdapterConfig:
    """base: a model's name or folder. rank, alpha: LoRA's; scale is alpha / rank. layers: how many of the base's
    layers are used, from the first on; None: all. markov_rank (0: none), confidence: the heads behind it, see
    denoiser.heads. targets, first_layer, gains, exclude: see Reach; nothing is adapted before the canvas's entry. The
    rest are fields of the adapted DenoiserConfig.
    """

    base: str
    rank: int
    alpha: float
    mask_token_id: int
    null_token_id: int
    canvas_length: int = 16
    shift: bool = True
    layers: int | None = None
    markov_rank: int = 0
    confidence: bool = False
    targets: tuple[Target, ...] = TARGETS
    first_layer: int = 0
    gains: bool = True
    canvas_entry: int | None = None
    exclude: str | None = None

    @property
    def reach(self) -> Reach:
        first = max(self.first_layer, self.canvas_entry or 0)
        return Reach(self.rank, self.targets, first, self.gains, self.exclude)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def heads(self) -> tuple[int, int]:
        """Rank of the Markov head, and the places that the confidence head tells apart; 0 for one that isn't there."""
        return self.markov_rank, self.canvas_length if self.confidence else 0

    def adapted(self, base: DenoiserConfig) -> DenoiserConfig:
        """The base's config with a canvas. Raises RequestError for a token outside its vocabulary."""
        return dataclasses.replace(
            base,
            layout="causal_context",
            mask_token_id=self.mask_token_id,
            null_token_id=self.null_token_id,
            canvas_length=self.canvas_length,
            shift=self.shift,
            canvas_entry=self.canvas_entry,
            model_type="redraft",
        )

    def check(self, config: DenoiserConfig, base: DenoiserConfig, folder: Path, source: Path) -> None:
        """Raises RequestError unless `config`, the adapted model's, is what this adapter makes of the base's.

        folder, source: where the adapter and its base are, for the message.
        """
        layers = self.layers or base.num_hidden_layers
        made = dataclasses.replace(self.adapted(base), num_hidden_layers=layers)
        if made != config:
            fields = (f.name for f in dataclasses.fields(config))
            name = next(n for n in fields if getattr(config, n) != getattr(made, n))
            raise RequestError(f"{folder} was trained on another base than {source}: their {name} differs")

    def write(self, folder: Path) -> None:
        """PEFT's own keys, and ours under "redraft"."""
        own = (
            "mask_token_id",
            "null_token_id",
            "canvas_length",
            "shift",
            "layers",
            "markov_rank",
            "confidence",
            "first_layer",
            "gains",
            "canvas_entry",
        )
        raw = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": list(self.targets),
            "bias": "none",
            "redraft": {"gated": True} | {name: getattr(self, name) for name in own},
        }
        if self.exclude is not None:
            raw["exclude_modules"] = self.exclude
        write_atomically(folder / ADAPTER_CONFIG, (json.dumps(raw, indent=2) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """Raises RequestError for a file that is missing, malformed, or an ordinary LoRA, which knows no canvas."""
        path = folder / ADAPTER_CONFIG
        try:
            raw: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RequestError(f"{path} can't be read as JSON: {error}") from None
        if not isinstance(raw, dict) or not isinstance(raw.get("redraft"), dict):
            raise RequestError(f"{path} has no redraft section: not an adapter that makes a base denoise")
        try:
            own = raw["redraft"]
            found = cls(
                base=raw["base_model_name_or_path"],
                rank=raw["r"],
                alpha=raw["lora_alpha"],
                targets=tuple(raw["target_modules"]),
                exclude=raw.get("exclude_modules"),
                **{f.name: own[f.name] for f in dataclasses.fields(cls) if f.name in own},
            )
        except (KeyError, TypeError) as error:
            raise RequestError(f"{path} is malformed: {error}") from None
        if not isinstance(found.base, str) or not isinstance(found.rank, int) or found.rank < 1:
            raise RequestError(
                f"{path} is malformed: base_model_name_or_path and r must name a base and a rank"
            )
        named = raw["target_modules"]
        if not isinstance(named, list) or not named or any(name not in TARGETS for name in named):
            raise RequestError(f"{path}: target_modules must be a list of some of {', '.join(TARGETS)}")
        check_pattern(found.exclude, f"{path}: exclude_modules")
        if type(found.first_layer) is not int or found.first_layer < 0:
            raise RequestError(f"{path} is malformed: first_layer must be a whole number of at least 0")
        entry = found.canvas_entry
        if entry is not None and (type(entry) is not int or entry < 1):
            raise RequestError(
                f"{path} is malformed: canvas_entry must be a whole number of at least 1, or null"
            )
        if not isinstance(found.gains, bool):
            raise RequestError(f"{path} is malformed: gains must be true or false")
        if not isinstance(found.markov_rank, int) or found.markov_rank < 0:
            raise RequestError(f"{path} is malformed: markov_rank must be a whole number of at least 0")
        return found


def check_pattern(pattern: Any, name: str) -> None:
    """Raises RequestError unless it is None or a regular expression; name: what to call it."""
    try:
        if pattern is not None:
            re.compile(pattern)
    except (re.error, TypeError) as error:
        raise RequestError(f"{name} must be a regular expression: {error}") from None
