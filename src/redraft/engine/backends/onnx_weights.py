"""A checkpoint's tensors in numpy, without torch, in the form that the ONNX graph wants them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.backends.onnx_graph import ZERO, Weight
from redraft.engine.backends.onnx_scale import head_norms, query_scale
from redraft.errors import RequestError

# 7 bits of the 8, which are right on every processor: AVX2 without VNNI adds two products u8 * s8 in 16 bits with
# saturation, and 2 * 255 * 63 stays below 32768 where 2 * 255 * 127 does not.
INTEGER_MAX = 63
SCALES = ("scale", "steps")  # of a weight that is held in 8 bits, beside its integers or blocks
SMALLEST_STEP = 1e-30  # of a block; one of less is held as zeros


def quantize(weight: np.ndarray, largest: int = INTEGER_MAX) -> tuple[np.ndarray, np.ndarray]:
    """[outputs, inputs] to int8 [inputs, outputs] in ±largest and one float32 scale an output."""
    scale = np.maximum(np.abs(weight).max(axis=1), 1e-30) / largest
    integers = np.rint(weight / scale[:, None]).astype(np.int8)
    return np.ascontiguousarray(integers.T), scale.astype(np.float32)


def in_blocks(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """[outputs, inputs] to uint8 [outputs, inputs / block, block] around 128, and each block's float32 step, [outputs *
    inputs / block]. All 8 bits are used, ±127: no kernel of MatMulNBits adds up in 16 bits (see onnx_processor).

    The step of a block of zeros is 0: any other would leave its sum a rounding error beside 0.
    """
    parts = weight.reshape(len(weight), -1, block)
    steps = np.maximum(parts.max(-1), -parts.min(-1)) / np.float32(127)
    steps[steps < SMALLEST_STEP] = 0
    integers = parts / np.where(steps > 0, steps, 1)[..., None]
    np.rint(integers, out=integers)
    integers += ZERO
    return integers.astype(np.uint8), steps.reshape(-1)


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


def prepare(
    config: DenoiserConfig,
    tensors: Mapping[str, np.ndarray],
    wanted: list[Weight],
    source: str = "the model",
    largest: int = INTEGER_MAX,
) -> dict[str, np.ndarray]:
    """Every weight the graph lists, by name; largest: of the integers of one with a scale a row.

    Raises RequestError on a missing or misshapen one.
    """
    out: dict[str, np.ndarray] = {}
    try:
        for weight in wanted:
            stem, _, kind = weight.name.rpartition(".")
            if kind == "integers":
                made = quantize(_fused(config, tensors, f"{stem}.weight"), largest)
                out[weight.name], out[f"{stem}.scale"] = made
            elif kind == "blocks":
                made = in_blocks(_fused(config, tensors, f"{stem}.weight"), weight.shape[-1])
                out[weight.name], out[f"{stem}.steps"] = made
            elif kind not in SCALES:
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
