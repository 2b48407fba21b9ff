"""The command line run as a person runs it: in a process of its own, on a pipe or on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
COMMAND = [sys.executable, "-m", "redraft.cli.main"]


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")}
    own = {
        "PYTHONPATH": str(SOURCE),
        "REDRAFT_HOME": str(home),
        "TERM": "xterm-256color",
        "OMP_NUM_THREADS": "1",
    }
    return kept | own | more


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


Redraft = Callable[..., Result]


@pytest.fixture
def redraft(tmp_path: Path) -> Redraft:
    """redraft(*arguments, stdin=bytes, **environment) -> Result, stdout and stderr being pipes."""

    def call(*arguments: str | bytes | Path, stdin: bytes = b"", **more: str) -> Result:
        done = subprocess.run(
            [*COMMAND, *arguments],
            input=stdin,
            capture_output=True,
            env=environment(tmp_path / "home", **more),
            timeout=60,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    return call


@dataclass(frozen=True)
class Screen:
    """Everything that a terminal was sent (stdout and stderr)."""

    status: int
    sent: str


Terminal = Callable[..., Screen]


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """terminal(*arguments, keys=[(wait for, then type)], columns, rows, **environment) -> Screen, on a real
    pty.
    """

    def call(
        *arguments: str | Path,
        keys: list[tuple[str, str]] | None = None,
        columns: int = 80,
        rows: int = 24,
        **more: str,
    ) -> Screen:
        child, leader = pty.fork()
        if child == 0:
            os.execvpe(COMMAND[0], [*COMMAND, *map(str, arguments)], environment(tmp_path / "home", **more))
        fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        try:
            sent = _converse(leader, list(keys or ()))
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            _, status = os.waitpid(child, 0)
            os.close(leader)
        return Screen(os.waitstatus_to_exitcode(status), sent)

    return call


def _converse(leader: int, keys: list[tuple[str, str]]) -> str:
    """Reads until the program ends, typing each answer once its cue has been shown since the last one."""
    sent, seen, deadline = b"", 0, time.monotonic() + 60
    while time.monotonic() < deadline:
        if keys and keys[0][0].encode() in sent[seen:]:
            seen = len(sent)
            os.write(leader, keys.pop(0)[1].encode())
        if select.select([leader], [], [], 0.2)[0]:
            try:
                data = os.read(leader, 65536)
            except OSError:  # Linux's end of file on a pty
                return sent.decode()
            if not data:
                return sent.decode()
            sent += data
    raise AssertionError(f"still running after a minute, having shown {sent[-2000:]!r}")
