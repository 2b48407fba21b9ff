"""Model FLOPs of an adaptation step, from which utilization is told (MFU; Chowdhery et al., 2022, appendix B)."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.denoiser.adapters import LoRA, adapter_of
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.transformer import Denoiser

FORMULA = (
    "MFU = (2 P clean + (4 C + 6 A) canvas + 2 H taught + 4 H supervised) / seconds / peak, "
    "P weights of the layers, C of those that canvas rows pass, A of the adapter, H of the head; attention's own "
    "products are not counted; of canvas rows 2 C + 2 A where the adapter is frozen"
)
FORMULA_OF_ALL = (
    "MFU = (6 (P + H) clean + 6 P canvas + 2 H taught + 6 H supervised) / seconds / peak, "
    "P weights of the layers, H of the head; attention's own products are not counted"
)


@dataclass(frozen=True)
class Work:
    """Weights that a row is multiplied by: layers, passed (of those, what a canvas row passes), adapter (None: all
    weights learn), head. A frozen weight costs 2 forward and 2 for its input's gradient; one that learns 2 more.
    frozen: only heads behind the adapter learn, which count for nothing."""

    layers: int
    passed: int
    adapter: int | None
    head: int
    frozen: bool = False

    @classmethod
    def of(cls, model: Denoiser, frozen: bool = False) -> Work:
        lora = None
        if model.adapter is not None:
            parts = adapter_of(model).parts.values()
            lora = sum(p.lora_A.numel() + p.lora_B.numel() for p in parts if isinstance(p, LoRA))
        config = model.config
        layer, count = _layer_weights(config), config.num_hidden_layers
        head = config.hidden_size * config.vocab_size
        return cls(layer * count, layer * (count - (config.canvas_entry or 0)), lora, head, frozen)

    @property
    def formula(self) -> str:
        return FORMULA_OF_ALL if self.adapter is None else FORMULA

    def flops(self, clean: float, canvas: float, taught: float, supervised: float) -> float:
        """Of so many rows: clean ones, canvas ones, and those whose logits the AR self and the canvas give."""
        if self.adapter is None:
            layers, head = 6 * self.layers * (clean + canvas), 6 * self.head * (clean + supervised)
            return layers + head + 2 * self.head * taught
        through = 2 * (self.passed + self.adapter) if self.frozen else 4 * self.passed + 6 * self.adapter
        rows = 2 * self.layers * clean + through * canvas
        return rows + 2 * self.head * taught + 4 * self.head * supervised


def _layer_weights(config: DenoiserConfig) -> int:
    """Of one layer."""
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    return config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)
