"""What a gated adapter adds to the graph (see denoiser.adapters): nodes on canvas rows alone, beside the base's.

All rows go through the base's own layers together, so that its weights are read once a pass. Canvas rows are then
picked out by index, and what the adapter makes of them is put back in their places:

    canvas        int64 [1, A, 2]    (0, row) of each canvas row in the list; A may be 0
    wanted_canvas int64 [1, W, 2]    the same in the list of wanted rows, which is what is left near the end

A clean row meets no number of the adapter, not even times 0. Layers that the graph joins (q, k and v; gate and up)
share a product with all their A below one another and one with all their B on a diagonal: on a CPU a node costs more
than reading the zeros beside them. In blocks their A stand below the base's own weights, in one product for all rows,
of which those of clean rows are left aside: their columns of it know nothing of these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from redraft.denoiser.adapter_config import Reach
from redraft.denoiser.config import DenoiserConfig
from redraft.engine.backends.onnx_inputs import LATE_ROWS
from redraft.engine.backends.onnx_scale import block_of

if TYPE_CHECKING:
    from redraft.engine.backends.onnx_graph import GraphWriter

PARTS = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}
JOINED = "and_lora_A"  # behind a layer's name: its weights and below them all A of the adapter
MASK, NULL, LOCKED = "slots.mask", "slots.null", "slots.locked"
LATE = "slots.late_mask", "slots.late_null"  # what open and empty slots hold where they enter


@dataclass
class Gate:
    """Writes the adapter's nodes, where it reaches. rows: the input that says which rows of the present list are canvas
    rows."""

    reach: Reach
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

    def ranks(self, name: str) -> int:
        """Of all LoRA on the layers that the graph joins under this name."""
        return self.reach.rank * len(reached(self.reach, name))

    def columns(self, name: str) -> int:
        """Of a layer's outputs how many, from the first on, LoRA adds to."""
        return columns(self.reach, self.config, name)

    def linear(self, w: GraphWriter, x: str, y: str, low: str | None, name: str, inputs: int) -> str:
        """y, what LoRA adds to of the base's layer of x, with B A x added to its canvas rows. low: A x of all rows, if
        it is there."""
        ranks, outputs = self.ranks(name), self.columns(name)
        if low is None:
            low = self._product(w, self.pick(w, x), f"{name}.lora_A", inputs, ranks)
        else:
            low = self.pick(w, low)
        more = self._product(w, low, f"{name}.lora_B", ranks, outputs)
        return w.op("ScatterND", y, self.rows, more, reduction="add")

    @staticmethod
    def _product(w: GraphWriter, x: str, name: str, inputs: int, outputs: int) -> str:
        """x times a matrix of the adapter, in blocks where the base's layers are and blocks divide its inputs."""
        block = block_of(inputs) if w.precision == "blocks" else None
        if block:
            return w.block_linear(x, name, inputs, outputs, block)
        return w.op("MatMul", x, w.weight(name, inputs, outputs))

    def norm(self, w: GraphWriter, x: str, normed: str, name: str, config: DenoiserConfig, size: int) -> str:
        """`normed`, the base's norm of x, with the adapter's gains on canvas rows."""
        if not self.reach.acts(name):
            return normed
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

    def late(self, w: GraphWriter, config: DenoiserConfig) -> str:
        """What open and empty slots begin with where they enter: [1, L, hidden]."""
        mask, null = (w.weight(name, config.hidden_size) for name in LATE)
        tokens = w.op("Unsqueeze", w.op("GatherND", "tokens", LATE_ROWS), w.constant([-1]))
        assert config.null_token_id is not None
        here = w.op("Equal", tokens, w.constant([config.null_token_id]))
        return w.op("Where", here, null, mask)


def join(weights: dict[str, np.ndarray]) -> None:
    """Puts the A of an adapter in blocks below the base's blocks that read the same; these are a part of it then, so
    that the base's own graph takes no more memory."""
    for name in [n.removesuffix(".lora_A.blocks") for n in weights if n.endswith(".lora_A.blocks")]:
        for kind in ("blocks", "steps"):
            base = weights[f"{name}.{kind}"]
            both = np.concatenate([base, weights.pop(f"{name}.lora_A.{kind}")])
            weights[f"{name}.{JOINED}.{kind}"], weights[f"{name}.{kind}"] = both, both[: len(base)]
        if f"{name}.bias" in weights:
            base, outputs = weights[f"{name}.bias"], len(weights[f"{name}.{JOINED}.blocks"])
            weights[f"{name}.{JOINED}.bias"] = np.pad(base, (0, outputs - len(base)))


def widths(config: DenoiserConfig, name: str) -> list[int]:
    """Outputs of the layers that the graph joins under this name."""
    keys = config.num_key_value_heads * config.head_dim
    own = {"q_proj": config.num_attention_heads * config.head_dim, "k_proj": keys, "v_proj": keys}
    own |= dict.fromkeys(PARTS["gate_up"], config.intermediate_size)
    return [own.get(part.rpartition(".")[2], config.hidden_size) for part in parts_of(name)]


def columns(reach: Reach, config: DenoiserConfig, name: str) -> int:
    """Columns of the B of all LoRA under this name. They leave v out where LoRA does, which the graph parts from q and
    k anyhow."""
    own = widths(config, name)
    without_v = name.endswith(".qkv") and not reach.acts(parts_of(name)[-1])
    return sum(own[:-1] if without_v else own)


def parts_of(name: str) -> list[str]:
    """The base's layers that the graph joins under this name; for most the one of that name."""
    stem, _, kind = name.rpartition(".")
    return [f"{stem}.{part}" for part in PARTS.get(kind, (kind,))]


def reached(reach: Reach, name: str) -> list[str]:
    """Those of them that have a LoRA."""
    return [part for part in parts_of(name) if reach.acts(part)]
