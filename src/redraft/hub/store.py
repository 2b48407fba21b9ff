"""Where models are: shipped inside the package, in the local store, or a folder of yours. Nothing is
downloaded here but a model of the catalogue that is used for the first time (see `pull`).
"""

from __future__ import annotations

import importlib.resources
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from redraft.denoiser.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterConfig
from redraft.errors import RedraftError, RequestError
from redraft.files import MANIFEST, sha256
from redraft.hub.catalogue import names
from redraft.hub.names import did_you_mean
from redraft.hub.runs import newest

DEFAULT_MODEL = "redraft-tiny"

Origin = Literal["shipped", "local", "path"]


@dataclass(frozen=True)
class ModelFolder:
    """One model on disk. origin: "shipped" (inside the package), "local" (in the store) or "path" (any
    folder).
    """

    name: str
    path: Path
    origin: Origin


def home() -> Path:
    """The store: $REDRAFT_HOME, else redraft in the user's cache folder."""
    if chosen := os.environ.get("REDRAFT_HOME"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "redraft"


def shipped_root() -> Path | None:
    """The models inside the package, or None where the package isn't plain files (a zip)."""
    root = importlib.resources.files("redraft") / "models"
    return root if isinstance(root, Path) and root.is_dir() else None


def local_root() -> Path:
    return home() / "models"


def models() -> list[ModelFolder]:
    """Every model that a name finds, shipped ones first, then by name. One in the store hides none of the
    shipped.
    """
    found: dict[str, ModelFolder] = {}
    roots: list[tuple[Path | None, Origin]] = [(shipped_root(), "shipped"), (local_root(), "local")]
    for root, origin in roots:
        for folder in _subfolders(root):
            found.setdefault(folder.name, ModelFolder(folder.name, folder, origin))
    return list(found.values())


def find(name_or_path: str | os.PathLike[str]) -> ModelFolder:
    """A model by name, or by the path of its folder or of a training run, whose newest checkpoint is meant; a name of
    the store goes before a folder called the same.

    Raises RequestError, naming the nearest model and how to list them, when there is neither.
    """
    given = os.fspath(name_or_path)
    if not given.strip():
        raise RequestError("the model's name is empty: `redraft models list` shows what there is")
    known = {m.name: m for m in models()}
    if given in known:
        return known[given]
    path = Path(given).expanduser()
    if path.is_dir():
        return ModelFolder(path.resolve().name or given, newest(path), "path")
    if path.is_file():
        raise RequestError(f"{given} is a file: give the model's folder")
    if os.sep in given or given.startswith("."):
        raise RequestError(
            f"there is no folder {given}: `redraft models list` shows the models that have a name"
        )
    if given in names():
        raise RequestError(f"{given} isn't in the store yet: redraft models pull {given}")
    hint = did_you_mean(given, [*known, *names()])
    raise RequestError(f"unknown model {given!r}{hint} (`redraft models list` shows what there is)")


def resolve(name_or_path: str | os.PathLike[str], verify: bool = True) -> ModelFolder:
    """`find`, then `check`: a folder that is safe and whole. A model of the catalogue is fetched if it isn't there yet,
    which a line on stderr tells.
    """
    given = os.fspath(name_or_path)
    if given in names() and not (local_root() / given).is_dir() and not Path(given).is_dir():
        from redraft.hub.pull import pull

        return pull(given, lambda text: print(text, file=sys.stderr)).model
    model = find(given)
    check(model.path, verify=verify)
    return model


def base_of(folder: str | Path) -> Path | None:
    """Of an adapter the folder of the base that it names (fetched if it is of the catalogue and not there yet), else
    None. A base named by a relative path is looked for beside the adapter too. Raises RequestError without it.
    """
    folder = Path(folder)
    if not (folder / ADAPTER_CONFIG).exists():
        return None
    name = AdapterConfig.read(folder).base
    beside = folder / name
    try:
        return resolve(beside if beside.is_dir() else name).path
    except RequestError as error:
        raise RequestError(f"{folder} is an adapter on {name}: {error}") from None


def check(folder: Path, verify: bool = True) -> None:
    """Raises RequestError unless `folder` holds a model that can be read without running anybody's code.

    It needs config.json and safetensors (never a pickle), must not ask for remote code (auto_map), and with
    `verify` every file must be as manifest.json says, if there is one.
    """
    config = read_json(folder / "config.json")
    if config is None:
        raise RequestError(f"{folder} has no config.json: not a model directory")
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", read_json(folder / "tokenizer_config.json")),
    ):
        if content and "auto_map" in content:
            raise RequestError(
                f"{folder / name} asks to run code of its own (auto_map), which redraft never does"
            )
    for name in weight_files(folder):
        if not (folder / name).is_file():
            from redraft.denoiser.shards import pickle_hint

            raise RequestError(f"{folder} has no {name}{pickle_hint(folder)}")
    if verify and (folder / MANIFEST).exists():
        verify_manifest(folder)


