"""Adapters of the catalogue, from where the repository's folder `adapters` is: a checkout, a copy, or an address."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from redraft import __version__
from redraft.denoiser.adapter_config import ADAPTER_CONFIG
from redraft.errors import RedraftError, RequestError
from redraft.files import MANIFEST
from redraft.hub import store
from redraft.hub.catalogue import Adapted
from redraft.hub.huggingface import TIMEOUT

VARIABLE = "REDRAFT_ADAPTERS"
CHECKOUT = Path(__file__).resolve().parents[3] / "adapters"


def place() -> str | None:
    """$REDRAFT_ADAPTERS, a folder or the beginning of a URL, else the checkout that this package is part of."""
    return os.environ.get(VARIABLE) or (str(CHECKOUT) if CHECKOUT.is_dir() else None)


def fetch(entry: Adapted, folder: Path) -> str:
    """Brings the adapter's files into `folder` and says where from.

    Raises RequestError where no place is known that has them, RedraftError for a file that can't be had or isn't the
    one that is pinned.
    """
    where = place()
    if where is None:
        raise RequestError(
            f"{entry.name} lies in redraft's repository, not in the package: set ${VARIABLE} to the folder or the "
            f"address of its adapters, or give it: redraft models pull adapters/{entry.name}"
        )
    source = f"{where.rstrip('/')}/{entry.name}"
    listing = _read(source, MANIFEST)
    if hashlib.sha256(listing).hexdigest() != entry.manifest:
        raise RedraftError(
            f"{source}/{MANIFEST} isn't the one that this version of redraft knows (its sha256 differs): not used"
        )
    files: dict[str, Any] = json.loads(listing)["files"]
    for name, told in files.items():
        data = _read(source, name)
        if len(data) != told["size"] or hashlib.sha256(data).hexdigest() != told["sha256"]:
            raise RedraftError(f"{source}/{name} isn't what its manifest says: not used")
        _write(folder / name, data)
    return source


def copy(source: Path, folder: Path) -> str:
    """A folder of yours that holds an adapter: its files into `folder`. Raises RequestError unless it's whole."""
    store.check(source)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name != MANIFEST and path.name[0] != ".":
            shutil.copyfile(path, folder / path.name)
    return str(source.resolve())


def is_adapter(source: str) -> bool:
    """Whether this is a folder that holds an adapter."""
    return (Path(source).expanduser() / ADAPTER_CONFIG).is_file()


def _read(source: str, name: str) -> bytes:
    if not source.startswith(("http://", "https://")):
        try:
            return (Path(source).expanduser() / name).read_bytes()
        except OSError as error:
            raise RedraftError(f"{source}/{name} can't be read: {error.strerror or error}") from None
    request = urllib.request.Request(f"{source}/{name}", headers={"User-Agent": f"redraft/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return bytes(answer.read())
    except (OSError, ValueError) as error:
        raise RedraftError(f"{source}/{name} can't be fetched: {getattr(error, 'reason', error)}") from None


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise RedraftError(f"{path} can't be written: {error.strerror or error}") from None
