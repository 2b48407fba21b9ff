"""Outside programs that run AR on the same weights, where installed. A new one is a class and a line in PEERS."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from redraft.denoiser import families
from redraft.denoiser.config import DenoiserConfig


class Peer(Protocol):
    def missing(self, folder: Path) -> str | None:
        """Why this model can't be run there, None if it can."""
        ...

    def tokens_per_second(self, folder: Path, prompts: Sequence[np.ndarray], tokens: int) -> float:
        """Greedy AR, `tokens` new ones for each prompt (int64 ids), one prompt at a time, prompt encoding left out."""
        ...


class Transformers:
    """transformers' `generate` on the Llama, Qwen2 or Qwen3 that our clean rows equal, in float32 on the CPU."""

    def missing(self, folder: Path) -> str | None:
        if find_spec("transformers") is None or find_spec("torch") is None:
            return "transformers with torch is not installed"
        config = families.load_config(folder)
        if config.layout != "causal_context":
            return f"layout {config.layout} has no AR counterpart in transformers"
        if config.partial_rotary_factor != 1.0 or config.rope_scaling is not None:
            return "its rotary embedding has options that this comparison doesn't translate"
        if config.qk_norm and config.attention_bias:
            return "q/k norm together with a bias is no family of transformers"
        return None

    def tokens_per_second(self, folder: Path, prompts: Sequence[np.ndarray], tokens: int) -> float:
        import torch

        model = transformers_twin(folder)
        count, seconds = 0, 0.0
        with torch.inference_mode():
            for number, prompt in enumerate([prompts[0], *prompts]):
                ids = torch.from_numpy(np.asarray(prompt, dtype=np.int64))[None]
                first = _seconds(model, ids, 1)
                whole = _seconds(model, ids, tokens + 1)
                if number:  # the first run warms up
                    count, seconds = count + tokens, seconds + whole - first
        return count / seconds if seconds > 0 else 0.0


class LlamaCpp:
    """llama.cpp needs a GGUF file with a tokenizer that it knows."""

    def missing(self, folder: Path) -> str | None:
        if find_spec("llama_cpp") is None:
            return "llama-cpp-python is not installed"
        return "redraft writes no GGUF files yet"

    def tokens_per_second(self, folder: Path, prompts: Sequence[np.ndarray], tokens: int) -> float:
        raise AssertionError("missing() says why this is never called")


PEERS: dict[str, Peer] = {"transformers": Transformers(), "llama.cpp": LlamaCpp()}


def transformers_twin(folder: Path) -> Any:
    """The AR self of a checkpoint as a model of transformers, float32, eval mode: same weights, same logits."""
    import torch
    import transformers

    ours = families.load(folder)
    config = ours.config
    family = "Qwen3" if config.qk_norm else "Qwen2" if config.attention_bias else "Llama"
    made = getattr(transformers, f"{family}Config")(**_shape(config))
    model = getattr(transformers, f"{family}ForCausalLM")(made)
    own = model.state_dict()
    weights = {name: tensor.float() for name, tensor in ours.state_dict().items() if name in own}
    absent = [name for name in own if name not in weights]
    assert not absent, absent
    model.load_state_dict(weights)
    return model.to(torch.float32).eval()


def _shape(config: DenoiserConfig) -> dict[str, Any]:
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
    )
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    ends = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}
    return {n: getattr(config, n) for n in names} | {"rope_parameters": rope} | ends


def _seconds(model: Any, ids: Any, tokens: int) -> float:
    import torch

    start = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return time.perf_counter() - start
