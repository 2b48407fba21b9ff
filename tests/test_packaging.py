"""What holds for the source as a whole: its layers, what it may import, how long a file is, and what a wheel holds."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import redraft

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "redraft"
MODULES = sorted(p for p in SOURCE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LONGEST = 450

# From the bottom up: a package imports only from those before it. What all share comes first.
SHARED = ("errors", "files")
LAYERS = (
    *("corruption", "denoiser", "hub", "sampling", "engine", "editing", "api"),
    *("training", "evaluation", "server", "cli"),
)
TORCH_FREE = ("corruption", "sampling", "hub", "cli", "engine", "editing", "server", "api")


def name_of(path: Path) -> str:
    """src/redraft/a/b.py -> redraft.a.b"""
    return ".".join(("redraft", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def imports(path: Path, tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Full names of all modules that a file imports, at its top or later, and the line."""
    package = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from redraft import hub` names the package after the import.
            yield from (
                (f"{module}.{alias.name}" if module == "redraft" else module, node.lineno)
                for alias in node.names
            )


def layer(module: str) -> str:
    return module.split(".")[1] if module.startswith("redraft.") else ""


def layering_faults(path: Path, text: str) -> list[str]:
    own = layer(name_of(path))
    if own == "":
        return []  # redraft/__init__.py is the front door
    allowed = {*SHARED, "__version__", own, *(LAYERS[: LAYERS.index(own)] if own in LAYERS else ())}
    return [
        f"{path.name}:{line} of {own} imports {module}"
        for module, line in imports(path, ast.parse(text))
        if module.startswith("redraft.") and layer(module) not in allowed
    ]


def unsafe_faults(path: Path, text: str) -> list[str]:
    """Ways to run what a file holds: pickles in any guise, remote code, eval."""
    tree = ast.parse(text)
    banned = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
    faults = [f"line {line}: {name}" for name, line in imports(path, tree) if name.split(".")[0] in banned]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in {("torch", "load"), ("torch", "save")}:
                faults.append(f"line {node.lineno}: torch.{node.attr}")
        elif isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            if called in ("eval", "exec"):
                faults.append(f"line {node.lineno}: {called}")
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code":
                    faults.append(f"line {node.lineno}: trust_remote_code")
                if keyword.arg == "allow_pickle" and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                ):
                    faults.append(f"line {node.lineno}: allow_pickle")
    return faults


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_package_imports_only_from_those_above_it(path: Path) -> None:
    assert layering_faults(path, path.read_text()) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_pickle_and_no_remote_code(path: Path) -> None:
    assert unsafe_faults(path, path.read_text()) == []


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer(name_of(p)) for p in MODULES} <= {"", *SHARED, *LAYERS}


def test_the_checks_themselves_find_faults() -> None:
    path = SOURCE / "sampling" / "reverse.py"
    for line in (
        "import redraft.engine.backend",
        "from redraft.cli import main",
        "from redraft import hub, api",
        "from ..engine import events",
        "def f():\n    from redraft.training import loop",
    ):
        assert layering_faults(path, line), line
    for line in (
        "import redraft.corruption",
        "from redraft import __version__",
        "from redraft.errors import RedraftError",
        "from . import state",
        "import numpy",
    ):
        assert not layering_faults(path, line), line
    for line in (
        "import pickle",
        "from joblib import load",
        "torch.load('x')",
        "f(trust_remote_code=False)",
        "eval('1')",
        "np.load(f, allow_pickle=True)",
    ):
        assert unsafe_faults(path, line), line
    assert not unsafe_faults(path, "np.load(f, allow_pickle=False); load('a pickle')")


def test_a_file_is_read_in_one_sitting() -> None:
    lengths = {
        p: len(p.read_text().splitlines()) for top in (SOURCE, ROOT / "tests") for p in top.rglob("*.py")
    }
    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > LONGEST} == {}


def test_what_runs_without_torch_does_not_import_it() -> None:
    """Nor transformers. One process imports module after module, so the first that brings torch in is named."""
    names = ["redraft"]
    names += [
        name_of(p) for p in MODULES if layer(name_of(p)) in TORCH_FREE and not p.name.startswith("torch")
    ]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = [m for m in ('torch', 'transformers') if m in sys.modules]\n"
        "    if heavy: sys.exit(f'{name} imports {heavy[0]}')\n"
    )
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": ""}
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_a_wheel_holds_all_packages_and_models(tmp_path: Path) -> None:
    """Every file under src/redraft, whatever .gitignore says of names like it; tests and recipes stay outside."""
    pytest.importorskip("hatchling", reason="in the extra `test`, which make test installs")
    code = f"from hatchling.build import build_wheel; build_wheel({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("redraft-*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    want = {
        p.relative_to(ROOT / "src").as_posix()
        for p in SOURCE.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts and p.name[0] != "."
    }
    assert held == want
    inside = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert any(name.endswith("entry_points.txt") for name in inside)


BASE = {canonicalize_name(Requirement(r).name) for r in PROJECT["dependencies"]}
TRAIN = BASE | {canonicalize_name(Requirement(r).name) for r in PROJECT["optional-dependencies"]["train"]}
EVAL = TRAIN | {canonicalize_name(Requirement(r).name) for r in PROJECT["optional-dependencies"]["eval"]}
DISTRIBUTIONS = {"yaml": "pyyaml", "lm_eval": "lm-eval"}  # where a package is imported under another name


PEERS = {
    "transformers",
    "xllamacpp",
}  # programs that `redraft bench` measures beside ours where they are installed


def needs(path: Path, tree: ast.AST) -> set[str]:
    """Distributions outside the standard library that a tree imports."""
    tops = {module.split(".")[0] for module, _ in imports(path, tree)}
    return {DISTRIBUTIONS.get(t, t) for t in tops - set(sys.stdlib_module_names) - {"redraft"}}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_needs_only_what_its_install_brings(path: Path) -> None:
    """The base install is enough to run models; what `train` adds is imported by what needs it, when it runs."""
    tree = ast.parse(path.read_text())
    at_once = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    torch_side = layer(name_of(path)) in ("denoiser", "training") or path.name.startswith("torch")
    harness = name_of(path) == "redraft.evaluation.harness"  # a class of lm-eval's
    assert needs(path, at_once) <= (EVAL if harness else TRAIN if torch_side else BASE)
    assert needs(path, tree) <= (EVAL | PEERS if layer(name_of(path)) == "evaluation" else TRAIN)


def test_the_base_install_has_no_torch() -> None:
    assert "torch" not in BASE
    assert "torch" in TRAIN


def test_every_package_has_an_init() -> None:
    folders = {p.parent for p in MODULES}
    assert {str(f) for f in folders if not (f / "__init__.py").exists()} == set()


def test_constraints_pin_every_requirement_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in lines
    pins = {}
    for line in (line for line in lines if line and line[0] != "#"):
        name, _, version = line.partition("==")
        assert version, line
        pins[canonicalize_name(name)] = version
    wanted = [
        *PROJECT["dependencies"],
        *(r for extra in PROJECT["optional-dependencies"].values() for r in extra),
    ]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name != "redraft":
            assert requirement.specifier.contains(pins[name]), requirement


def test_version_licence_and_changelog() -> None:
    assert redraft.__version__ == PROJECT["version"]
    licence = (ROOT / "LICENSE").read_text()
    assert licence.lstrip().startswith("Apache License\n                           Version 2.0, January 2004")
    assert "END OF TERMS AND CONDITIONS" in licence
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
