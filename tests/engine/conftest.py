"""Tests of the engine run on one thread: the networks are tiny, and other work may share the machine."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("no deadline", deadline=None)  # a busy machine is no fault
settings.load_profile("no deadline")
