"""Tests of the network run on one thread: they are tiny, and other work may share the machine."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
