"""The store of models and what stands around their weights: tokenizer, chat template, sampling defaults."""

from redraft.hub.generation import GenerationDefaults
from redraft.hub.store import DEFAULT_MODEL, ModelFolder, find, resolve

__all__ = ["DEFAULT_MODEL", "GenerationDefaults", "ModelFolder", "find", "resolve"]
