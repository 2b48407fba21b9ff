"""Tiny networks whose weights are large enough that every row matters, and ways to run requests on them."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from redraft.denoiser import checkpoint
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.transformer import Denoiser
from redraft.engine import Commit, Engine, Request, Step, Ticket
from redraft.engine.backends.torch_backend import TorchBackend
from tests.hub.conftest import TEMPLATE, byte_level

VOCAB = 44
EOS, MASK, NULL = 1, VOCAB - 1, VOCAB - 2
NOTHING = np.zeros(0, dtype=np.int64)


def network(seed: int = 0, spread: float = 0.3, **changes: Any) -> Denoiser:
    """spread: standard deviation of the weights; larger makes the network surer of itself."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 192,
        "canvas_length": 8,
        "mask_token_id": MASK,
        "null_token_id": NULL,
        "eos_token_ids": (EOS,),
    }
    model = Denoiser(DenoiserConfig(**(sizes | changes))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") or "layernorm" in name else 0.0
            p.copy_(centre + spread * torch.randn(p.shape, generator=generator))
    return model


@functools.cache
def backend(seed: int = 0, spread: float = 0.3, **changes: Any) -> TorchBackend:
    return TorchBackend(network(seed, spread, **changes))


def token_bytes(token: int) -> bytes:
    """Two tokens a letter and none for the special ones, so that stop strings meet several tokens."""
    return b"" if token in (EOS, MASK, NULL) else b"abcdefghijklmnopqrst"[token % 20 : token % 20 + 1]


def prompt(length: int = 12, seed: int = 0) -> tuple[int, ...]:
    return tuple(int(t) for t in np.random.default_rng(seed).integers(2, VOCAB - 2, length))


def finish(engine: Engine, tickets: Sequence[Ticket]) -> dict[Ticket, list[Step | Commit]]:
    """Runs the engine until it's empty; the events of each ticket."""
    events: dict[Ticket, list[Step | Commit]] = {ticket: [] for ticket in tickets}
    while engine.has_work:
        for ticket, event in engine.step():
            events[ticket].append(event)
    return events


def run(requests: Sequence[Request], on: TorchBackend | None = None, **options: Any) -> list[Ticket]:
    engine = Engine(on or backend(), token_bytes, **options)
    tickets = [engine.submit(request) for request in requests]
    finish(engine, tickets)
    return tickets


def told(ticket: Ticket) -> tuple[tuple[int, ...], str | None, bytes, int]:
    """What an answer comes to: tokens, reason, text, evaluations."""
    assert ticket.writer is not None
    output = ticket.writer.output
    return tuple(output.tokens), output.finish_reason, output.text_bytes(), ticket.writer.nfe


def write_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A complete model folder: random weights, a byte-level tokenizer, a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    fast = byte_level()
    ids = {name: fast.token_to_id(f"<|{name}|>") for name in ("eos", "user", "mask", "null")}
    sizes = {
        "vocab_size": fast.get_vocab_size(),
        "mask_token_id": ids["mask"],
        "null_token_id": ids["null"],
        "eos_token_ids": (ids["eos"], ids["user"]),
    }
    checkpoint.save(network(seed, **(sizes | changes)), folder)
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    levels = {"low": {"threshold": 0.5, "max_steps": 4}, "high": {"threshold": 0.95}}
    defaults = {"canvas_length": 8, "threshold": 0.8, "max_new_tokens": 24, "effort": levels}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    return folder
