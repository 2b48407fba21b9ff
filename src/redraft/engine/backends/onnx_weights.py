"""A checkpoint's tensors in numpy, without torch, in the form that the ONNX graph wants them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.backends.onnx_graph import Weight
from redraft.engine.backends.onnx_outliers import outliers
from redraft.engine.backends.onnx_scale import head_norms, query_scale
from redraft.errors import RequestError

# 7 bits of the 8, which are right on every processor: AVX2 without VNNI adds two products u8 * s8 in 16 bits with
# saturation, and 2 * 255 * 63 stays below 32768 where 2 * 255 * 127 does not.
INTEGER_MAX = 63
PARTS = ("scale", "columns", "others", "outlying")  # of a weight that is held in 8 bits, beside its integers


def quantize(weight: np.ndarray, largest: int = INTEGER_MAX) -> tuple[np.ndarray, np.ndarray]:
    """[outputs, inputs] to int8 [inputs, outputs] in ±largest and one float32 scale an output."""
    scale = np.maximum(np.abs(weight).max(axis=1), 1e-30) / largest
    integers = np.rint(weight / scale[:, None]).astype(np.int8)
    return np.ascontiguousarray(integers.T), scale.astype(np.float32)


def _fused(config: DenoiserConfig, tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """The tensor that the graph calls `name`: a checkpoint's own, or several joined into one."""
    stem, _, kind = name.rpartition(".")
    if name == "model.role_embeddings":
        canvas, locked = tensors["model.canvas_embedding"], tensors["model.locked_embedding"]
        return np.stack((np.zeros_like(canvas), canvas, canvas + locked))
    if kind == "qk_norm":
        q, k = tensors[f"{stem}.q_norm.weight"], tensors[f"{stem}.k_norm.weight"]
        return head_norms(config, q, k)
    if stem.endswith(".qkv"):
        q, k, v = (tensors[f"{stem[:-3]}{part}_proj.{kind}"] for part in "qkv")
        return np.concatenate([q * query_scale(config), k, v])
    if stem.endswith(".gate_up"):
        return np.concatenate([tensors[f"{stem[:-7]}{part}_proj.{kind}"] for part in ("gate", "up")])
    if name == "lm_head.weight" and config.tie_word_embeddings:
        return tensors["model.embed_tokens.weight"]
    return tensors[name]


def in_eight_bits(
    weight: np.ndarray, columns: np.ndarray | None = None, largest: int = INTEGER_MAX
) -> dict[str, np.ndarray]:
    """A weight [outputs, inputs] by the parts that the graph reads. columns (int64, any order): inputs that stay in
    float32, and leave their place among the integers empty."""
    out: dict[str, np.ndarray] = {}
    if columns is not None:
        out["columns"] = np.sort(columns)
        out["outlying"] = np.ascontiguousarray(weight[:, out["columns"]])
        out["others"] = np.ones(weight.shape[1], np.float32)
        out["others"][columns] = 0
        weight = weight * out["others"]
    out["integers"], out["scale"] = quantize(weight, largest)
    return out


def prepare(
    config: DenoiserConfig,
    tensors: Mapping[str, np.ndarray],
    wanted: list[Weight],
    source: str = "the model",
    largest: int = INTEGER_MAX,
) -> dict[str, np.ndarray]:
    """Every weight the graph lists, by name; largest: of the integers of one held in 8 bits.

    Raises RequestError on a missing or misshapen one.
    """
    out: dict[str, np.ndarray] = {}
    counts = {w.name.removesuffix(".columns"): w.shape[0] for w in wanted if w.name.endswith(".columns")}
    try:
        first = outliers(config, tensors, max(counts.values())) if counts else {}
        for weight in wanted:
            stem, _, kind = weight.name.rpartition(".")
            if kind == "integers":
                columns = first[stem][: counts[stem]] if stem in counts else None
                parts = in_eight_bits(_fused(config, tensors, f"{stem}.weight"), columns, largest)
                out |= {f"{stem}.{part}": values for part, values in parts.items()}
            elif kind not in PARTS:
                out[weight.name] = np.ascontiguousarray(_fused(config, tensors, weight.name), np.float32)
    except KeyError as error:
        raise RequestError(f"{source} lacks {error}: config.json and weights don't belong together") from None
    except (ValueError, IndexError) as error:
        raise RequestError(f"{source}: config.json and weights don't belong together ({error})") from None
    for weight in wanted:
        if out[weight.name].shape != weight.shape:
            shapes = f"{list(out[weight.name].shape)} where the config wants {list(weight.shape)}"
            raise RequestError(f"{source}: {weight.name} is {shapes}")
    return out
