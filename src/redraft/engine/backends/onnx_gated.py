"""What a gated adapter adds to the graph (see denoiser.adapters): nodes on canvas rows alone, beside the base's.

All rows go through the base's own layers together, so that its weights are read once a pass. Canvas rows are then
picked out by index, and what the adapter makes of them is put back in their places:

    canvas        int64 [1, A, 2]    (0, row) of each canvas row in the list; A may be 0
    wanted_canvas int64 [1, W, 2]    the same in the list of wanted rows, which is what is left near the end

A clean row meets no number of the adapter, not even times 0. Layers that the graph joins (q, k and v; gate and up)
share one product with all their A below one another. What these sums cost is mostly the reading of A and B: 20 MB in
float32 at rank 16 beside 135M weights, so that B is not padded to blocks, and A has 8 bits where the base has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.backends.onnx_scale import head_norms, query_scale

if TYPE_CHECKING:
    from redraft.engine.backends.onnx_graph import GraphWriter

PARTS = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}
MASK, NULL, LOCKED = "slots.mask", "slots.null", "slots.locked"


@dataclass
class Gate:
    """Writes the adapter's nodes. rows: the input that says which rows of the present list are canvas rows."""

    rank: int
    config: DenoiserConfig
    rows: str = "canvas"
    _picked: dict[tuple[str, str], str] = field(default_factory=dict)

    def pick(self, w: GraphWriter, x: str) -> str:
        """The canvas rows of x [1, N, …]: [1, A, …]."""
        key = x, self.rows
        if key not in self._picked:
            self._picked[key] = w.op("GatherND", x, self.rows)
        return self._picked[key]

    def put(self, w: GraphWriter, x: str, own: str) -> str:
        """x with these canvas rows in place of its own."""
        whole = w.op("ScatterND", x, self.rows, own)
        self._picked[whole, self.rows] = own
        return whole

    def linear(self, w: GraphWriter, x: str, y: str, name: str, inputs: int, outputs: int) -> str:
        """y, the base's layer of x, with B A x added to its canvas rows."""
        stem, _, kind = name.rpartition(".")
        sizes = self._sizes(kind, outputs)
        down = w.weight(f"{name}.lora_A", inputs, self.rank * len(sizes))
        ranks = w.op("MatMul", self.pick(w, x), down)
        parts = w.split(ranks, *[self.rank] * len(sizes)) if len(sizes) > 1 else [ranks]
        sums = [
            w.op("MatMul", part, w.weight(f"{stem}.{own}.lora_B", self.rank, size))
            for part, (own, size) in zip(parts, sizes.items(), strict=True)
        ]
        more = w.op("Concat", *sums, axis=-1) if len(sums) > 1 else sums[0]
        return w.op("ScatterND", y, self.rows, more, reduction="add")

    def _sizes(self, kind: str, outputs: int) -> dict[str, int]:
        """The outputs of each layer that the graph joins under this name."""
        names = PARTS.get(kind, (kind,))
        if kind != "qkv":
            return dict.fromkeys(names, outputs // len(names))
        keys = self.config.num_key_value_heads * self.config.head_dim
        return dict(zip(names, (outputs - 2 * keys, keys, keys), strict=True))

    def norm(self, w: GraphWriter, x: str, normed: str, name: str, config: DenoiserConfig, size: int) -> str:
        """`normed`, the base's norm of x, with the adapter's gains on canvas rows."""
        gain = w.weight(f"{name}.gain", size)
        eps = config.rms_norm_eps
        own = w.op("SimplifiedLayerNormalization", self.pick(w, x), gain, axis=-1, epsilon=eps, stash_type=1)
        return self.put(w, normed, own)

    def embed(self, w: GraphWriter, x: str, config: DenoiserConfig) -> str:
        """Embeddings x with those of the adapter's mask and null, and what locked slots get, on canvas rows."""
        size, own = config.hidden_size, self.pick(w, x)
        tokens = w.op("Unsqueeze", self.pick(w, "tokens"), w.constant([-1]))
        for token, name in ((config.mask_token_id, MASK), (config.null_token_id, NULL)):
            if token is not None:
                here = w.op("Equal", tokens, w.constant([token]))
                own = w.op("Where", here, w.weight(name, size), own)
        locked = w.op("Unsqueeze", self.pick(w, "role"), w.constant([-1]))
        here = w.op("Equal", locked, w.constant([2]))
        own = w.op("Where", here, w.op("Add", own, w.weight(LOCKED, size)), own)
        return self.put(w, x, own)


def adapter_weights(
    config: DenoiserConfig, adapter: Mapping[str, np.ndarray], scale: float
) -> dict[str, np.ndarray]:
    """Every weight that a gated graph has beside its base's, float32, by name. adapter: named as in its file, without
    PEFT's prefix. scale: of B A x. Raises KeyError for a tensor that is missing, ValueError for shapes that don't fit
    one another."""
    out = {name: adapter[name] for name in (MASK, NULL, LOCKED)} | {
        "model.norm.gain": adapter["model.norm.weight"]
    }
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            out[f"{layer}.{norm}.gain"] = adapter[f"{layer}.{norm}.weight"]
        if config.qk_norm:
            q, k = (adapter[f"{layer}.self_attn.{name}_norm.weight"] for name in "qk")
            out[f"{layer}.self_attn.qk_gain"] = head_norms(config, q, k)
        for block, names in (("self_attn", ("qkv", "o_proj")), ("mlp", ("gate_up", "down_proj"))):
            for name in names:
                stems = [f"{layer}.{block}.{part}" for part in PARTS.get(name, (name,))]
                a = np.concatenate([adapter[f"{stem}.lora_A.weight"] for stem in stems])
                out[f"{layer}.{block}.{name}.lora_A"] = a.T
                for stem in stems:
                    factor = scale * (query_scale(config) if stem.endswith(".q_proj") else 1.0)
                    out[f"{stem}.lora_B"] = np.float32(factor) * adapter[f"{stem}.lora_B.weight"].T
    return {name: np.ascontiguousarray(array, np.float32) for name, array in out.items()}
