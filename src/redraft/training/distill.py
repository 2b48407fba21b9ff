"""Sequence-level distillation (Kim and Rush, 2016), with the AR self as the teacher of its own canvas.

An open dialogue has many right continuations, and slots that are filled independently agree on none of them. The
AR self's low-temperature continuations are one choice each: a canvas that learns them can settle many slots at once.
The continuations become a corpus like any other, in which canvases cover the continuation alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.denoiser import checkpoint
from redraft.denoiser.transformer import Denoiser, Layer, rotary_angles
from redraft.errors import RequestError
from redraft.training.data import Corpus, write_corpus
from redraft.training.memory import keep_freed_memory
from redraft.training.recipe import Distill


@torch.inference_mode()
def continue_texts(
    model: Denoiser, prompts: np.ndarray, tokens: int, temperature: float, generator: torch.Generator
) -> np.ndarray:
    """AR continuations int64 [B, tokens] of prompts int64 [B, P], all of one length so that nothing is padded.

    temperature 0 is greedy. The noise is float64 Gumbel: float32 would cut its tails.
    """
    config, device = model.config, model.lm_head.weight.device
    batch, start = prompts.shape
    shape = (config.num_hidden_layers, batch, start + tokens, config.num_key_value_heads, config.head_dim)
    keys, values = (torch.empty(shape, device=device, dtype=model.lm_head.weight.dtype) for _ in range(2))

    def read(ids: Tensor, at: int) -> Tensor:
        """Hidden state of the last of the rows ids [B, T] at positions at.., whose keys and values are kept."""
        x = model.model.embed_tokens(ids)
        end = at + ids.shape[1]
        cos, sin = rotary_angles(torch.arange(at, end, device=device)[None], config)
        for i, layer in enumerate(model.model.layers):
            assert isinstance(layer, Layer)
            attention = layer.self_attn
            q, k, v = attention.project(layer.input_layernorm(x), cos, sin)
            keys[i, :, at:end], values[i, :, at:end] = k, v
            seen = keys[i, :, :end].transpose(1, 2), values[i, :, :end].transpose(1, 2)
            grouped = attention.heads != attention.kv_heads
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2), *seen, is_causal=at == 0, enable_gqa=grouped
            )
            x = x + attention.o_proj(out.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return model.model.norm(x[:, -1])

    written = torch.empty(batch, tokens, dtype=torch.int64, device=device)
    hidden = read(torch.from_numpy(prompts).to(device), 0)
    for i in range(tokens):
        logits = model.logits(hidden)
        logits[:, list(config.special_slot_ids)] = -torch.inf
        if temperature > 0:
            uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64, device=device)
            logits = logits.double() / temperature - torch.log(-torch.log(uniform.clamp_min(1e-300)))
        written[:, i] = logits.argmax(-1)
        if i + 1 < tokens:
            hidden = read(written[:, i : i + 1], start + i)
    return written.cpu().numpy()


def draw_prompts(corpus: Corpus, count: int, lengths: Sequence[int], seed: int) -> dict[int, np.ndarray]:
    """`count` beginnings of random documents by their length, one of `lengths`, cut anywhere: length -> [n, length].

    Documents take part again, with other cuts, when there are fewer than count.
    """
    rng = np.random.default_rng(seed)
    usable = np.flatnonzero(corpus.lengths > min(lengths))
    if not len(usable):
        raise RequestError(f"no document is longer than {min(lengths)} tokens: nothing to continue")
    drawn: dict[int, list[np.ndarray]] = defaultdict(list)
    while (taken := sum(map(len, drawn.values()))) < count:
        for document in rng.permutation(usable)[: count - taken]:
            fitting = [n for n in lengths if n < corpus.lengths[document]]
            length = int(rng.choice(fitting))
            drawn[length].append(corpus[int(document)][:length])
    return {length: np.stack(prompts) for length, prompts in sorted(drawn.items())}


def distill(
    model_folder: str | Path,
    data: str | Path,
    settings: Distill,
    seed: int = 0,
    message: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Writes the corpus of continuations, the split train of settings.out; returns its counts."""
    keep_freed_memory()
    model = checkpoint.load(model_folder)
    corpus = Corpus(data, "train")
    stop = model.config.eos_token_ids[0]
    generator = torch.Generator(model.lm_head.weight.device).manual_seed(seed)
    documents: list[np.ndarray] = []
    starts: list[int] = []
    for length, prompts in draw_prompts(corpus, settings.prompts, settings.prompt_lengths, seed).items():
        for at in range(0, len(prompts), settings.batch):
            batch = prompts[at : at + settings.batch]
            texts = continue_texts(model, batch, settings.tokens, settings.temperature, generator)
            for prompt, text in zip(batch, texts, strict=True):
                ends = np.flatnonzero(text == stop)
                documents.append(np.concatenate((prompt, text[: ends[0] + 1] if len(ends) else text)))
                starts.append(length)
            message(f"{len(documents)} of {settings.prompts} beginnings continued")
    order = np.random.default_rng(seed).permutation(len(documents))
    return write_corpus(
        Path(settings.out),
        "train",
        [documents[i] for i in order],
        [starts[i] for i in order],
        0,
        model.config.vocab_size,
    )
