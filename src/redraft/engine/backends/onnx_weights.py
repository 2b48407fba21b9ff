"""A checkpoint's tensors in numpy, without torch, in the form that the ONNX graph wants them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.backends.onnx_graph import Weight
from redraft.errors import RequestError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
MAX_HEADER = 100 << 20

# 7 bits of the 8: AVX2 without VNNI adds two products u8 * s8 in 16 bits with saturation, and
# 2 * 255 * 63 stays below 32768 where 2 * 255 * 127 does not.
INTEGER_MAX = 63


def widen(raw: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 to float32: the same bits, sixteen zeros below."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


def _read_file(path: Path) -> dict[str, np.ndarray]:
    """Tensors of one safetensors file as float32; a file is mapped, so unread tensors cost nothing."""
    try:
        data = np.memmap(path, np.uint8, "r")
        (size,) = struct.unpack("<Q", data[:8].tobytes())
        if size > min(MAX_HEADER, len(data) - 8):
            raise ValueError("header longer than the file")
        header = json.loads(data[8 : 8 + size].tobytes())
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            dtype = np.dtype(DTYPES[entry["dtype"]])
            shape = tuple(entry["shape"])
            if not 0 <= begin <= end <= len(data) - 8 - size or end - begin != dtype.itemsize * int(
                np.prod(shape)
            ):
                raise ValueError(f"{name} lies outside the file")
            flat = data[8 + size + begin : 8 + size + end].view(dtype).reshape(shape)
            tensors[name] = widen(flat) if entry["dtype"] == "BF16" else flat.astype(np.float32)
    except KeyError as error:
        raise RequestError(f"{path} holds {error}, which is not a floating point tensor of ours") from None
    except (OSError, ValueError, struct.error, TypeError, AttributeError) as error:
        raise RequestError(
            f"{path} is truncated or not a safetensors file ({error}); fetch it again"
        ) from None
    return tensors


def read_tensors(folder: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a model's folder as float32, by name.

    Raises RequestError for a folder without safetensors and for a truncated file.
    """
    folder = Path(folder)
    names = [WEIGHTS]
    if (folder / INDEX).exists():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, OSError) as error:
            raise RequestError(f"{folder / INDEX} can't be read: {error}") from None
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        if not (folder / name).exists():
            raise RequestError(f"{folder} has no {name}: redraft reads safetensors only")
        tensors |= _read_file(folder / name)
    return tensors


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[outputs, inputs] to int8 [inputs, outputs] in ±63 and one float32 scale an output."""
    scale = np.maximum(np.abs(weight).max(axis=1), 1e-30) / INTEGER_MAX
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
        return np.stack([q] * config.num_attention_heads + [k] * config.num_key_value_heads)
    if stem.endswith(".qkv"):
        return np.concatenate([tensors[f"{stem[:-3]}{part}_proj.{kind}"] for part in "qkv"])
    if stem.endswith(".gate_up"):
        return np.concatenate([tensors[f"{stem[:-7]}{part}_proj.{kind}"] for part in ("gate", "up")])
    if name == "lm_head.weight" and config.tie_word_embeddings:
        return tensors["model.embed_tokens.weight"]
    return tensors[name]


def prepare(
    config: DenoiserConfig, tensors: Mapping[str, np.ndarray], wanted: list[Weight], source: str = "the model"
) -> dict[str, np.ndarray]:
    """Every weight the graph lists, by name; raises RequestError on a missing or misshapen one."""
    out: dict[str, np.ndarray] = {}
    try:
        for weight in wanted:
            stem, _, kind = weight.name.rpartition(".")
            if kind == "integers":
                out[weight.name], out[f"{stem}.scale"] = quantize(_fused(config, tensors, f"{stem}.weight"))
            elif weight.name not in out:
                out[weight.name] = np.ascontiguousarray(_fused(config, tensors, weight.name), np.float32)
    except KeyError as error:
        raise RequestError(f"{source} lacks {error}: config.json and weights don't belong together") from None
    except ValueError as error:
        raise RequestError(f"{source}: config.json and weights don't belong together ({error})") from None
    for weight in wanted:
        if out[weight.name].shape != weight.shape:
            shapes = f"{list(out[weight.name].shape)} where the config wants {list(weight.shape)}"
            raise RequestError(f"{source}: {weight.name} is {shapes}")
    return out
