"""The decode modes: each turns one request into passes, and their results into events. A new mode is one more
file and one more line here."""

from redraft.engine.writers.autoregressive import Autoregressive
from redraft.engine.writers.base import Writer
from redraft.engine.writers.diffusion import Diffusion
from redraft.engine.writers.editing import Editing
from redraft.engine.writers.verified import Verified

WRITERS: dict[str, type[Writer]] = {
    "diffusion": Diffusion,
    "ar": Autoregressive,
    "verified": Verified,
    "edit": Editing,
}

__all__ = ["WRITERS", "Autoregressive", "Diffusion", "Editing", "Verified", "Writer"]
