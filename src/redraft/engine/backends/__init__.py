"""Ways to run the network. A new one is a file with a class that has `load(folder)`, and a line in
BACKENDS."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path

from redraft.denoiser.adapter_config import ADAPTER_CONFIG
from redraft.engine.backend import Backend
from redraft.errors import RequestError

# name: (module, class, the packages it can't do without, what installs them)
BACKENDS = {
    "onnx": ("redraft.engine.backends.onnx_backend", "OnnxBackend", ("onnxruntime",), "redraft"),
    "torch": ("redraft.engine.backends.torch_backend", "TorchBackend", ("torch",), "redraft[train]"),
}

# Where an adapter on a base is loaded by another class: (module, class).
ADAPTED = {"onnx": ("redraft.engine.backends.onnx_adapted", "AdaptedOnnxBackend")}


def available(name: str) -> bool:
    """Whether everything that a backend needs is installed; imports nothing."""
    module, _, packages, _ = BACKENDS[name]
    return find_spec(module) is not None and all(find_spec(package) is not None for package in packages)


def load_backend(name: str, folder: str | Path) -> Backend:
    """A model's folder on a backend; "auto" takes the first of BACKENDS that is installed and knows the
    model.

    Raises RequestError for an unknown name, and for one that isn't installed, naming the pip command.
    """
    if name == "auto":
        name = _first_for(folder)
    if name not in BACKENDS:
        raise RequestError(f"backend {name!r} is unknown; one of auto, {', '.join(BACKENDS)}")
    module, kind, packages, extra = BACKENDS[name]
    if not available(name):
        raise RequestError(f"backend {name} needs {' and '.join(packages)}: pip install '{extra}'")
    if (Path(folder) / ADAPTER_CONFIG).exists():
        module, kind = ADAPTED.get(name, (module, kind))
    loaded: Backend = getattr(importlib.import_module(module), kind).load(folder)
    return loaded


def _first_for(folder: str | Path) -> str:
    from redraft.denoiser.config import read_config
    from redraft.denoiser.families import identify

    identify(read_config(folder), str(folder))  # raises for a network that none of them knows
    for name in BACKENDS:
        if available(name):
            return name
    raise RequestError("no backend is installed: pip install redraft")
