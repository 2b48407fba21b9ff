"""What is written on when speed and quality are measured: the beginnings of dialogues that no training has seen."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redraft.errors import RequestError
from redraft.hub.tokenizer import Tokenizer

SAMPLE = "60 dialogues of the Schema-Guided Dialogue dataset's test split"
LONGEST = 256  # tokens of a prompt at most, so that all modes work at contexts of the usual size
ROLES = {"User": "user", "Assistant": "assistant"}


@dataclass(frozen=True, eq=False)
class Reply:
    """One reply of a real dialogue: int64 token ids of all that comes before it, the role token included, and its
    own. left: tokens of the dialogue after the prompt, this reply's among them."""

    prompt: np.ndarray
    text: np.ndarray
    left: int


@dataclass(frozen=True)
class Dialogues:
    """Replies by dialogue, and where they come from, in words."""

    replies: tuple[tuple[Reply, ...], ...]
    source: str

    def all(self) -> Iterator[Reply]:
        for dialogue in self.replies:
            yield from dialogue


def load_dialogues(tokenizer: Tokenizer, data: str | Path | None = None, split: str = "test") -> Dialogues:
    """A prepared folder's split, or without one the dialogues that come with redraft.

    Raises RequestError where there is none, or the model's tokenizer isn't the one that the folder was prepared with.
    """
    if data is None:
        return Dialogues(tuple(_from_sample(tokenizer)), SAMPLE)
    from redraft.training.data import Corpus

    corpus = Corpus(data, split)
    if len(corpus.tokens) and int(corpus.tokens.max()) >= tokenizer.vocab_size:
        raise RequestError(f"{data} was prepared with another tokenizer than the model's")
    roles = {name: tokenizer.special_id(f"<|{name}|>") for name in ("user", "assistant", "eos")}
    documents = (corpus[i] for i in range(len(corpus)))
    found = tuple(tuple(replies(d, roles["assistant"], tuple(roles.values()))) for d in documents)
    return Dialogues(tuple(f for f in found if f), f"{len(corpus)} dialogues, {split} split")


def replies(document: np.ndarray, speaker: int, ends: Sequence[int]) -> Iterator[Reply]:
    """Each reply of `speaker` (a role token) in int64 [n]; it ends before the next of `ends`."""
    marks = np.flatnonzero(np.isin(document, list(ends)))
    for at in np.flatnonzero(document == speaker).tolist():
        after = marks[marks > at]
        stop = int(after[0]) if len(after) else len(document)
        yield Reply(document[: at + 1], document[at + 1 : stop], len(document) - at - 1)


def _from_sample(tokenizer: Tokenizer) -> Iterator[tuple[Reply, ...]]:
    """The packaged dialogues through the model's chat template, so that any model can be measured on them."""
    if tokenizer.template is None:
        raise RequestError(
            "this model has no chat template to put dialogues into: give prepared ones with --data"
        )
    text = importlib.resources.files("redraft.evaluation").joinpath("data/dialogues.jsonl").read_text("utf-8")
    for line in text.splitlines():
        messages = to_messages(json.loads(line)["text"])
        whole = len(tokenizer.render(messages, add_generation_prompt=False))
        found = []
        for at, message in enumerate(messages):
            if message["role"] == "assistant" and at:
                prompt = tokenizer.render(messages[:at])
                found.append(Reply(prompt, tokenizer.encode(message["content"]), whole - len(prompt)))
        yield tuple(found)


def to_messages(transcript: str) -> list[dict[str, Any]]:
    """Lines "User: …" and "Assistant: …" as messages for a chat template."""
    messages = []
    for line in transcript.splitlines():
        speaker, _, said = line.partition(": ")
        messages.append({"role": ROLES[speaker], "content": said})
    return messages


def pick_prompts(
    dialogues: Dialogues, count: int, tokens: int, seed: int = 0, context: int = 2 * LONGEST
) -> list[np.ndarray]:
    """`count` prompts, int64 each, one a dialogue as long as there are enough dialogues, a fixed choice for a seed.

    They have at most LONGEST tokens and leave `tokens` of the context free. Those after which the dialogue went on for
    at least `tokens` more are taken first: a text that is continued past the end of its dialogue has no right
    continuation. Raises RequestError when there aren't so many.
    """
    rng = np.random.default_rng(seed)
    longest = min(LONGEST, context - tokens)
    order = rng.permutation(len(dialogues.replies))
    fitting: list[list[np.ndarray]] = []
    spare: list[np.ndarray] = []
    for i in order:
        short = [r for r in dialogues.replies[i] if len(r.prompt) <= longest]
        good = [r.prompt for r in short if r.left >= tokens]
        fitting.append([good[j] for j in rng.permutation(len(good))])
        spare.extend(r.prompt for r in short if r.left < tokens)
    chosen: list[np.ndarray] = []
    while len(chosen) < count and any(fitting):
        chosen.extend(own.pop() for own in fitting if own)
    chosen.extend(spare)
    if len(chosen) < count:
        raise RequestError(
            f"there are {len(chosen)} prompts of up to {longest} tokens in {dialogues.source}: "
            "ask for fewer with --prompts"
        )
    return chosen[:count]
