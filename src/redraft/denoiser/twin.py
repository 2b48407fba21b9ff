"""What the AR self of a checkpoint is called elsewhere: clean rows alone run through a Llama, a Qwen2 or a Qwen3."""

from __future__ import annotations

from typing import Literal

from redraft.denoiser.config import DenoiserConfig
from redraft.errors import RequestError

Twin = Literal["llama", "qwen2", "qwen3"]


def ar_twin(config: DenoiserConfig) -> Twin:
    """The network that gives a clean row's logits from the same weights.

    Raises RequestError, saying why, where there is none, or its rotary embedding has options that every program writes
    in a way of its own.
    """
    if config.layout != "causal_context":
        raise RequestError(f"layout {config.layout} has no autoregressive counterpart in other programs")
    if config.partial_rotary_factor != 1.0 or config.rope_scaling is not None:
        raise RequestError("its rotary embedding has options that redraft doesn't translate")
    if config.qk_norm and config.attention_bias:
        raise RequestError("q/k norm together with a bias is no family that other programs know")
    return "qwen3" if config.qk_norm else "qwen2" if config.attention_bias else "llama"
