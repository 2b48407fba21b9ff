"""A model folder with random weights that knows <|edit|>, and a network made of a function, whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.denoiser.config import DenoiserConfig
from redraft.engine.backend import Pass, PassResult
from redraft.hub import GenerationDefaults
from redraft.hub.chat_template import ChatTemplate
from redraft.hub.tokenizer import Tokenizer
from tests.hub.conftest import TEMPLATE, byte_level

FAST = byte_level(["<|edit|>"])
IDS = {name: FAST.token_to_id(f"<|{name}|>") for name in ("eos", "user", "assistant", "mask", "null", "edit")}
NULL, MASK = IDS["null"], IDS["mask"]
SIZES: dict[str, Any] = {
    "vocab_size": FAST.get_vocab_size(),
    "mask_token_id": MASK,
    "null_token_id": NULL,
    "eos_token_ids": (IDS["eos"], IDS["user"]),
}
# Of a slot: its context's tokens, the canvas and which slots are locked -> the token of each slot, and how likely.
Answers = Callable[[list[int], list[int], list[bool]], list[tuple[int, float]]]


def write_editor(folder: Path, **changes: Any) -> Path:
    """Context of 192 tokens; torch is loaded here alone."""
    from redraft.denoiser import checkpoint
    from tests.engine.models import network

    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(network(3, 0.4, **(SIZES | changes)), folder)
    FAST.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    defaults = {"canvas_length": 8, "threshold": 0.6, "max_new_tokens": 24, "temperature": 1.0}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    return folder


class Clean:
    """Implements engine.backend.Context."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    def truncate(self, length: int) -> None:
        del self.tokens[length:]


class Scripted:
    """Implements engine.backend.Backend by a function; `seen` keeps (context, canvas) of every canvas pass. likes: of
    the AR self, which finds each of these tokens likely behind those before it."""

    name = "scripted"
    heads = None

    def __init__(self, answers: Answers, likes: Sequence[int] = (), **changes: Any) -> None:
        self._likes = list(likes)
        self.config = DenoiserConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
            **(SIZES | {"max_position_embeddings": 256, "canvas_length": 16} | changes),
        )
        self._answers = answers
        self.seen: list[tuple[list[int], list[int]]] = []

    def new_context(self, capacity: int) -> Clean:
        return Clean()

    def forward(self, passes: Sequence[Pass]) -> list[PassResult]:
        return [self._forward(p) for p in passes]

    def _forward(self, p: Pass) -> PassResult:
        assert isinstance(p.context, Clean)
        p.context.tokens += p.encode.tolist()
        size = self.config.vocab_size
        rows = {"none": 0, "last": 1, "all": len(p.encode)}[p.encode_logits]
        encoded = np.zeros((rows, size), np.float32)
        for row in range(rows):
            read = [t for t in p.context.tokens[: p.context.length - rows + row + 1] if t != IDS["user"]]
            if self._likes[: len(read)] == read and len(read) < len(self._likes):
                encoded[row, self._likes[len(read)]] = 9.0
        if p.canvas is None:
            return PassResult(encoded, None)
        wanted = range(len(p.canvas)) if p.canvas_rows is None else p.canvas_rows.tolist()
        logits = np.zeros((len(wanted), size), np.float32)
        assert p.context.length + len(p.canvas) <= self.config.max_position_embeddings
        chosen: list[tuple[int, float]] = []
        for side in np.split(np.arange(len(p.canvas)), len(p.starts)):
            canvas = p.canvas[side].tolist()
            self.seen.append((list(p.context.tokens), canvas))
            locked = [False] * len(canvas) if p.locked is None else p.locked[side].tolist()
            chosen += self._answers(list(p.context.tokens), canvas, locked)
        for row, slot in enumerate(wanted):
            token, probability = chosen[slot]
            # softmax of this and size - 1 zeros
            logits[row, token] = np.log(probability * (size - 1) / (1 - probability))
        return PassResult(encoded, logits)


def scripted(answers: Answers, likes: Sequence[int] = (), **changes: Any) -> tuple[Model, Scripted]:
    backend = Scripted(answers, likes, **changes)
    defaults = GenerationDefaults(canvas_length=16, threshold=0.6, max_new_tokens=64)
    return Model("scripted", backend, Tokenizer(FAST, ChatTemplate(TEMPLATE)), defaults), backend


def tokens(text: str) -> list[int]:
    return Tokenizer(FAST).encode(text).tolist()


def typist(target: str, sure: float = 0.99) -> Answers:
    """Open slots take `target`'s tokens in their order, then nulls; what stands is right."""

    def answers(context: list[int], canvas: list[int], locked: list[bool]) -> list[tuple[int, float]]:
        out, wanted = [], list(tokens(target))
        for token, fixed in zip(canvas, locked, strict=True):
            if token == MASK and not fixed:
                out.append((wanted.pop(0) if wanted else NULL, sure))
            else:
                out.append((token, sure))
        return out

    return answers


def corrector(table: dict[int, int], sure: float = 0.95) -> Answers:
    """Tokens of the table become others (the null: deleted); all else is right."""

    def answers(context: list[int], canvas: list[int], locked: list[bool]) -> list[tuple[int, float]]:
        return [(table.get(token, token), sure) for token in canvas]

    return answers


class Heard(Scripted):
    """A scripted network whose encode role is sure of what `follows` says: of the tokens so far, the next."""

    def __init__(self, answers: Answers, follows: Callable[[list[int]], int | None], **changes: Any) -> None:
        super().__init__(answers, **changes)
        self._follows = follows
        self.checked: list[tuple[list[int], list[int]]] = []

    def _forward(self, p: Pass) -> PassResult:
        result = super()._forward(p)
        if p.encode_logits != "all":
            return result
        assert isinstance(p.context, Clean)
        before = len(p.context.tokens) - len(p.encode)
        self.checked.append((p.context.tokens[:before], p.encode.tolist()))
        for row in range(len(p.encode)):
            token = self._follows(p.context.tokens[: before + row + 1])
            if token is not None:
                result.encode[row, token] = 12.0
        return result


def proofreader(
    answers: Answers,
    follows: Callable[[list[int]], int | None],
    threshold: float = 0.5,
    screen: float = 0.0,
    **weights: float,
) -> tuple[Model, Heard]:
    """A model that asks its AR self about corrections, with these weights, 0 for all other features, and no hidden
    units. screen: log odds of every proposal before it is read."""
    from redraft.editing.noisy_channel import FEATURES, SHOWN

    backend = Heard(answers, follows)
    counts = dict.fromkeys(FEATURES, 0.0) | weights
    channel = {
        "threshold": threshold,
        "screen": dict.fromkeys(SHOWN, 0.0) | {"bias": screen},
        "units": [],
        "weights": {name: [w] for name, w in counts.items()},
    }
    defaults = GenerationDefaults(canvas_length=16, threshold=0.6, max_new_tokens=64, proofread=channel)
    return Model("heard", backend, Tokenizer(FAST, ChatTemplate(TEMPLATE)), defaults), backend
