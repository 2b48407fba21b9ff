"""Sequence-level distillation (Kim and Rush, 2016), with the AR self as the teacher of its own canvas.

An open dialogue has many right continuations, and slots that are filled independently agree on none of them. The
AR self's low-temperature continuations are one choice each: a canvas that learns them can settle many slots at once.
The continuations become a corpus like any other, in which canvases cover the continuation alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from redraft.denoiser import checkpoint
from redraft.denoiser.transformer import Denoiser, Visibility
from redraft.errors import RequestError
from redraft.training.data import Corpus, write_corpus
from redraft.training.memory import keep_freed_memory
from redraft.training.recipe import Distill


class _Cache:
    """Keys and values of a batch of growing rows, with room for `capacity` tokens each."""

    def __init__(self, model: Denoiser, rows: int, capacity: int) -> None:
        config = model.config
        shape = (rows, capacity, config.num_key_value_heads, config.head_dim)
        weight = model.lm_head.weight
        self.layers = [
            (weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(config.num_hidden_layers)
        ]
        self.filled = torch.zeros(rows, capacity, dtype=torch.bool, device=weight.device)

    def append(self, present: list[tuple[Tensor, Tensor]], at: Tensor, valid: Tensor) -> None:
        """Writes rows' new keys and values [B, T, ...] at positions at [B, T] where valid [B, T]."""
        rows = torch.arange(len(at), device=at.device)[:, None].expand_as(at)[valid]
        for (keys, values), (k, v) in zip(self.layers, present, strict=True):
            keys[rows, at[valid]] = k[valid]
            values[rows, at[valid]] = v[valid]
        self.filled[rows, at[valid]] = True


@torch.no_grad()
def continue_texts(
    model: Denoiser, prompts: Sequence[np.ndarray], tokens: int, temperature: float, generator: torch.Generator, stop: int
) -> list[np.ndarray]:
    """AR continuations, int64 [<= tokens] each, ended by `stop` (included); one batch, best of similar lengths.

    temperature 0 is greedy. The noise is float64 Gumbel: float32 would cut its tails.
    """
    device = model.lm_head.weight.device
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    rows, longest = len(prompts), int(lengths.max())
    ids = torch.zeros(rows, longest, dtype=torch.int64, device=device)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.from_numpy(prompt)
    cache = _Cache(model, rows, longest + tokens)
    positions = torch.arange(longest, device=device).expand(rows, -1)
    causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril().expand(rows, 1, -1, -1)
    hidden, present = model(ids, positions, Visibility(dense=Visibility.additive(causal)))
    cache.append(present, positions, positions < lengths[:, None])
    last = hidden[torch.arange(rows, device=device), lengths - 1]
    written = torch.zeros(rows, tokens, dtype=torch.int64, device=device)
    done = torch.zeros(rows, dtype=torch.bool, device=device)
    count = torch.zeros(rows, dtype=torch.int64, device=device)
    for i in range(tokens):
        logits = model.logits(last)
        logits[:, list(model.config.special_slot_ids)] = -torch.inf
        if temperature > 0:
            uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64, device=device)
            logits = logits.double() / temperature - torch.log(-torch.log(uniform.clamp_min(1e-300)))
        chosen = logits.argmax(-1)
        written[:, i] = chosen
        count += ~done
        done |= chosen == stop
        if bool(done.all()):
            break
        at = (lengths + i)[:, None]
        seen = torch.cat((cache.filled, torch.ones(rows, 1, dtype=torch.bool, device=device)), 1)[:, None, None]
        hidden, present = model(chosen[:, None], at, Visibility(dense=Visibility.additive(seen)), past=cache.layers)
        cache.append(present, at, torch.ones_like(at, dtype=torch.bool))
        last = hidden[:, -1]
    return [written[i, : int(count[i])].cpu().numpy() for i in range(rows)]


def draw_prompts(corpus: Corpus, count: int, marks: set[int], longest: int, seed: int) -> list[np.ndarray]:
    """`count` beginnings of random documents, each ending with one of `marks` (a role token)."""
    rng = np.random.default_rng(seed)
    prompts: list[np.ndarray] = []
    order = rng.permutation(len(corpus))
    for i in range(count * 4):
        document = corpus[int(order[i % len(order)])]
        places = np.flatnonzero(np.isin(document, list(marks)))
        places = places[places < longest]
        if len(places):
            prompts.append(document[: int(rng.choice(places)) + 1])
        if len(prompts) == count:
            return prompts
    raise RequestError("the corpus has no role tokens within reach: distillation needs dialogues")


def distill(
    model_folder: str | Path,
    data: str | Path,
    out: str | Path,
    settings: Distill,
    row_length: int,
    seed: int = 0,
    message: Callable[[str], None] = lambda text: None,
) -> dict[str, int]:
    """Writes the corpus of continuations into `out` (split train); returns its counts.

    Tokenizer files are left to the recipe's data folder; `out` is named in the recipe's mixture.
    """
    keep_freed_memory()
    model = checkpoint.load(model_folder)
    corpus = Corpus(data, "train")
    vocabulary = json.loads((Path(data) / "tokenizer.json").read_text(encoding="utf-8"))
    marks = {t["id"] for t in vocabulary["added_tokens"] if t["content"] in ("<|user|>", "<|assistant|>")}
    stop = model.config.eos_token_ids[0]
    prompts = draw_prompts(corpus, settings.prompts, marks, row_length - settings.tokens, seed)
    prompts.sort(key=len)
    generator = torch.Generator(model.lm_head.weight.device).manual_seed(seed)
    documents: list[np.ndarray] = []
    starts: list[int] = []
    for at in range(0, len(prompts), settings.batch):
        batch = prompts[at : at + settings.batch]
        for prompt, text in zip(
            batch,
            continue_texts(model, batch, settings.tokens, settings.temperature, generator, stop),
            strict=True,
        ):
            documents.append(np.concatenate((prompt, text)))
            starts.append(len(prompt))
        message(f"{len(documents)} of {len(prompts)} prompts continued")
    order = np.random.default_rng(seed).permutation(len(documents))
    return write_corpus(
        Path(out), "train", [documents[i] for i in order], [starts[i] for i in order], 0, model.config.vocab_size
    )
