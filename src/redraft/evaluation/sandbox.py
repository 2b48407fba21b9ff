"""Runs Python that a model wrote, shut in by bubblewrap: no network, a read-only system without the user's files, a
temporary folder of its own, and limits on time, memory, processes, files and output.

It guards a machine against programs that go wrong, and against most that mean harm; the kernel is shared, so whoever
expects an attack runs it in a virtual machine besides.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import which
from typing import Literal

from redraft.errors import RequestError

UNSAFE_FLAG = "--unsafe-without-sandbox"
Status = Literal["ok", "failed", "timeout", "memory", "processes", "output"]


@dataclass(frozen=True)
class Limits:
    """cpu: seconds that each process may compute. wall: seconds in all, more than that, so that a busy machine fails
    nobody. memory: bytes of address space a process, and resident in all. processes: at once,
    threads counted where the program is not root's. file: bytes of one file, and of the temporary folder in all.
    output: bytes of stdout and stderr, each."""

    cpu: int = 10
    wall: float = 60.0
    memory: int = 1 << 30
    processes: int = 16
    file: int = 16 << 20
    output: int = 64 << 10


@dataclass(frozen=True)
class Ran:
    """status: "ok" when the program came to its end (leaving early by exit() is "failed"). seconds: wall clock."""

    status: Status
    stdout: str
    stderr: str
    seconds: float


# What runs inside, before the program: sets the limits that can't be taken back, starts the program as a child, and
# counts processes and memory, which no limit of the kernel's does for root. Its own exit statuses name what was found.
_KINDS: dict[int, Status] = {120: "memory", 121: "processes"}
_GUARD = """
import os, resource, signal, sys, time
program, watched = sys.argv[1], sys.argv[2] == "watched"
cpu, memory, processes, size = map(int, sys.argv[3:])
def limit():
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, size), (resource.RLIMIT_CORE, 0),
                       (resource.RLIMIT_NOFILE, 256)):
        resource.setrlimit(what, (most, most))
    if watched:
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
def found():
    held, count = 0, 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            held += int(open(f"/proc/{pid}/statm").read().split()[1]) * resource.getpagesize()
            count += 1
        except (OSError, IndexError):
            pass
    return 120 if held > memory else 121 if count > processes + 2 else 0
child = os.fork()
if child == 0:
    limit()
    os.execv(sys.executable, [sys.executable, "-I", "-B", program])
while True:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        code = os.waitstatus_to_exitcode(status)
        sys.exit(code if code >= 0 else 128 - code)
    if watched and (kind := found()):
        os.kill(-1, signal.SIGKILL)
        sys.exit(kind)
    time.sleep(0.01)
"""


class Sandbox:
    """Where programs of unknown origin run. shut_in: by bubblewrap, or not at all.

    Raises RequestError where bubblewrap is missing or can't be used, unless `unsafe`: then programs run as the user
    does, with the network and every file, under limits of time, memory and size alone.
    """

    def __init__(self, limits: Limits | None = None, unsafe: bool = False) -> None:
        self.limits = limits or Limits()
        self.shut_in = not unsafe
        if not unsafe and (why := unusable()):
            raise RequestError(
                f"code that a model wrote runs in bubblewrap only, and {why}: install it (apt install bubblewrap), "
                f"or run that code unguarded with {UNSAFE_FLAG}"
            )

    def run(self, code: str) -> Ran:
        """Runs a program with the interpreter that runs redraft, of its packages none; stdin is empty."""
        # The program says a word nobody could know beforehand when it has come to its end.
        word = secrets.token_hex(16)
        with tempfile.TemporaryDirectory(prefix="redraft-") as folder:
            program = f"{code}\nprint({word!r}, flush=True)\n"
            (Path(folder) / "program.py").write_bytes(program.encode("utf-8", "replace"))
            ran = _run(_command(folder, self.limits, self.shut_in), folder, self.limits)
        reached = ran.status == "ok" and ran.stdout.rstrip("\n").endswith(word)
        status: Status = "failed" if ran.status == "ok" and not reached else ran.status
        return Ran(status, ran.stdout.replace(word, "").rstrip("\n"), ran.stderr, ran.seconds)


@cache
def unusable() -> str | None:
    """Why bubblewrap can't be used here, None where it can: it is tried, once a process."""
    if sys.platform != "linux":
        return "there is none for this system"
    if which("bwrap") is None:
        return "bwrap isn't installed"
    with tempfile.TemporaryDirectory(prefix="redraft-") as folder:
        (Path(folder) / "program.py").write_text("", "utf-8")
        ran = _run(_command(folder, Limits(), shut_in=True), folder, Limits())
    if ran.status == "ok":
        return None
    return f"here bwrap fails ({' '.join(ran.stderr.split())[:200] or ran.status})"


