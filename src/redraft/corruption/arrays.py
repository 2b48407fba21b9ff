"""The few operations the formulas need, for numpy arrays and torch tensors alike. torch is never imported
first."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def namespace(value: Any) -> Any:
    """torch for a tensor, numpy for anything else. A tensor can only exist where torch is already
    imported."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(value, torch.Tensor) else np


def like(value: Any, model: Any) -> Any:
    """`value` (number, array or tensor) as floats of model's kind, dtype and device."""
    xp = namespace(model)
    if xp is np:
        return np.asarray(value, dtype=model.dtype)
    return xp.as_tensor(value, dtype=model.dtype, device=model.device)


def pick(values: Any, index: Any) -> Any:
    """values [..., V] at index [...]: [...]."""
    if namespace(values) is np:
        return np.take_along_axis(values, np.asarray(index)[..., None], axis=-1)[..., 0]
    return values.gather(-1, index[..., None])[..., 0]
