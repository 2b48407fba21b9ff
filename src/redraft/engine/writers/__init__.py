"""The decode modes: each turns one request into passes, and their results into events. A new mode is one more
file and one more line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redraft.engine.writers.autoregressive import Autoregressive
from redraft.engine.writers.base import Writer
from redraft.engine.writers.diffusion import Diffusion
from redraft.engine.writers.editing import Editing
from redraft.engine.writers.reviewed import Reviewed
from redraft.engine.writers.searching import Searching
from redraft.engine.writers.verified import Verified

if TYPE_CHECKING:
    from redraft.engine.request import Request

WRITERS: dict[str, type[Writer]] = {
    "diffusion": Diffusion,
    "ar": Autoregressive,
    "verified": Verified,
    "edit": Editing,
}


def writer_of(request: Request) -> type[Writer]:
    """What writes a request's answer: its decode mode, Verified for canvases that the AR self checks, Reviewed for
    changes that it checks, Searching for trials of which several fills are sought."""
    if request.review is not None:
        return Reviewed
    if any(given.fills > 1 for given in request.canvases):
        return Searching
    return Verified if request.drafts else WRITERS[request.decode]


__all__ = [
    "WRITERS",
    "Autoregressive",
    "Diffusion",
    "Editing",
    "Reviewed",
    "Searching",
    "Verified",
    "Writer",
    "writer_of",
]
