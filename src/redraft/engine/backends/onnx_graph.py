"""The denoiser as an ONNX graph, written from its config alone: no torch, no tracing, no weights inside.

All rows of a pass, whoever they belong to, run through the linear layers as one list [1, N, hidden]; only
attention looks at them request by request, on a grid of B lanes by T rows:

    tokens   int64 [1, N]        role     int64 [1, N]     0 clean, 1 canvas, 2 locked slot
    cos, sin float [N, rotary_dim / 2]      turn     int64 [1, N]     which of those rows turns a row: 0 … N - 1
    slot     int64 [1, N, 2]     (lane, slot of the cache) that a row's key and value are written to
    grid     int64 [B, T, 2]     (0, row) of the list for each place of the grid; spare places repeat a row
    mask     float [B, 1, T, S]  added to the scores; where the attention layout lives
    place    int64 [1, N, 2]     (lane, column) of the grid for each row of the list
    wanted   int64 [R]           rows whose logits are asked for; wanted_place int64 [1, R, 2]: their places
    expected float [E, V], expected_row int64 [1, N]       with self-conditioning only: row E means "nothing yet"
    key.i, value.i   float [B, S, kv_heads * D]            one pair a layer, kept between passes by the caller

    logits   float [1, R, V]     key.i.next, value.i.next: the caches with the new rows written in

ScatterND copies nothing when its output is bound to its input's memory, so caches are extended in place.
Rows nobody wants leave before the last layer's feed-forward half.

Open and empty slots of an adapted base may begin at a later layer (`canvas_entry`). Layers before it run without them:
"early.turn", "early.slot", "early.grid", "early.place" (and "early.sizes") are for this shorter list what those without
"early." are for the whole one. early.rows int64 [1, E, 2]: (0, row in the whole list) of each of its rows; late.rows
int64 [1, L, 2]: of each of the others. Where a canvas holds tokens, which may look at its open slots in these layers
too, all rows run, and the late ones are replaced.

Lanes of one grid are all read as far as the longest. A graph of several groups has a grid, a mask and caches for each
group, so that short lanes are parted from long ones; the list of rows goes through the groups in their order. Inputs of
group g > 0 are named as above with ".g" behind, and one more says how many rows each group has: sizes int64 [groups].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from redraft.denoiser.adapter_config import Reach
from redraft.denoiser.config import DenoiserConfig
from redraft.engine.backends import onnx_proto as proto
from redraft.engine.backends.onnx_gated import JOINED, Gate
from redraft.engine.backends.onnx_inputs import (
    EARLY,
    EARLY_ROWS,
    LATE_ROWS,
    cache,
    cache_names,
    inputs,
    of_group,
)
from redraft.engine.backends.onnx_scale import block_of

Precision = Literal["fp32", "blocks", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "blocks", "int8")
HEAD = "lm_head"
OPSET = 23  # the first with Attention (grouped queries, additive mask)
IR_VERSION = 10
ZERO = 128  # what 0.0 becomes in a quantized row
TINY = 1e-20  # the smallest scale of an activation row: a row of zeros quantizes to zeros


@dataclass(frozen=True)
class Weight:
    """A tensor the graph needs from outside: name, numpy dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """A graph without its weights: data, a file that ONNX Runtime reads; weights: what it wants from outside, see
    onnx_weights.prepare; inputs: their names."""

    data: bytes
    weights: list[Weight]
    inputs: frozenset[str]


