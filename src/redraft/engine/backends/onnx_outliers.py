"""Which entries of a linear layer's input are far larger than the others, whatever the text: they would set the step of
a row that is held in 8 bits, and leave the others nothing (Dettmers et al., LLM.int8, 2022).

Found by one pass of the network in numpy over a few random tokens, a layer's weights at a time: the entries that stand
out are the same for any text.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.backends.onnx_rows import RotaryTable

ROWS = 64


def outliers(config: DenoiserConfig, tensors: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """By the name of a linear layer in the graph, the `count` entries of its input with the largest magnitudes, the
    largest first: int64. The same tensors give the same entries."""
    tokens = np.random.default_rng(0).integers(
        0, config.vocab_size, min(ROWS, config.max_position_embeddings)
    )
    peaks = largest_inputs(config, tensors, tokens)
    return {name: np.argsort(-peak, kind="stable")[:count].astype(np.int64) for name, peak in peaks.items()}


def largest_inputs(
    config: DenoiserConfig, tensors: Mapping[str, np.ndarray], tokens: np.ndarray
) -> dict[str, np.ndarray]:
    """By the name of a linear layer in the graph, the largest magnitude of each entry of its input over clean rows of
    these tokens (int64 [N]): float32 [inputs]."""
    out: dict[str, np.ndarray] = {}

    def linear(name: str, parts: list[str], x: np.ndarray) -> list[np.ndarray]:
        """x [N, inputs] through the checkpoint's layers that the graph joins under `name`."""
        out[name] = np.abs(x).max(axis=0)
        made = []
        for part in parts:
            y = x @ tensors[f"{part}.weight"].T
            made.append(y + tensors[f"{part}.bias"] if f"{part}.bias" in tensors else y)
        return made

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        scale = np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(config.rms_norm_eps))
        return np.asarray(x / scale * tensors[f"{name}.weight"], np.float32)

    table = RotaryTable(config)
    cos, sin = table.cos[: len(tokens)], table.sin[: len(tokens)]

    def heads(x: np.ndarray, name: str) -> np.ndarray:
        """Queries or keys [N, heads, D], normed per head where the network does so, and turned."""
        split = x.reshape(len(x), -1, config.head_dim)
        split = norm(split, name) if config.qk_norm else split
        first, second, rest = np.split(split, [config.rotary_dim // 2, config.rotary_dim], axis=-1)
        c, s = cos[:, None], sin[:, None]
        return np.concatenate((first * c - second * s, second * c + first * s, rest), axis=-1)

    x = tensors["model.embed_tokens.weight"][tokens]
    for i in range(config.num_hidden_layers):
        name = f"model.layers.{i}"
        normed, own = norm(x, f"{name}.input_layernorm"), f"{name}.self_attn"
        q, k, v = linear(f"{own}.qkv", [f"{own}.{part}_proj" for part in "qkv"], normed)
        mixed = _attend(config, heads(q, f"{own}.q_norm"), heads(k, f"{own}.k_norm"), v)
        x = x + linear(f"{own}.o_proj", [f"{own}.o_proj"], mixed)[0]
        normed, mlp = norm(x, f"{name}.post_attention_layernorm"), f"{name}.mlp"
        gate, up = linear(f"{mlp}.gate_up", [f"{mlp}.gate_proj", f"{mlp}.up_proj"], normed)
        with np.errstate(over="ignore"):  # exp of a large number is infinite, and the gate then 0
            wide = gate / (1 + np.exp(-gate)) * up
        x = x + linear(f"{mlp}.down_proj", [f"{mlp}.down_proj"], wide)[0]
    out["lm_head"] = np.abs(norm(x, "model.norm")).max(axis=0)
    return out


def _attend(config: DenoiserConfig, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q [N, heads, D], k [N, kv_heads, D], v [N, kv_heads * D] to [N, heads * D]; causal, but for the layout "full"."""
    rows, groups = len(q), config.num_key_value_heads
    grouped = q.reshape(rows, groups, -1, config.head_dim)
    scores = np.einsum("ighd,jgd->ghij", grouped, k) * np.float32(config.head_dim**-0.5)
    if config.layout != "full":
        scores = np.where(np.tri(rows, dtype=bool), scores, np.float32(-1e30))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("ghij,jgd->ighd", weights, v.reshape(rows, groups, -1)).reshape(rows, -1)
