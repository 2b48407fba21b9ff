"""What processes share, signals between steps, and memory that is kept."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redraft.errors import RequestError
from redraft.training.distributed import World, join
from redraft.training.interrupt import Interrupt


@given(st.integers(1, 9), st.integers(0, 40))
def test_shares_are_a_partition_in_order(size: int, rows: int) -> None:
    shares = [World(rank, size, torch.device("cpu")).share(rows) for rank in range(size)]
    assert [r for share in shares for r in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_agrees_with_itself() -> None:
    world = join("cpu")
    assert (world.rank, world.size, world.first) == (0, 1, True)
    assert world.sum([1.5, 2.0]) == [1.5, 2.0]
    assert world.any(True)
    assert not world.any(False)
    world.wait()
    world.close()
    if not torch.cuda.is_available():
        with pytest.raises(RequestError, match="no GPU"):
            join("cuda")


def test_a_first_signal_is_noted_and_a_second_one_raises() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        assert not interrupt.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with Interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted for glibc's malloc")
def test_freed_blocks_are_used_again() -> None:
    """Thirty large blocks, one after the other, fault their pages in once and not thirty times."""
    code = """
import resource
from redraft.training.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(30):
        block = b"x" * (48 << 20)
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
if keep_freed_memory():
    print(faults())
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    pages = (48 << 20) // resource.getpagesize()
    assert not done.stdout or int(done.stdout) < 5 * pages
