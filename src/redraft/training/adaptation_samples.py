"""What the adapted model answers so far, written as decode "verified" writes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from redraft.api import Completion, Model
from redraft.denoiser.transformer import Denoiser
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.hub.tokenizer import Tokenizer
from redraft.training.adaptation_recipe import AdaptRecipe

Sampler = Callable[[Denoiser, list[str]], list[Completion]]


def sampler(recipe: AdaptRecipe) -> Sampler:
    """Greedy answers to prompts: user messages where there's a chat template, else text to go on from."""
    tokenizer = Tokenizer.load(Path(recipe.data))

    def answer(network: Denoiser, prompts: list[str]) -> list[Completion]:
        model = Model(recipe.name, TorchBackend(network), tokenizer)
        asked = [[{"role": "user", "content": p}] if tokenizer.template else p for p in prompts]
        options = {
            "decode": "verified",
            "max_tokens": recipe.train.sample_tokens,
            "temperature": 0.0,
            "seed": 0,
        }
        return [model.generate(prompt, **options) for prompt in asked]

    return answer