def _command(folder: str, limits: Limits, shut_in: bool) -> list[str]:
    """What runs folder/program.py under its guard."""
    numbers = map(str, (limits.cpu, limits.memory, limits.processes, limits.file))
    guard = [_python(), "-I", "-B", "-c", _GUARD]
    if not shut_in:
        return [*guard, str(Path(folder) / "program.py"), "alone", *numbers]
    return [*_bubblewrap(folder, limits.file), *guard, "/program/program.py", "watched", *numbers]


def _python() -> str:
    """The interpreter itself, not a virtual environment's: its packages are no business of the program's."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _bubblewrap(folder: str, size: int) -> list[str]:
    """bwrap's arguments. Visible are the system's programs and libraries, the interpreter and the program, all
    read-only, and an empty /tmp of `size` bytes; every name space is new, no capability is left."""
    out = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    out += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
    for path in ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/etc/alternatives"):
        if os.path.islink(path):
            out += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            out += ["--ro-bind", path, path]
    if not sys.base_prefix.startswith("/usr/"):
        prefix = os.path.realpath(sys.base_prefix)
        out += ["--ro-bind", prefix, prefix]
    out += ["--ro-bind", folder, "/program", "--proc", "/proc", "--dev", "/dev"]
    out += ["--size", str(size), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    out += ["--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp", "--setenv", "LANG", "C.UTF-8"]
    return [*out, "--remount-ro", "/", "--"]


def _run(command: Sequence[str], folder: str, limits: Limits) -> Ran:
    """Runs a command in a process group of its own until it ends, runs out of time or says too much; then whatever is
    left of the group is killed, and with bubblewrap's first process everything it started."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={"PATH": os.environ.get("PATH", os.defpath)},
        start_new_session=True,
    )
    try:
        said, kind = _read(process, start + limits.wall, limits.output)
        if kind is None:
            try:
                process.wait(max(0.0, start + limits.wall - time.monotonic()))
            except subprocess.TimeoutExpired:
                kind = "timeout"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if kind is None:
        kind = _judged(process.returncode, said[1])
    texts = [bytes(part[: limits.output]).decode("utf-8", "replace") for part in said]
    return Ran(kind, texts[0], texts[1], time.monotonic() - start)


def _judged(code: int, stderr: bytearray) -> Status:
    if code == 0:
        return "ok"
    if code == 128 + signal.SIGXCPU:
        return "timeout"
    if stderr.rstrip().endswith(b"MemoryError"):
        return "memory"
    return _KINDS.get(code, "failed")


def _read(
    process: subprocess.Popen[bytes], deadline: float, most: int
) -> tuple[tuple[bytearray, bytearray], Status | None]:
    """stdout and stderr until both are closed, and what cut the reading short if anything did."""
    said = (bytearray(), bytearray())
    with selectors.DefaultSelector() as selector:
        for pipe, part in zip((process.stdout, process.stderr), said, strict=True):
            assert pipe is not None
            selector.register(pipe, selectors.EVENT_READ, part)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return said, "timeout"
            for key, _ in selector.select(left):
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    selector.unregister(key.fileobj)
                    continue
                key.data.extend(piece)
                if len(key.data) > most:
                    return said, "output"
    return said, None
