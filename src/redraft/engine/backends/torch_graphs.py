"""CUDA graphs: the kernels of one evaluation, recorded once and launched as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

WARM_UPS = 2  # runs before recording, in which libraries choose their kernels and allocate their workspaces
TIMED = 10


@dataclass(frozen=True, eq=False)
class Recording:
    """replay: runs what was recorded, on what its inputs hold by then; output: where the result lies."""

    replay: Callable[[], object]
    output: Tensor


class Recorder(Protocol):
    def record(self, run: Callable[[], Tensor]) -> Recording:
        """Records `run`, which must neither read back what it computes nor allocate by it. Raises RuntimeError."""
        ...

    def seconds(self, recording: Recording) -> float:
        """What a replay takes."""
        ...


class CudaGraphs:
    """Recorder for one CUDA device. All graphs share a memory pool: one runs at a time, and its output is copied away
    before the next."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memory = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Tensor]) -> Recording:
        with torch.cuda.device(self.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                output = run()
        return Recording(graph.replay, output)

    def seconds(self, recording: Recording) -> float:
        """Mean of a few replays in a row, by the device's clock: no launch is waited for."""
        with torch.cuda.device(self.device):
            recording.replay()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(TIMED):
                recording.replay()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / TIMED
