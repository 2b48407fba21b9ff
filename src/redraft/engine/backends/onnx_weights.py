"""A checkpoint's tensors in numpy, without torch, in the form that the ONNX graph wants them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from redraft.denoiser.adapter_config import ADAPTER_CONFIG
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


class Tensors(Mapping[str, np.ndarray]):
    """Tensors of safetensors files by name, read and widened to float32 one at a time, when asked for."""

    def __init__(
        self, files: Iterable[Path], rename: Callable[[str], str | None] = lambda name: name
    ) -> None:
        """rename: a tensor's name in the file to ours, None to leave it out. Raises RequestError for a bad file."""
        self._entries: dict[str, tuple[Path, np.ndarray, str, list[int]]] = {}
        for path in files:
            for name, raw, dtype, shape in _entries(path):
                own = rename(name)
                if own is not None:
                    self._entries[own] = (path, raw, dtype, shape)

    def __getitem__(self, name: str) -> np.ndarray:
        path, raw, dtype, shape = self._entries[name]
        if dtype not in DTYPES:
            raise RequestError(f"{path}: {name} is {dtype}; redraft reads {', '.join(DTYPES)}")
        if raw.size != np.dtype(DTYPES[dtype]).itemsize * math.prod(shape):
            raise RequestError(f"{path} is damaged: {name} has {raw.size} bytes; fetch it again")
        values = raw.view(DTYPES[dtype]).reshape(shape)
        return (
            widen(values) if dtype == "BF16" else values.astype(np.float32)
        )  # copies: a mapped file may change

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _entries(path: Path) -> list[tuple[str, np.ndarray, str, list[int]]]:
    """(name, bytes, dtype, shape) of a file's tensors; the bytes are mapped, not read."""
    try:
        data = np.memmap(path, np.uint8, "r")
        size = int.from_bytes(data[:8].tobytes(), "little")
        if len(data) < 8 or size > min(MAX_HEADER, len(data) - 8):
            raise ValueError("its header is longer than the file")
        header = json.loads(data[8 : 8 + size].tobytes())
        header.pop("__metadata__", None)
        found = []
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= len(data) - 8 - size:
                raise ValueError(f"{name} lies outside it")
            found.append(
                (name, data[8 + size + begin : 8 + size + end], str(entry["dtype"]), list(entry["shape"]))
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"{path} is truncated or not a safetensors file ({error}); fetch it again"
        ) from None
    return found


def read_tensors(folder: str | Path, rename: Callable[[str], str | None] = lambda name: name) -> Tensors:
    """All tensors of a model's folder: of model.safetensors, or of the shards that its index lists.

    Raises RequestError for a folder without safetensors (pickles are never read), for a truncated file, and for an
    adapter, whose clean rows and canvas rows have different weights.
    """
    folder = Path(folder)
    if (folder / ADAPTER_CONFIG).exists():
        raise RequestError(f"{folder} is an adapter, which is no single graph: give its base")
    names = [WEIGHTS]
    if (folder / INDEX).exists():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(f"{folder / INDEX} can't be read: {error}") from None
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise RequestError(f"{folder / INDEX} names {outside[0]}, which lies outside the folder")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise RequestError(f"{folder} has no {missing[0]}: redraft reads safetensors only")
    return Tensors([folder / name for name in names], rename)


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
