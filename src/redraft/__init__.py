"""redraft: diffusion language models that write and rewrite text."""

__version__ = "0.1.0"
