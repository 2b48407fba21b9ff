"""A denoiser as an ONNX file that any ONNX Runtime opens: the graph, and its weights in a safetensors file beside it.

redraft itself builds the graph when it loads a model and needs no export; this is for other programs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from redraft.denoiser.adapter_config import ADAPTER_CONFIG
from redraft.engine.agreement import Agreement, agreement
from redraft.engine.backends.onnx_adapted import AdaptedOnnxBackend
from redraft.engine.backends.onnx_backend import OnnxBackend
from redraft.engine.backends.onnx_graph import Precision
from redraft.engine.backends.onnx_weights import INTEGER_MAX
from redraft.errors import RequestError
from redraft.files import write_atomically


@dataclass(frozen=True)
class Export:
    """What was written, its bytes together, and how it agrees with fp32 on the tokens given (None without any)."""

    graph: Path
    weights: Path
    size: int
    precision: Precision
    agreement: Agreement | None


def _places(file: str, data: bytes) -> dict[str, dict[str, str]]:
    """Where each tensor lies in a safetensors file."""
    base = 8 + int.from_bytes(data[:8], "little")
    # safetensors orders tensors by its own rule, so the offsets are read back from the header it wrote.
    return {
        name: {"location": file, "offset": str(base + begin), "length": str(end - begin)}
        for name, (begin, end) in _offsets(data[8:base]).items()
    }


def _offsets(header: bytes) -> dict[str, tuple[int, int]]:
    entries = json.loads(header)
    return {name: tuple(entry["data_offsets"]) for name, entry in entries.items() if name != "__metadata__"}


def export(
    folder: str | Path,
    out: str | Path,
    precision: Precision | None = None,
    sequences: Sequence[np.ndarray] = (),
) -> Export:
    """Writes denoiser-{precision}.onnx and denoiser-{precision}.safetensors into `out`, which is made if absent.

    folder: a model of ours or of another family, or an adapter, whose graph reads which rows are its own (see
    onnx_inputs); its draft heads are not in it. precision None chooses by size. The file is right on every processor:
    8-bit weights with one scale a row have 7 bits here, those in blocks need no such care (see onnx_processor).
    sequences: int64 token arrays on which the exported precision is compared with fp32. Raises RequestError for a
    folder that is no model or can't be made.
    """
    out = Path(out)
    made = _loaded(Path(folder), precision)
    precision = made.precision
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{out} can't be made: {error.strerror}") from None
    graph_path, weights_path = out / f"denoiser-{precision}.onnx", out / f"denoiser-{precision}.safetensors"
    data = save({w.name: np.ascontiguousarray(made.weights[w.name]) for w in made.reads})
    graph = made.graph(_places(weights_path.name, data))
    write_atomically(weights_path, data)
    write_atomically(graph_path, graph.data)
    compared = agreement(_loaded(Path(folder), "fp32"), made, sequences) if sequences else None
    size = graph_path.stat().st_size + weights_path.stat().st_size
    return Export(graph_path, weights_path, size, precision, compared)


def _loaded(folder: Path, precision: Precision | None) -> OnnxBackend:
    """A model, or an adapter with its base; integers of 7 bits where a row has one scale."""
    if (folder / ADAPTER_CONFIG).exists():
        return AdaptedOnnxBackend.load(folder, precision, largest=INTEGER_MAX)
    return OnnxBackend.load(folder, precision, largest=INTEGER_MAX)
