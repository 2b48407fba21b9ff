"""A repository of the Hugging Face hub, by plain HTTPS: its file list first, then each file at that very commit.

Only what a model needs is fetched, safetensors among it and never a pickle. Every file is checked against the hash
that the list gives: sha256 of large files, git's own blob id of small ones.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft import __version__
from redraft.errors import RedraftError, RequestError

ENDPOINT = "https://huggingface.co"
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20
SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE",
    "model.safetensors.index.json",
)
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class RemoteFile:
    """name: without a folder. size: bytes. sha256: of a large file, else None; blob: git's id of a small one."""

    name: str
    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True)
class Repository:
    """What a model needs of a repository at one commit."""

    name: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def endpoint() -> str:
    """$HF_ENDPOINT (a mirror), as the hub's own client reads it, or the hub."""
    return os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")


def look_up(name: str, revision: str = "main") -> Repository:
    """The repository `owner/name`. Raises RequestError for a name of another form or one that the hub doesn't have,
    RedraftError when the hub can't be reached."""
    if not REPOSITORY.fullmatch(name):
        raise RequestError(f"{name!r} is no repository: owner/name is meant")
    raw = _json(f"{endpoint()}/api/models/{name}/revision/{urllib.parse.quote(revision, safe='')}?blobs=true")
    try:
        files = tuple(_remote(entry) for entry in raw["siblings"] if _wanted(entry["rfilename"]))
        commit = raw["sha"]
    except (KeyError, TypeError, AttributeError):
        raise RedraftError(f"{endpoint()} answers with something that is no list of {name}'s files") from None
    names = {file.name for file in files}
    if "config.json" not in names:
        raise RequestError(f"{name} has no config.json: not a model in Hugging Face's layout")
    if not any(WEIGHTS.fullmatch(n) for n in names):
        raise RequestError(f"{name} has no model.safetensors; redraft opens no other weights")
    return Repository(name, commit, files)


def _wanted(name: str) -> bool:
    return name in SMALL or WEIGHTS.fullmatch(name) is not None


def _remote(entry: dict[str, Any]) -> RemoteFile:
    large = entry.get("lfs")
    if large:
        return RemoteFile(entry["rfilename"], int(large["size"]), large["sha256"], None)
    return RemoteFile(entry["rfilename"], int(entry["size"]), None, entry.get("blobId"))


def fetch(repository: Repository, file: RemoteFile, folder: Path) -> None:
    """Writes one file into `folder`. Raises RedraftError when it can't be had, or isn't what the list says."""
    url = f"{endpoint()}/{repository.name}/resolve/{repository.commit}/{urllib.parse.quote(file.name)}"
    blob = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    digest, size = hashlib.sha256(), 0

    def keep(chunk: bytes) -> None:
        nonlocal size
        size += len(chunk)
        if size > file.size:
            raise RedraftError(f"{url} is longer than the {file.size} bytes that are due")
        digest.update(chunk)
        blob.update(chunk)
        target.write(chunk)

    try:
        with open(folder / file.name, "wb") as target:
            _read(url, keep)
    except OSError as error:
        raise RedraftError(f"{folder / file.name} can't be written: {error.strerror or error}") from None
    if size != file.size:
        raise RedraftError(f"{url} ended after {size} of {file.size} bytes")
    for given, found in ((file.sha256, digest), (file.blob, blob)):
        if given is not None and given != found.hexdigest():
            raise RedraftError(f"{url} arrived damaged: its hash isn't the one that the hub lists")


def _read(url: str, keep: Callable[[bytes], None]) -> None:
    """Hands what a URL answers to `keep`, piece by piece. Raises RedraftError, or RequestError where there's none."""
    request = urllib.request.Request(url, headers={"User-Agent": f"redraft/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            while chunk := _chunk(answer, url):
                keep(chunk)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):  # the hub answers 401 for a name that it doesn't know
            raise RequestError(f"{url} isn't there, or not for everyone (HTTP {error.code})") from None
        raise RedraftError(f"{url} answers HTTP {error.code}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ValueError) as error:
        raise RedraftError(f"{endpoint()} can't be reached: {getattr(error, 'reason', error)}") from None


def _chunk(answer: Any, url: str) -> bytes:
    try:
        return bytes(answer.read(CHUNK))
    except (OSError, http.client.HTTPException) as error:  # a disk's error must not look like the network's
        raise RedraftError(f"{url} broke off: {error}") from None


def _json(url: str) -> dict[str, Any]:
    parts: list[bytes] = []
    _read(url, parts.append)
    try:
        raw = json.loads(b"".join(parts))
    except ValueError:
        raw = None
    if not isinstance(raw, dict):
        raise RedraftError(f"{url} answers with something that is no JSON object")
    return raw