def verify_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The files of manifest.json by name, {"size": bytes, "sha256": hex}, after each was found as stated.

    Raises RequestError naming the first file that is missing, truncated, altered, or read by a loader but not
    listed.
    """
    listed = (read_json(folder / MANIFEST) or {}).get("files")
    if not isinstance(listed, dict) or not all(_is_entry(name, entry) for name, entry in listed.items()):
        raise RequestError(f"{folder / MANIFEST} isn't a manifest: fetch the model again")
    for name, entry in listed.items():
        path = folder / name
        if not path.is_file():
            raise RequestError(f"{path} is missing: fetch the model again")
        size = path.stat().st_size
        if size != entry["size"]:
            raise RequestError(f"{path} has {size} bytes where {entry['size']} are due: {_REMEDY}")
        if sha256(path) != entry["sha256"]:
            raise RequestError(f"{path} was altered (its sha256 isn't the manifest's): {_REMEDY}")
    for path in sorted(folder.glob("*")):
        read_by_loaders = path.suffix in (".safetensors", ".json", ".jinja", ".onnx")
        if read_by_loaders and path.name != MANIFEST and path.name not in listed:
            raise RequestError(f"{path} isn't in the manifest: {_REMEDY}")
    return listed


_REMEDY = f"fetch the model again, or remove {MANIFEST} if you changed it yourself"


def remove(name: str) -> Path:
    """Deletes a model of the local store and returns where it was. Raises RequestError for any other."""
    model = find(name)
    if model.origin == "shipped":
        raise RequestError(f"{model.name} is part of redraft and can't be removed")
    if model.origin == "path":
        raise RequestError(f"{name} is a folder of yours, not a model of the store: remove it by hand")
    grave = model.path.with_name(f".{model.name}.{os.getpid()}.removed")
    try:
        os.replace(model.path, grave)  # at once gone by name, even if what follows is cut short
        shutil.rmtree(grave)
    except OSError as error:
        raise RedraftError(f"{model.path} could not be removed: {error.strerror or error}") from None
    return model.path


def describe(model: ModelFolder) -> dict[str, Any]:
    """What `models show` tells: config, sizes in bytes, parameters, whether the manifest holds, the
    licence.
    """
    sizes = {
        p.name: p.stat().st_size for p in sorted(model.path.iterdir()) if p.is_file() and p.name[0] != "."
    }
    verified: bool | str
    try:
        check(model.path)
        verified = (model.path / MANIFEST).exists()
    except RequestError as error:
        verified = str(error)
    return {
        "name": model.name,
        "origin": model.origin,
        "path": str(model.path),
        "parameters": parameters(model.path),
        "bytes": sum(sizes.values()),
        "verified": verified,
        "licence": _front_matter(model.path / "README.md").get("license"),
        "config": read_json(model.path / "config.json") or {},
        "generation": read_json(model.path / "generation_config.json") or {},
        "files": sizes,
    }


def parameters(folder: Path) -> int | None:
    """Numbers in the weights, from the safetensors headers alone; None where they can't be read."""
    from redraft.denoiser.shards import entries

    try:
        files = [entries(folder / name) for name in weight_files(folder)]
    except RequestError:
        return None
    return sum(math.prod(entry.shape) for found in files for entry in found.values())


def weight_files(folder: Path) -> list[str]:
    """model.safetensors, the shards that its index lists, or an adapter's own file. Raises RequestError for an
    unreadable index."""
    if (folder / ADAPTER_CONFIG).exists():
        return [ADAPTER_WEIGHTS]
    from redraft.denoiser import shards  # its numpy would slow down a command line that only helps

    return shards.weight_files(folder)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there's no such file. Raises RequestError for anything else."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise RequestError(f"{path} must hold a JSON object")
    return raw


def _subfolders(root: Path | None) -> Iterator[Path]:
    try:
        children = sorted(root.iterdir()) if root else []
    except OSError:
        return
    yield from (c for c in children if c.name[0] not in "._" and (c / "config.json").is_file())


def _is_file_name(name: Any) -> bool:
    """A plain name inside the folder: no path can lead out of it."""
    return isinstance(name, str) and re.fullmatch(r"[^/\\\0]+", name) is not None and name not in (".", "..")


def _is_entry(name: Any, entry: Any) -> bool:
    return _is_file_name(name) and isinstance(entry, dict) and {"size", "sha256"} <= entry.keys()


def _front_matter(path: Path) -> dict[str, str]:
    """The plain `key: value` lines at the head of a model card."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    lines = match[1].splitlines() if match else []
    return dict(re.findall(r"^(\w+): *(\S.*)$", line)[0] for line in lines if re.match(r"^\w+: *\S", line))
