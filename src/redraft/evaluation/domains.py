"""Prompts by domain (code, maths, chat), none of which any recipe trains on, for a model's drafts to be judged on."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.errors import RequestError
from redraft.evaluation.prompts import load_dialogues, pick_prompts
from redraft.evaluation.tasks import TASKS
from redraft.evaluation.tasks.base import read
from redraft.evaluation.tasks.run import drawn

BENCHMARKS = {"code": ("humaneval", "mbpp"), "maths": ("gsm8k",)}
DOMAINS = (*BENCHMARKS, "chat")


@dataclass(frozen=True, eq=False)
class Domain:
    """prompts: int64 token ids each; source: where they come from, in words."""

    name: str
    source: str
    prompts: list[np.ndarray]


def load_domains(
    model: Model, count: int, tokens: int, data: Path | None = None, seed: int = 0
) -> list[Domain]:
    """`count` prompts of each domain, which leave room for `tokens`, a fixed choice for a seed.

    data: a folder with HumanEval.jsonl, mbpp.jsonl and gsm8k_test.jsonl (.gz); None: the sample inside the package.
    Chat is held-out dialogues, up to one of the assistant's turns. Questions are messages where the model has a chat
    template, else text to go on from. Raises RequestError where a file is missing or the sample holds fewer prompts.
    """
    context = model.config.max_position_embeddings
    out = []
    for name in BENCHMARKS:
        asked = list(_sample(name) if data is None else _questions(name, data))
        sources = sorted({source for source, _ in asked})
        prompts = [_encoded(model, text) for _, text in asked]
        fitting = [p for p in prompts if len(p) + tokens <= context]
        if len(fitting) < count:
            raise RequestError(
                f"there are {len(fitting)} prompts of {name} that leave room for {tokens} tokens: ask for fewer"
            )
        chosen = drawn([{"prompt": p} for p in fitting], count, seed)
        where = " and ".join(sources) + (" (sample)" if data is None else "")
        out.append(Domain(name, where, [record["prompt"] for record in chosen]))
    dialogues = load_dialogues(model.tokenizer)
    out.append(Domain("chat", dialogues.source, pick_prompts(dialogues, count, tokens, seed, context)))
    return out


def _sample(domain: str) -> Iterator[tuple[str, str]]:
    """Benchmark and question of each record of the packaged sample."""
    text = importlib.resources.files("redraft.evaluation").joinpath("data/questions.jsonl").read_text("utf-8")
    for line in text.splitlines():
        record = json.loads(line)
        if record["domain"] == domain:
            yield record["source"].partition(" ")[0], record["text"]


def _questions(domain: str, data: Path) -> Iterator[tuple[str, str]]:
    for name in BENCHMARKS[domain]:
        task = TASKS[name]
        source = read(task, data)
        for record in filter(task.asked, source.records):
            messages: Any = task.ask(record, "chat", source.records).prompt
            yield task.title, messages[0]["content"]


def _encoded(model: Model, text: str) -> np.ndarray:
    prompt: Any = [{"role": "user", "content": text}] if model.tokenizer.template else f"{text}\n"
    return np.array(model.encode(prompt), dtype=np.int64)