@dataclass
class GraphWriter:
    """Collects nodes; each call returns the name of what the node makes."""

    precision: Precision
    groups: int = 1
    gate: Gate | None = None
    nodes: list[bytes] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    constants: dict[str, bytes] = field(default_factory=dict)
    quantized: dict[str, tuple[str, str]] = field(default_factory=dict)
    zeros: dict[str, str] = field(default_factory=dict)
    early: bool = False  # before open slots enter
    wanted: bool = False  # only the wanted rows are left

    def op(self, kind: str, *inputs: str, to: str = "", contrib: bool = False, **attributes: Any) -> str:
        out = to or f"{kind.lower()}_{len(self.nodes)}"
        domain = "com.microsoft" if contrib else ""
        self.nodes.append(proto.node(kind, inputs, [out], domain, **attributes))
        return out

    def split(self, x: str, *sizes: int, axis: int = -1) -> list[str]:
        outs = [f"split_{len(self.nodes)}_{i}" for i in range(len(sizes))]
        self.nodes.append(proto.node("Split", [x, self.constant(list(sizes))], outs, axis=axis))
        return outs

    def only_wanted(self) -> None:
        """From here on the list of rows is that of the wanted ones."""
        self.wanted = True
        if self.gate:
            self.gate.rows = "wanted_canvas"

    def index(self, name: str, group: int = 0) -> str:
        """The input of that name for the present list of rows."""
        return of_group(f"{EARLY}{name}" if self.early else name, group)

    def parts(self, x: str) -> list[str]:
        """Rows x [1, N, …] by group."""
        if self.groups == 1:
            return [x]
        outs = [f"part_{len(self.nodes)}_{g}" for g in range(self.groups)]
        self.nodes.append(proto.node("Split", [x, self.index("sizes")], outs, axis=1))
        return outs

    def whole(self, parts: list[str]) -> str:
        """The groups' rows as one list again."""
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=1)

    def weight(self, name: str, *shape: int, dtype: str = "float32") -> str:
        self.weights[name] = Weight(name, dtype, shape)
        return name

    def constant(self, value: float | list[int]) -> str:
        """A float scalar or an int64 vector, stored once however often it is used."""
        array = np.asarray(value, np.float32 if isinstance(value, float) else np.int64)
        name = f"constant_{value}".replace(" ", "")
        self.constants[name] = proto.tensor(name, array)
        return name

    def zero_point(self) -> str:
        self.constants["zero_point"] = proto.tensor("zero_point", np.array(ZERO, np.uint8))
        return "zero_point"

    def linear(self, x: str, name: str, inputs: int, outputs: int, bias: bool = False) -> str:
        """x [1, N, inputs] times the weight [outputs, inputs] of that name, transposed."""
        return self.linear_parts(x, name, inputs, (outputs,), bias)[0]

    def linear_parts(
        self, x: str, name: str, inputs: int, sizes: Sequence[int], bias: bool = False
    ) -> list[str]:
        """The same with its outputs in parts of these sizes."""
        outputs = sum(sizes)
        block = block_of(inputs) if self.precision == "blocks" else None
        ranks = self.gate.ranks(name) if self.gate and name != HEAD else 0
        if block and ranks:
            y = self._base_linear(x, f"{name}.{JOINED}", inputs, outputs + ranks, block, bias)
        else:
            y = self._base_linear(x, name, inputs, outputs, block, bias)
        if not (self.gate and ranks):
            return self._in_parts(y, sizes)
        reached, low = self.gate.columns(name), [ranks] if block else []
        if reached == sizes[0]:  # the others need no node of the adapter
            parts = self._in_parts(y, [*sizes, *low])
            first = self.gate.linear(self, x, parts[0], parts.pop() if low else None, name, inputs)
            return [first, *parts[1:]]
        y, *rest = self._in_parts(y, [outputs, *low])
        return self._in_parts(self.gate.linear(self, x, y, rest[0] if low else None, name, inputs), sizes)

    def _in_parts(self, y: str, sizes: Sequence[int]) -> list[str]:
        return [y] if len(sizes) == 1 else self.split(y, *sizes)

    def _base_linear(
        self, x: str, name: str, inputs: int, outputs: int, block: int | None, bias: bool
    ) -> str:
        if block:
            y = self.block_linear(x, name, inputs, outputs, block)
        elif self.precision != "fp32":
            y = self._integer_linear(x, name, inputs, outputs)
        else:
            y = self.op(
                "FusedMatMul", x, self.weight(f"{name}.weight", outputs, inputs), contrib=True, transB=1
            )
        return self.op("Add", y, self.weight(f"{name}.bias", outputs)) if bias else y

    def block_linear(self, x: str, name: str, inputs: int, outputs: int, block: int) -> str:
        """Both sides in 8 bits by blocks of a row, which the node itself does for x (accuracy_level 4)."""
        weight = self.weight(f"{name}.blocks", outputs, inputs // block, block, dtype="uint8")
        steps = self.weight(f"{name}.steps", outputs * (inputs // block))
        sizes: dict[str, Any] = {"K": inputs, "N": outputs, "bits": 8, "block_size": block}
        return self.op("MatMulNBits", x, weight, steps, contrib=True, accuracy_level=4, **sizes)

    def _integer_linear(self, x: str, name: str, inputs: int, outputs: int) -> str:
        """uint8 by int8 with one scale a row and one a column: a row never depends on its neighbours."""
        integers, scale = self._quantize_rows(x)
        weight = self.weight(f"{name}.integers", inputs, outputs, dtype="int8")
        columns = self.weight(f"{name}.scale", outputs)
        one, zero = self.constant(1.0), self.zero_point()
        product = self.op("MatMulIntegerToFloat", integers, weight, one, columns, zero, contrib=True)
        return self.op("Mul", product, scale)

    def _quantize_rows(self, x: str) -> tuple[str, str]:
        """x [1, N, K] to uint8 [1, N, K] around 128 and its scale [1, N, 1]; done once for all that read the same x.

        Unsigned, because onnxruntime has no packed kernel for signed rows on x86 (measured: 16 times slower).
        """
        if x not in self.quantized:
            scale = self._row_scale(x)
            flat = self.op("Reshape", scale, self.constant([-1]))
            self.quantized[x] = (self.op("QuantizeLinear", x, flat, self._zeros(), axis=1), scale)
        return self.quantized[x]

    def _row_scale(self, x: str) -> str:
        """[1, N, 1]: a row's largest magnitude is 127 of it."""
        largest = self.op("ReduceMax", self.op("Abs", x), self.constant([-1]), keepdims=1)
        return self.op("Mul", self.op("Max", largest, self.constant(TINY)), self.constant(1 / 127))

    def _zeros(self) -> str:
        """The zero point of each row of the present list, uint8 [N]."""
        rows = "wanted" if self.wanted else self.index("turn")  # inputs as long as the list
        if rows not in self.zeros:
            value = proto.tensor("zero", np.array([ZERO], np.uint8))
            self.zeros[rows] = self.op("ConstantOfShape", self.op("Shape", rows, start=-1), value=value)
        return self.zeros[rows]


def _norm(w: GraphWriter, x: str, name: str, config: DenoiserConfig, size: int) -> str:
    weight, eps = w.weight(f"{name}.weight", size), config.rms_norm_eps
    normed = w.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=eps, stash_type=1)
    return w.gate.norm(w, x, normed, name, config, size) if w.gate else normed


def _add_norm(w: GraphWriter, x: str, more: str, name: str, config: DenoiserConfig) -> tuple[str, str]:
    """(rms norm of x + more, x + more), in one node."""
    normed, total = f"normed_{len(w.nodes)}", f"total_{len(w.nodes)}"
    inputs, eps = [x, more, w.weight(f"{name}.weight", config.hidden_size)], config.rms_norm_eps
    outputs = [normed, "", "", total]
    w.nodes.append(
        proto.node("SkipSimplifiedLayerNormalization", inputs, outputs, "com.microsoft", epsilon=eps)
    )
    if w.gate and not w.early:
        normed = w.gate.norm(w, total, normed, name, config, config.hidden_size)
    return normed, total


def _embed(w: GraphWriter, config: DenoiserConfig) -> str:
    table = w.weight("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
    x = w.op("Gather", table, "tokens")
    if config.self_conditioning:
        x = _self_condition(w, config, x, table)
    if config.canvas_rows_marked:
        roles = w.weight("model.role_embeddings", 3, config.hidden_size)
        x = w.op("Add", x, w.op("Gather", roles, "role"))
    return w.gate.embed(w, x, config) if w.gate else x


def _self_condition(w: GraphWriter, config: DenoiserConfig, x: str, table: str) -> str:
    """What the last step expected joins the canvas rows (see denoiser.transformer.SelfConditioning)."""
    name, size = "model.self_conditioning", config.hidden_size
    soft = w.op("MatMul", "expected", table)
    nothing = w.op("Expand", w.constant(0.0), w.constant([1, size]))
    soft = w.op("Gather", w.op("Concat", soft, nothing, axis=0), "expected_row")
    n = _norm(w, soft, f"{name}.pre_norm", config, size)
    wide = config.intermediate_size
    gate, up = w.linear_parts(n, f"{name}.gate_up", size, (wide, wide))
    mixed = w.op("Mul", w.op("Gelu", gate, approximate="tanh"), up)
    mixed = w.op("Add", x, w.linear(mixed, f"{name}.down_proj", wide, size))
    ones = w.op("Expand", w.constant(1.0), w.constant([size]))
    normed = w.op(
        "SimplifiedLayerNormalization", mixed, ones, axis=-1, epsilon=config.rms_norm_eps, stash_type=1
    )
    clean = w.op("Equal", w.op("Unsqueeze", "role", w.constant([-1])), w.constant([0]))
    return w.op("Where", clean, x, normed)


def _norm_heads(w: GraphWriter, config: DenoiserConfig, qk: str, name: str) -> str:
    """RMSNorm of each head's query and key (Qwen3); the weights of all heads as one [heads, D] factor."""
    heads, size = config.num_attention_heads + config.num_key_value_heads, config.head_dim
    ones = w.op("Expand", w.constant(1.0), w.constant([size]))
    split = w.op("Reshape", qk, w.constant([1, -1, heads, size]))
    split = w.op(
        "SimplifiedLayerNormalization", split, ones, axis=-1, epsilon=config.rms_norm_eps, stash_type=1
    )
    weighted = w.op("Mul", split, w.weight(f"{name}.qk_norm", heads, size))
    if w.gate and w.gate.reach.acts(f"{name}.q_norm"):
        own = w.op("Mul", w.gate.pick(w, split), w.weight(f"{name}.qk_gain", heads, size))
        weighted = w.gate.put(w, weighted, own)
    return w.op("Reshape", weighted, w.constant([1, -1, heads * size]))


def _attention(w: GraphWriter, config: DenoiserConfig, x: str, layer: int, places: str) -> str:
    """The normed rows x to attention's output at `places` [1, M, 2] of the grid: [1, M, hidden]."""
    name, size = f"model.layers.{layer}.self_attn", config.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    queries, keys = heads * size, kv_heads * size
    sizes = queries + keys, keys
    qk, v = w.linear_parts(x, f"{name}.qkv", config.hidden_size, sizes, config.attention_bias)
    if config.qk_norm:
        qk = _norm_heads(w, config, qk, name)
    partial: dict[str, Any] = {} if config.rotary_dim == size else {"rotary_embedding_dim": config.rotary_dim}
    partial |= {"num_heads": heads + kv_heads} if partial else {}
    turned = w.op("RotaryEmbedding", qk, w.index("turn"), "cos", "sin", contrib=True, **partial)
    q, k = w.split(turned, queries, keys)
    outs = []
    for g, (own_k, own_v) in enumerate(zip(w.parts(k), w.parts(v), strict=True)):
        key, value = of_group(f"key.{layer}", g), of_group(f"value.{layer}", g)
        own_k = w.op("ScatterND", key, w.index("slot", g), own_k, to=f"{key}.next")
        own_v = w.op("ScatterND", value, w.index("slot", g), own_v, to=f"{value}.next")
        own_q = w.op("GatherND", q, w.index("grid", g))
        mask = of_group("mask", g)
        # The scale lies in the weights of q (onnx_scale): onnxruntime has a faster kernel for a lone row without it.
        counts: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": kv_heads}
        out = w.op("Attention", own_q, own_k, own_v, mask, scale=1.0, **counts)
        outs.append(w.op("GatherND", out, w.index(places, g)))
    if places == "wanted_place":
        w.only_wanted()
    return w.linear(w.whole(outs), f"{name}.o_proj", queries, config.hidden_size)


def _feed_forward(w: GraphWriter, config: DenoiserConfig, x: str, name: str) -> str:
    size, wide = config.hidden_size, config.intermediate_size
    gate, up = w.linear_parts(x, f"{name}.gate_up", size, (wide, wide))
    silu = w.op("QuickGelu", gate, contrib=True, alpha=1.0)  # x * sigmoid(x) in one node
    return w.linear(w.op("Mul", silu, up), f"{name}.down_proj", wide, size)


def _head(w: GraphWriter, config: DenoiserConfig, x: str) -> None:
    """x: the last hidden states of the wanted rows; of those on a canvas alone: w.gate.pick(w, x)."""
    if w.precision != "fp32":
        logits = w.linear(x, HEAD, config.hidden_size, config.vocab_size)
        w.op("Identity", logits, to="logits")
        return
    tied = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    table = w.weight(tied, config.vocab_size, config.hidden_size)
    w.op("FusedMatMul", x, table, to="logits", contrib=True, transB=1)


def _enter(
    w: GraphWriter, config: DenoiserConfig, embedded: str, normed: str, x: str, name: str
) -> tuple[str, str]:
    """Open and empty slots join the rows that layers have made normed and x of: both for all rows."""
    assert w.gate
    own = w.gate.late(w, config)
    weight, eps = w.weight(f"{name}.weight", config.hidden_size), config.rms_norm_eps
    own_normed = w.op("SimplifiedLayerNormalization", own, weight, axis=-1, epsilon=eps, stash_type=1)
    both = []
    for early, late in ((normed, own_normed), (x, own)):
        whole = w.op("ScatterND", embedded, EARLY_ROWS, early)
        both.append(w.op("ScatterND", whole, LATE_ROWS, late))
    return w.gate.norm(w, both[1], both[0], name, config, config.hidden_size), both[1]


def _network(w: GraphWriter, config: DenoiserConfig) -> None:
    embedded = x = _embed(w, config)
    entry = config.canvas_entry if w.gate else None
    if entry is not None:
        w.early = True
        x = w.op("GatherND", x, EARLY_ROWS)
    normed = _norm(w, x, "model.layers.0.input_layernorm", config, config.hidden_size)
    last = config.num_hidden_layers - 1
    for layer in range(last + 1):
        name = f"model.layers.{layer}"
        if layer == entry:
            w.early = False
            normed, x = _enter(w, config, embedded, normed, x, f"{name}.input_layernorm")
        attended = _attention(w, config, normed, layer, "wanted_place" if layer == last else "place")
        if layer == last:
            x = w.op("Gather", x, "wanted", axis=1)
        normed, x = _add_norm(w, x, attended, f"{name}.post_attention_layernorm", config)
        wide = _feed_forward(w, config, normed, f"{name}.mlp")
        following = "model.norm" if layer == last else f"model.layers.{layer + 1}.input_layernorm"
        normed, x = _add_norm(w, x, wide, following, config)
    _head(w, config, normed)


def build_graph(
    config: DenoiserConfig,
    precision: Precision = "fp32",
    places: Mapping[str, Mapping[str, str]] | None = None,
    groups: int = 1,
    reach: Reach | None = None,
) -> Graph:
    """places: where each weight's bytes lie, for an export (see onnx_proto.outside_tensor); None: whoever loads the
    graph brings them along. groups: of lanes, parted by length; the weights are the same for any number. reach: of
    a gated adapter on the canvas rows (see onnx_gated); None: without."""
    w = GraphWriter(precision, groups, Gate(reach, config) if reach else None)
    _network(w, config)
    read = inputs(config, groups, gated=reach is not None)
    outputs: dict[str, tuple[str, list[int | str]]] = {"logits": ("float32", [1, "R", config.vocab_size])}
    for g in range(groups):
        outputs |= {f"{name}.next": cache(config, groups, g) for name in cache_names(config, g)}
    weights = list(w.weights.values())
    absent = {"location": "weights"}
    data = proto.model(
        w.nodes,
        [
            *(
                proto.outside_tensor(x.name, x.dtype, x.shape, absent if places is None else places[x.name])
                for x in weights
            ),
            *w.constants.values(),
        ],
        [proto.value(name, *kind) for name, kind in read.items()],
        [proto.value(name, *kind) for name, kind in outputs.items()],
        {"": OPSET, "com.microsoft": 1},
        IR_VERSION,
    )
    return Graph(data, weights, frozenset(read))
