"""The sandbox: what runs, what is refused, and what can't be reached or used up inside."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from redraft.errors import RequestError
from redraft.evaluation import sandbox
from redraft.evaluation.sandbox import UNSAFE_FLAG, Limits, Sandbox, unusable

bubblewrap = pytest.mark.skipif(unusable() is not None, reason=f"no bubblewrap to shut code in: {unusable()}")
QUICK = Limits(cpu=5, memory=256 << 20, processes=8, file=1 << 20, output=4096)


@pytest.fixture(params=[pytest.param(False, marks=bubblewrap), True], ids=["bubblewrap", "unsafe"])
def both(request: pytest.FixtureRequest) -> Sandbox:
    return Sandbox(QUICK, unsafe=request.param)


@pytest.fixture
def shut_in() -> Sandbox:
    return Sandbox(QUICK)


def test_it_refuses_without_bubblewrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sandbox.unusable.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        with pytest.raises(RequestError, match=f"bwrap isn't installed.*{UNSAFE_FLAG}"):
            Sandbox()
        assert Sandbox(unsafe=True).run("assert 1 + 1 == 2").status == "ok"
    finally:
        sandbox.unusable.cache_clear()


def test_it_refuses_with_a_bubblewrap_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in containers that forbid name spaces."""
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    sandbox.unusable.cache_clear()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    try:
        with pytest.raises(RequestError, match="No permissions to create new namespace"):
            Sandbox()
    finally:
        sandbox.unusable.cache_clear()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("assert sorted([2, 1]) == [1, 2]", "ok"),
        ("print('é', end='')", "ok"),
        ("assert False", "failed"),
        ("def f(:", "failed"),
        ("import sys; sys.exit(0)", "failed"),
        ("import os; os._exit(0)", "failed"),
        ("raise SystemExit(120)", "memory"),  # its own word for it; a failure either way
        ("input()", "failed"),
        ("while True: print('x' * 1000)", "output"),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "output"),
        ("x = bytearray(1 << 30)", "memory"),
        ("open('big', 'wb').write(bytes(2 << 20))", "failed"),
    ],
)
def test_what_comes_of_a_program(both: Sandbox, code: str, status: str) -> None:
    assert both.run(code).status == status


def test_a_program_that_hangs_is_stopped(both: Sandbox) -> None:
    unsafe = not both.shut_in
    sleeps = Sandbox(Limits(wall=2.0), unsafe).run("import time; time.sleep(600)")
    assert (sleeps.status, sleeps.seconds < 300) == ("timeout", True)
    assert Sandbox(Limits(cpu=1, wall=300.0), unsafe).run("while True: pass").status == "timeout"


def test_what_a_program_says(both: Sandbox) -> None:
    ran = both.run("import sys\nprint('déjà')\nprint('vu', file=sys.stderr)")
    assert (ran.status, ran.stdout, ran.stderr) == ("ok", "déjà", "vu\n")
    ran = both.run("1 / 0")
    assert "ZeroDivisionError" in ran.stderr
    assert ran.seconds > 0


@bubblewrap
def test_no_network(shut_in: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        assert shut_in.run(code).status == "failed"
        assert Sandbox(QUICK, unsafe=True).run(code).status == "ok"  # so the program itself is right


@bubblewrap
def test_no_files_of_the_user_and_none_that_can_be_written(shut_in: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("told")
    assert shut_in.run(f"open({str(secret)!r})").status == "failed"
    for place in ("/usr/x", "/x", "/program/x", "/etc/x"):
        ran = shut_in.run(f"open({place!r}, 'w')")
        assert ran.status == "failed", place
        assert "Read-only" in ran.stderr or "Permission" in ran.stderr or "No such" in ran.stderr
    assert shut_in.run("open('/tmp/x', 'w').write('mine'); assert open('x').read() == 'mine'").status == "ok"
    assert not Path("/tmp/x").exists() or Path("/tmp/x").read_text() != "mine"


@bubblewrap
def test_nothing_of_the_outside_is_seen(shut_in: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDRAFT_SECRET", "told")
    code = (
        "import os\nassert 'REDRAFT_SECRET' not in os.environ\n"
        "assert os.getuid() == 65534\n"
        "assert len([p for p in os.listdir('/proc') if p.isdigit()]) < 6\n"
        "assert os.listdir('/tmp') == [] == os.listdir(os.getcwd())"
    )
    ran = shut_in.run(code)
    assert ran.status == "ok", ran.stderr


@bubblewrap
def test_the_temporary_folder_is_small(shut_in: Sandbox) -> None:
    code = "for i in range(40): open(str(i), 'wb').write(bytes(100_000))"
    ran = shut_in.run(code)
    assert ran.status == "failed"
    assert "No space left" in ran.stderr


@bubblewrap
@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import os, time\nfor i in range(40):\n    if os.fork() == 0: time.sleep(60)\ntime.sleep(60)",
    ],
    ids=["bomb", "many"],
)
def test_processes_are_few(shut_in: Sandbox, code: str) -> None:
    """Killed when there are too many, or refused by the kernel, as the user's own limit has it."""
    assert shut_in.run(code).status in ("processes", "failed", "memory")


@bubblewrap
def test_what_a_program_leaves_behind_is_killed(shut_in: Sandbox) -> None:
    mark = "redraft-left-behind-4711"
    code = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid(); os.close(1); os.close(2)\n"
        f"    os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])"
    )
    assert shut_in.run(code).status == "ok"
    deadline = time.monotonic() + 10
    while running(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(mark)


def running(mark: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False
