"""Tiny corpora, networks and recipes for the training tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from redraft import corruption
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.layouts import Rows as LayoutRows
from redraft.denoiser.layouts import allowed, canvas_start, clean_start
from redraft.denoiser.transformer import Denoiser, Visibility
from redraft.training.batch import Batch, build
from redraft.training.data import Corpus, write_corpus
from redraft.training.packing import Rows
from redraft.training.recipe import Canvas, Mixture, Recipe

VOCAB, EOS, NULL, MASK = 24, 0, 22, 23
PLAIN = Canvas(
    lengths=[4], length_weights=[1], gap_share=0, insert_share=0, pin_share=0, draft_share=0, copies=1
)


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def dialogues(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    words = ["a table", "for two", "in town", "at noon", "please", "thanks", "yes", "no", "the bus", "red"]

    def said() -> str:
        return " ".join(rng.choice(words, int(rng.integers(1, 5))))

    return [f"User: {said()}\nAssistant: {said()}\nUser: {said()}\nAssistant: {said()}" for _ in range(count)]


def documents(count: int, longest: int = 14, seed: int = 0) -> list[list[int]]:
    """Random text tokens, each document ended by EOS."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, count)
    return [[*rng.integers(1, NULL, n).tolist(), EOS] for n in lengths]


def corpus(
    folder: Path, texts: Sequence[Sequence[int]], starts: Sequence[int] | None = None, vocab: int = VOCAB
) -> Corpus:
    write_corpus(folder, "train", texts, starts or [0] * len(texts), 0, vocab)
    return Corpus(folder, "train")


def rows(folder: Path, texts: Sequence[Sequence[int]], row_length: int = 16, **more: Any) -> Rows:
    return Rows([corpus(folder, texts, **more)], [1.0], row_length, 0)


def config(**changes: Any) -> DenoiserConfig:
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "qk_norm": True,
        "mask_token_id": MASK,
        "null_token_id": NULL,
        "eos_token_ids": (EOS,),
        "canvas_length": 4,
    }
    return DenoiserConfig(**(sizes | changes))


def network(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Denoiser:
    """Weights large enough that every part of the network shows in the logits."""
    model = Denoiser(config(**changes)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            p.copy_(centre + 0.3 * torch.randn(p.shape, generator=generator, dtype=dtype))
    return model.eval()


def process(kind: str = "absorbing", vocab: int = VOCAB, **more: Any) -> corruption.Process:
    return corruption.process(kind, vocab, mask_id=vocab - 1, **more)


def batch(data: Rows, settings: Canvas = PLAIN, kind: str = "absorbing", **more: Any) -> Batch:
    arguments: dict[str, Any] = {"step": 0, "batch_rows": 2, "seed": 0} | more
    arguments.setdefault("rows", range(arguments["batch_rows"]))
    of = arguments.pop("of", config())
    ar = arguments.pop("ar", [True] * len(data.corpora))
    mixture = [Mixture(path="toy", ar=taken) for taken in ar]
    return build(data, mixture, of, process(kind, of.vocab_size), settings, **arguments)


def dense_logits(
    model: Denoiser, context: Sequence[int], slots: Sequence[int], locked: Sequence[bool] | None = None
) -> torch.Tensor:
    """Logits [len(context) + len(slots), V] of one pass over clean tokens and a canvas right behind them."""
    n, c = len(context), len(slots)
    layout, length = model.config.layout, max(c, 1)
    position = np.arange(n + c)
    canvas = position >= n
    start = np.where(
        canvas,
        canvas_start(layout, np.full(n + c, n), length),
        clean_start(layout, position, length),
    )
    every = LayoutRows(canvas, np.zeros(n + c, int), position, start, np.zeros(n + c, int))
    mask = torch.from_numpy(allowed(every.queries(), every.keys()))[None, None]
    visible = Visibility(dense=Visibility.additive(mask, model.lm_head.weight.dtype))
    held = torch.zeros(1, n + c, dtype=torch.bool)
    if locked is not None:
        held[0, n:] = torch.tensor(locked)
    tokens = torch.tensor([*context, *slots], dtype=torch.int64)[None]
    with torch.no_grad():
        hidden, _ = model(
            tokens, torch.from_numpy(position)[None], visible, torch.from_numpy(canvas)[None], held
        )
        return model.logits(hidden)[0]


def logprobs(logits: torch.Tensor, *banned: int) -> np.ndarray:
    logits = logits.double()
    logits[..., list(banned)] = -torch.inf
    return torch.log_softmax(logits, -1).numpy()


def recipe(data: Path, **train: Any) -> Recipe:
    """A run of a few steps of a network of 10,000 parameters."""
    return Recipe.model_validate(
        {
            "name": "toy",
            "data": str(data),
            "model": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "max_position_embeddings": 64,
            },
            "canvas": {"lengths": [4, 8], "length_weights": [1, 1]},
            "train": {
                "steps": 6,
                "batch_rows": 4,
                "row_length": 32,
                "threads": 1,
                "device": "cpu",
                "log_every": 1,
                "evaluate_every": 100,
                "evaluate_rows": 3,
                "save_every": 3,
                "sample_prompts": [],
            }
            | train,
        }
    )
