"""Keeps freed memory for the next step, on a CPU; tells a want of memory from other failures.

glibc gives every large block back to the system and asks for it anew, so that each step of training faults in
gigabytes of zeroed pages: half of the time of a step here. With these thresholds freed blocks stay in the process.
"""

from __future__ import annotations

import ctypes
import sys

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Tells malloc to reuse large blocks; False where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    set_ = [
        mallopt(M_MMAP_THRESHOLD, LARGEST),
        mallopt(M_TRIM_THRESHOLD, LARGEST),
        mallopt(M_TOP_PAD, 1 << 28),
    ]
    return all(set_)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch failed for want of memory: of a GPU's it has a class of errors, of a CPU's only words."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)
