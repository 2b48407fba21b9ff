"""The command line run as a person runs it: in a process of its own, on pipes or on a terminal.

The process is forked from the tests' own, which has loaded torch already: only what a test is about takes time.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import os
import pty
import select
import signal
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from redraft.cli.main import main
from tests.cli.models import write_network

torch.set_num_threads(1)  # a forked process can't use the threads of the one it came from

SOURCE = Path(__file__).parents[2] / "src"
COMMAND = [sys.executable, "-m", "redraft.cli"]


def environment(home: Path, **more: str) -> dict[str, str]:
    unwanted = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM")
    kept = {k: v for k, v in os.environ.items() if k not in unwanted}
    own = {"PYTHONPATH": str(SOURCE), "REDRAFT_HOME": str(home), "TERM": "xterm-256color"}
    return kept | own | {"TOKENIZERS_PARALLELISM": "false"} | more


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Screen:
    """Everything that a terminal was sent, from stdout and stderr."""

    status: int
    sent: str


Redraft = Callable[..., Result]
Terminal = Callable[..., Screen]


@pytest.fixture(scope="session")
def network_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("models") / "tiny-random")


def run_and_exit(arguments: list[str], settings: dict[str, str]) -> None:
    """In a forked process: the command line with file descriptors 0 to 2 as its streams; never returns."""
    status = 70
    gc.disable()  # sessions of the parent's earlier tests would wait here for threads that a fork leaves behind
    try:
        os.environ.clear()
        os.environ.update(settings)
        sys.stdin, sys.stdout, sys.stderr = (
            io.TextIOWrapper(
                os.fdopen(number, mode, closefd=False), "utf-8", errors, line_buffering=number > 0
            )
            for number, mode, errors in (
                (0, "rb", "strict"),
                (1, "wb", "strict"),
                (2, "wb", "backslashreplace"),
            )
        )
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            main(arguments)
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 1
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(status)


@pytest.fixture
def redraft(tmp_path: Path) -> Redraft:
    """redraft(*arguments, stdin=bytes, **environment) -> Result; all three streams are files, as in a script."""

    def call(*arguments: str | bytes | Path, stdin: bytes = b"", **more: str) -> Result:
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            given.write(stdin)
            given.seek(0)
            child = os.fork()
            if child == 0:
                for number, file in enumerate((given, out, err)):
                    os.dup2(file.fileno(), number)
                run_and_exit([os.fsdecode(a) for a in arguments], environment(tmp_path / "home", **more))
            _, status = os.waitpid(child, 0)
            out.seek(0)
            err.seek(0)
            return Result(os.waitstatus_to_exitcode(status), out.read().decode(), err.read().decode())

    return call


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """terminal(*arguments, keys=[(wait for, then type)], columns, rows, **environment) -> Screen, on a real pty."""

    def call(
        *arguments: str | Path,
        keys: list[tuple[str, str]] | None = None,
        columns: int = 80,
        rows: int = 24,
        **more: str,
    ) -> Screen:
        child, leader = pty.fork()
        if child == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            run_and_exit([os.fsdecode(a) for a in arguments], environment(tmp_path / "home", **more))
        try:
            sent = converse(leader, list(keys or ()))
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            _, status = os.waitpid(child, 0)
            os.close(leader)
        return Screen(os.waitstatus_to_exitcode(status), sent)

    return call


def converse(leader: int, keys: list[tuple[str, str]]) -> str:
    """Reads until the program ends, typing each answer once its cue has been shown since the last one."""
    sent, seen = b"", 0
    for data in pieces(leader):
        sent += data
        while keys and (at := sent.find(keys[0][0].encode(), seen)) >= 0:
            cue, answer = keys.pop(0)
            seen = at + len(cue.encode())
            if answer == "\x03":  # a prompt is drawn a moment before it listens
                time.sleep(0.15)
            os.write(leader, answer.encode())
    assert not keys, f"{keys[0][0]!r} was never shown: {sent!r}"
    return sent.decode()


def pieces(leader: int, seconds: float = 60.0) -> Iterator[bytes]:
    deadline = time.monotonic() + seconds
    while select.select([leader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            data = os.read(leader, 65536)
        except OSError:  # Linux's end of file on a pty
            return
        if not data:
            return
        yield data
    raise AssertionError(f"still running after {seconds:.0f} seconds")
