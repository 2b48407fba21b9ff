"""redraft doctor: what works on this machine, and why something doesn't."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import typer

from redraft.cli.options import Json

PACKAGES = ("numpy", "tokenizers", "safetensors", "jinja2", "torch", "onnxruntime")


@dataclass(frozen=True)
class Check:
    """status: "ok"; "note" for something that redraft can do without; "fail" for something that it can't."""

    name: str
    status: Literal["ok", "note", "fail"]
    detail: str


def doctor(as_json: Json = False) -> int:
    """Say what works on this machine and why not. Exit status 1 if something that redraft needs is broken."""
    checks = list(examine())
    broken = any(check.status == "fail" for check in checks)
    if as_json:
        typer.echo(json.dumps({"ok": not broken, "checks": [asdict(check) for check in checks]}))
    else:
        _print(checks)
    return 1 if broken else 0


def examine() -> Iterator[Check]:
    """All checks in order; one that itself breaks is told as such."""
    for check in _CHECKS:
        try:
            yield check()
        except Exception as error:
            yield Check(check.__name__.strip("_"), "note", f"can't be told: {' '.join(str(error).split())}")


def package_versions() -> dict[str, str | None]:
    """Version by package without importing any; None where it isn't installed."""

    def version_of(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {package: version_of(package) for package in PACKAGES}


def _python() -> Check:
    # An older Python than 3.11 can't even install redraft.
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Check:
    versions = package_versions()
    missing = [p for p in ("numpy", "tokenizers", "safetensors", "jinja2") if versions[p] is None]
    if missing:
        return Check("packages", "fail", f"{', '.join(missing)} missing: pip install {' '.join(missing)}")
    return Check("packages", "ok", ", ".join(f"{p} {v}" for p, v in versions.items() if v))


def _backends() -> Check:
    found = [p for p in ("torch", "onnxruntime") if importlib.util.find_spec(p) is not None]
    if not found:
        return Check(
            "backends", "fail", "neither onnxruntime nor torch is installed: pip install onnxruntime"
        )
    absent = {"torch", "onnxruntime"} - set(found)
    return Check("backends", "ok", ", ".join(found) + "".join(f"; {p} not installed" for p in sorted(absent)))


def _processor() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    detail = f"{cores} core{'s' if cores > 1 else ''}"
    flags = _cpu_flags()
    if flags is None:
        return Check("processor", "ok", f"{detail}, {platform.machine()}")
    extensions = [
        name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if name in flags
    ]
    if "avx2" not in flags and platform.machine() in ("x86_64", "AMD64"):
        return Check("processor", "note", f"{detail} without AVX2: everything works, but slowly")
    return Check("processor", "ok", ", ".join([detail, *extensions]))


def _cpu_flags() -> set[str] | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = (line for line in file if line.startswith(("flags", "Features")))
            return set(next(lines, "").partition(":")[2].split())
    except OSError:
        return None


def _memory() -> Check:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
        available, total = sizes["MemAvailable"], sizes["MemTotal"]
    except (OSError, KeyError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Check("memory", "ok", f"{total / 2**30:.1f} GiB")
    detail = f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB available"
    if available < 2**29:
        return Check("memory", "note", f"{detail}: the shipped model needs about half a GiB")
    return Check("memory", "ok", detail)


def _gpu() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("gpu", "note", "not looked for: torch isn't installed (the CPU path needs none)")
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("gpu", "ok", ", ".join(names))
    if torch.version.cuda is None and torch.version.hip is None:
        return Check("gpu", "note", "none used: this torch is built for the CPU only")
    return Check("gpu", "note", "torch sees no GPU")


def _shipped_model() -> Check:
    from redraft.errors import RedraftError
    from redraft.files import MANIFEST
    from redraft.hub import store

    try:
        model = store.resolve(store.DEFAULT_MODEL)
    except RedraftError as error:
        return Check("model", "fail", str(error))
    if not (model.path / MANIFEST).exists():
        return Check("model", "note", f"{model.name} ({model.origin}) has no manifest to compare with")
    return Check("model", "ok", f"{model.name} ({model.origin}): every file is as its manifest says")


def _store() -> Check:
    from redraft.hub import store

    root = store.home()
    existing = next((p for p in (root, *root.parents) if p.exists()), root)
    if not existing.is_dir():
        return Check("store", "note", f"{existing} is a file: set REDRAFT_HOME to a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check("store", "note", f"{root} can't be written: set REDRAFT_HOME to a folder that can")
    return Check("store", "ok", f"{root}")


def _terminal() -> Check:
    from redraft.cli.terminal import console, is_terminal

    if not is_terminal(sys.stdout):
        return Check("terminal", "note", "stdout is no terminal: answers come as plain text")
    shown = console(sys.stdout)
    if shown.no_color or shown.color_system is None:
        return Check(
            "terminal", "note", "no colours (NO_COLOR or TERM says so): states show as bold, dim, underlined"
        )
    return Check("terminal", "ok", f"{shown.color_system} colours, {shown.width} columns")


_CHECKS: tuple[Callable[[], Check], ...] = (
    _python,
    _packages,
    _backends,
    _processor,
    _memory,
    _gpu,
    _shipped_model,
    _store,
    _terminal,
)


def _print(checks: list[Check]) -> None:
    from rich.text import Text

    from redraft.cli.terminal import console, safe

    signs = {"ok": ("✓", "green"), "note": ("·", "yellow"), "fail": ("✗", "bold red")}
    out = console(sys.stdout)
    width = max(len(check.name) for check in checks)
    for check in checks:
        sign, style = signs[check.status]
        out.print(
            Text.assemble((sign, style), f" {check.name:<{width}}  {safe(check.detail)}"), soft_wrap=True
        )
