"""Where the null slots of an edited text lie."""

from __future__ import annotations

import numpy as np


def with_nulls(tokens: np.ndarray, every: int, null_id: int) -> np.ndarray:
    """int64 [n] tokens with one null slot after every `every` of them: int64 [n + n // every]."""
    tokens = np.asarray(tokens, dtype=np.int64)
    return np.insert(tokens, np.arange(every, len(tokens) + 1, every), null_id)
