"""torchrun's processes, or one process alone: the same calls either way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from redraft.errors import RequestError


@dataclass(frozen=True)
class World:
    """rank of size processes; device: where this one computes."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over all processes, in float64."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(v) for v in tensor.cpu()]

    def add_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Sums gradients over processes, in one message."""
        if self.size == 1:
            return
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([g.flatten() for g in found])
        dist.all_reduce(flat)
        for p, part in zip(parameters, flat.split([g.numel() for g in found]), strict=True):
            p.grad = part.view_as(p)

    def any(self, value: bool) -> bool:
        """Whether it's true in some process."""
        return self.sum([float(value)])[0] > 0

    def share(self, rows: int) -> range:
        """This process's rows of a global batch."""
        return range(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def device_for(device: str) -> torch.device:
    """Where this process computes: "cpu", "cuda", or "auto" for a GPU if there is one. RequestError without one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("train.device is cuda, but torch sees no GPU here; use cpu or auto")
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_cuda else torch.device("cpu")


def make_once(folder: str | Path, make: Callable[[], object]) -> None:
    """Makes a corpus unless it's there; the other processes of a group, which may not have met yet, wait for it."""
    made = Path(folder) / "train.json"  # written last
    if int(os.environ.get("RANK", "0")):
        while not made.exists():
            time.sleep(1)
    elif not made.exists():
        make()


def join(device: str) -> World:
    """Joins the group that torchrun set up (gloo on a CPU, nccl on GPUs), if there is one."""
    where = device_for(device)
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    use_cuda = where.type == "cuda"
    if use_cuda:
        torch.cuda.set_device(where)
    if size > 1:
        dist.init_process_group("nccl" if use_cuda else "gloo")
    return World(rank, size, where)
