"""What safetensors files hold, one or several to a model: found, mapped and checked with numpy alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redraft.denoiser.adapter_config import ADAPTER_CONFIG
from redraft.errors import RequestError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100 << 20
SIZES = {  # bytes of an entry
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
}
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor in its file: the name it has there, its bytes (uint8, mapped: a change to the file may show in them),
    dtype in safetensors' words, and shape."""

    path: Path
    name: str
    data: np.ndarray
    dtype: str
    shape: tuple[int, ...]


def read_entries(folder: str | Path) -> dict[str, Entry]:
    """All tensors by name: of model.safetensors, or of the shards that its index lists.

    Raises RequestError for a folder without safetensors (pickles are never read), for a file that is missing,
    truncated or damaged, and for a tensor that the index promises and no shard holds.
    """
    folder = Path(folder)
    listed = _listed(folder)
    names = [WEIGHTS] if listed is None else sorted(set(listed.values()))
    for name in names:
        if not (folder / name).exists():
            raise RequestError(f"{folder} has no {name}{pickle_hint(folder)}")
    out = {own: entry for name in names for own, entry in entries(folder / name).items()}
    absent = sorted(set(listed or ()) - out.keys())
    if absent:
        raise RequestError(f"{folder / INDEX} lists {absent[0]}, which no shard holds: fetch the model again")
    return out


def weight_files(folder: Path) -> list[str]:
    """model.safetensors, or the shards that its index lists. Raises RequestError for an index that can't be read or
    leads out of the folder."""
    listed = _listed(folder)
    return [WEIGHTS] if listed is None else sorted(set(listed.values()))


def entries(path: Path) -> dict[str, Entry]:
    """The tensors of one file. Raises RequestError for one that is truncated or damaged."""
    try:
        data = np.memmap(path, np.uint8, "c")  # private: what is read as writable can't reach the file
        size = int.from_bytes(data[:8].tobytes(), "little")
        if len(data) < 8 or size > min(MAX_HEADER, len(data) - 8):
            raise ValueError("its header is longer than the file")
        header = json.loads(data[8 : 8 + size].tobytes())
        header.pop("__metadata__", None)
        found = {name: _entry(path, data[8 + size :], name, told) for name, told in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"{path} is truncated or not a safetensors file ({error}); fetch it again"
        ) from None
    return found


def _entry(path: Path, data: np.ndarray, name: str, told: dict[str, Any]) -> Entry:
    begin, end = told["data_offsets"]
    if not 0 <= begin <= end <= len(data):
        raise ValueError(f"{name} lies outside it")
    dtype, shape = str(told["dtype"]), tuple(told["shape"])
    due = SIZES.get(dtype, 0) * math.prod(shape)
    if dtype in SIZES and due != end - begin:
        raise ValueError(f"{name} has {end - begin} bytes where {dtype} {list(shape)} takes {due}")
    return Entry(path, name, data[begin:end], dtype, shape)


def pickle_hint(folder: Path) -> str:
    """In brackets, that the folder's weights are pickles; nothing where there are none."""
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES)
    hint = "is a pickle, which redraft never opens: convert it to safetensors"
    return f" ({pickles[0]} {hint})" if pickles else ""


def _listed(folder: Path) -> dict[str, str] | None:
    """File by tensor, as the index tells; None without one."""
    path = folder / INDEX
    if not path.exists():
        return None
    try:
        listed: dict[str, str] = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        outside = [name for name in listed.values() if Path(name).name != name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{path} can't be read: {error}") from None
    if outside:
        raise RequestError(f"{path} names {outside[0]}, which lies outside the folder")
    if not listed:
        raise RequestError(f"{path} lists no tensors: fetch the model again")
    return listed


def widen(raw: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 to float32: the same bits, sixteen zeros below."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


class Tensors(Mapping[str, np.ndarray]):
    """Tensors of a safetensors file by name, read and widened to float32 one at a time, when asked for."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        if entry.dtype not in FLOATS:
            raise RequestError(f"{entry.path}: {name} is {entry.dtype}; redraft reads {', '.join(FLOATS)}")
        values = entry.data.view(FLOATS[entry.dtype]).reshape(entry.shape)
        return (
            widen(values) if entry.dtype == "BF16" else values.astype(np.float32)
        )  # copies: a mapped file may change

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def read_tensors(folder: str | Path, rename: Callable[[str], str | None] = lambda name: name) -> Tensors:
    """All tensors of a model's folder: of model.safetensors, or of the shards that its index lists.

    rename: a tensor's name in the file to ours, None to leave it out. Raises RequestError as read_entries does, and for
    an adapter, whose clean rows and canvas rows have different weights.
    """
    if (Path(folder) / ADAPTER_CONFIG).exists():
        raise RequestError(f"{folder} is an adapter, whose weights go beside a base's: give its base")
    renamed = {rename(name): entry for name, entry in read_entries(folder).items()}
    return Tensors({name: entry for name, entry in renamed.items() if name is not None})
