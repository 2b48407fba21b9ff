"""Forward diffusion: how text turns into noise, and everything exact that follows from it. Needs no torch."""

from redraft.corruption.process import Belief, Kernel, Process, Shares
from redraft.corruption.registry import CORRUPTIONS, process
from redraft.corruption.schedules import SCHEDULES, Schedule

__all__ = ["CORRUPTIONS", "SCHEDULES", "Belief", "Kernel", "Process", "Schedule", "Shares", "process"]
