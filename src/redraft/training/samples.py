"""What the model answers so far: a few samples at each evaluation, written as `redraft run` would write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from redraft.denoiser.transformer import Denoiser
from redraft.engine import Engine, Request
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.hub.tokenizer import Tokenizer
from redraft.sampling import SamplerSettings
from redraft.training.recipe import Recipe

Sampler = Callable[[Denoiser, list[str]], list[str]]

MAX_TOKENS = 64


def sampler(recipe: Recipe) -> Sampler:
    """Answers to prompts (user messages where the tokenizer has a chat template, else text to go on from) with the
    recipe's tokenizer, greedily, at most MAX_TOKENS tokens each and all in one batch."""
    tokenizer = Tokenizer.load(Path(recipe.data))
    renoise = "uniform" if recipe.corruption.kind == "uniform" else "mask"

    def answer(model: Denoiser, prompts: list[str]) -> list[str]:
        canvas = model.config.canvas_length
        settings = SamplerSettings(canvas_length=canvas, max_steps=canvas, renoise=renoise)
        engine = Engine(TorchBackend(model), tokenizer.token_bytes, max(1, len(prompts)), prefix_contexts=0)
        room = max(1, model.config.max_position_embeddings - MAX_TOKENS)
        tickets = [
            engine.submit(
                Request(
                    prompt=tuple(ids[-room:]), sampler=settings, max_tokens=MAX_TOKENS, seed=recipe.train.seed
                )
            )
            for ids in (encode(tokenizer, prompt) for prompt in prompts)
        ]
        while engine.has_work:
            engine.step()
        writers = [ticket.writer for ticket in tickets]
        return [w.output.text_bytes().decode("utf-8", "replace") if w else "" for w in writers]

    return answer


def encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids of a prompt."""
    if tokenizer.template is None:
        return [int(i) for i in tokenizer.encode(prompt)]
    return [int(i) for i in tokenizer.render([{"role": "user", "content": prompt}])]
