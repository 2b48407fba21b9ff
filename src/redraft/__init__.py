"""redraft: diffusion language models that write and rewrite text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redraft.api import Completion, Edit, EditStream, Filling, Likelihood, Model, Stream, load

__version__ = "0.1.0"
__all__ = [
    "Completion",
    "Edit",
    "EditStream",
    "Filling",
    "Likelihood",
    "Model",
    "Stream",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    """The interface of redraft.api, imported when it's first asked for: `import redraft` stays instant."""
    if name in __all__:
        from redraft import api

        return getattr(api, name)
    raise AttributeError(f"module 'redraft' has no attribute {name!r}")
