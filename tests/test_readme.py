"""The README's commands do what it says: each line of its ```sh blocks runs, in order, in a copy of the checkout.

A line that ends in `# slow` or `# in CI` is left out (it takes minutes or never ends), and so are those that set a
machine up (git, cd, pip, make): .ci/run does what they say, in a clean clone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SET_UP = ("git", "cd", "pip", "make")
LEFT_OUT = re.compile(r"#\s*(slow|in CI)\s*$", re.IGNORECASE)
NOT_COPIED = (
    ".git",
    ".venv",
    ".*_cache",
    ".hypothesis",
    "__pycache__",
    "*.egg-info",
    "runs",
    "dist",
    "build",
)


def commands(markdown: str) -> list[str]:
    """The shell commands to run, continued lines joined."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.strip().removeprefix("$ ")
            if (
                command
                and command[0] != "#"
                and not LEFT_OUT.search(command)
                and command.split()[0] not in SET_UP
            ):
                found.append(command)
    return found


def environment(checkout: Path, programs: Path) -> dict[str, str]:
    """A PATH on which `redraft` and `python` are this interpreter and the copy's source; a home of its own."""
    programs.mkdir(exist_ok=True)
    start = "import sys; from redraft.cli.main import main; sys.exit(main())"
    for name, arguments in {"redraft": f" -c '{start}'", "python": "", "python3": ""}.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        program.chmod(0o755)
    own = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(checkout / "src")}
    return (
        os.environ | own | {"HOME": str(programs), "XDG_CACHE_HOME": str(programs / "cache"), "NO_COLOR": "1"}
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One copy for all commands: a later one may use what an earlier one wrote."""
    copy = tmp_path_factory.mktemp("readme") / "redraft"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return copy


def run(command: str, checkout: Path) -> subprocess.CompletedProcess[str]:
    settings = environment(checkout, checkout.parent / "programs")
    shell = ["bash", "-euo", "pipefail", "-c", command]
    return subprocess.run(
        shell,
        cwd=checkout,
        env=settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", commands(README.read_text()) if README.exists() else [])
def test_command_of_the_readme(command: str, checkout: Path) -> None:
    done = run(command, checkout)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_programs_on_the_path_are_the_copy(checkout: Path) -> None:
    done = run("python -c 'import redraft; print(redraft.__file__)' && command -v redraft", checkout)
    source, program = done.stdout.splitlines()
    assert Path(source).is_relative_to(checkout)
    assert Path(program).parent == checkout.parent / "programs"
    assert run("redraft no-such-verb | cat", checkout).returncode != 0


def test_reading_of_blocks() -> None:
    text = "\n".join(
        [
            "```sh",
            "git clone somewhere && cd it",
            "$ redraft run \\",
            "    --seed 1",
            "# a remark",
            "redraft serve  # in CI",
            "redraft train recipes/tiny.yaml  # slow",
            "make test",
            "```",
            "```json",
            "{}",
            "```",
            "```sh",
            "python examples/sudoku.py | head",
            "```",
        ]
    )
    assert [c.split() for c in commands(text)] == [
        ["redraft", "run", "--seed", "1"],
        ["python", "examples/sudoku.py", "|", "head"],
    ]
