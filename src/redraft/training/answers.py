"""The AR self's own answers as training text: `answers` of an adaptation's recipe.

A live draft is judged against what the AR self writes, not against what people wrote, so drafts are learnt on its own
text (every serious recipe of drafters regenerates its data; DFlash, DSpark). The engine writes the answers, many at a
time; each is noted in a journal as it ends, from which a later call goes on. With greedy answers, or noise keyed by the
prompt's number, the corpus does not depend on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redraft.engine import Engine, Request
from redraft.engine.backend import Backend
from redraft.errors import RedraftError, RequestError
from redraft.hub.tokenizer import Tokenizer
from redraft.sampling import SamplerSettings
from redraft.training import checkpoints
from redraft.training.adaptation_recipe import Answers
from redraft.training.data import Document, make_folder, read_documents, write_corpus
from redraft.training.recipe import Source

JOURNAL = "answers.jsonl"
SHORTEST = 8  # tokens of a text that is to be continued
CHARACTERS = 12  # of a text, per token that is wanted of it: more than any tokenizer needs
TOLD_EVERY = 10.0  # seconds


def draw_prompts(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    settings: Answers,
    seed: int,
    exclude: Sequence[Source] = (),
) -> list[tuple[int, ...]]:
    """Up to settings.prompts different prompts, token ids of at most settings.longest each.

    Of a conversation all messages before one of the assistant's, or all up to a user's last, through the chat template;
    of a text its beginning, cut anywhere. Documents take part again, cut elsewhere, while that brings new ones.
    exclude: see data.read_documents. Raises RequestError for none.
    """
    documents = read_documents(sources, exclude)
    rng = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    for again in itertools.count():
        before = len(found)
        for number in rng.permutation(len(documents)):
            chance = np.random.default_rng((seed, int(number)))
            prompt = _prompt(documents[int(number)], tokenizer, settings.longest, chance, again)
            if prompt and len(found) < settings.prompts:
                found[prompt] = None
        if len(found) == settings.prompts or (len(found) == before and again >= _most_turns(documents)):
            break
    if not found:
        raise RequestError(
            f"no prompt of the sources fits into {settings.longest} tokens: raise answers.longest"
        )
    return list(found)


def _prompt(
    document: Document, tokenizer: Tokenizer, longest: int, rng: np.random.Generator, again: int
) -> tuple[int, ...] | None:
    """The document's prompt when it takes part for the `again`-th time; None if there is none or it is too long."""
    turns = _turns(document)
    if turns and tokenizer.template is not None:
        said = document.parts[: turns[(int(rng.integers(len(turns))) + again) % len(turns)]]
        ids = tokenizer.render([{"role": str(role), "content": text} for role, text in said])
        return tuple(map(int, ids)) if len(ids) <= longest else None
    ids = tokenizer.encode(document.text[: CHARACTERS * longest])[:longest]
    if not len(ids):
        return None
    cuts = rng.permutation(np.arange(min(SHORTEST, len(ids)), len(ids) + 1))
    return tuple(map(int, ids[: cuts[again % len(cuts)]]))


def _turns(document: Document) -> list[int]:
    """Before which parts the assistant speaks; behind the last one too where that is a user's."""
    roles = [role for role, _ in document.parts]
    due = [i for i, role in enumerate(roles) if role == "assistant" and i]
    return [*due, len(roles)] if roles[-1] == "user" else due


def _most_turns(documents: Sequence[Document]) -> int:
    return max(len(_turns(document)) for document in documents)


class Journal:
    """Answers so far, by number of the prompt: one JSON line each, after one that says what they answer."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        """Raises RequestError when the journal there is of other prompts, settings or weights."""
        self.path, self.answers = folder / JOURNAL, dict[int, list[int]]()
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            lines = []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]  # a killed run leaves half a line
        if whole and whole[0] != about:
            raise RequestError(f"{self.path} holds answers of another recipe or base: remove {folder}")
        self.answers = {int(number): ids for number, ids in whole[1:]}
        text = "".join(json.dumps(entry) + "\n" for entry in [about, *whole[1:]])
        try:
            self.path.write_text(text, encoding="utf-8")
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise RedraftError(f"{self.path} can't be written: {error.strerror or error}") from None

    def add(self, number: int, ids: list[int]) -> None:
        """Raises RedraftError when the disk is full."""
        try:
            self._file.write(json.dumps([number, ids]) + "\n")
            self._file.flush()
        except OSError as error:
            raise RedraftError(f"{self.path} can't be written: {error.strerror or error}") from None
        self.answers[number] = ids

    def close(self) -> None:
        self._file.close()


def make_answers(
    backend: Backend,
    weights: str,
    data: Path,
    settings: Answers,
    sources: Sequence[Source],
    seed: int = 0,
    seconds: float | None = None,
    message: Callable[[str], None] = lambda text: None,
    exclude: Sequence[Source] = (),
    banned: tuple[int, ...] = (),
) -> bool:
    """Writes the corpus settings.out, splits train and valid; False when `seconds` ran out first (call again).

    backend: of the base, or of what is made of it; it writes as its AR self. weights: a name for what it runs on, by
    which a later call knows it again. data: a folder with its tokenizer. What an answer ended with belongs to it; one
    that was cut ends without. banned: tokens that it doesn't write. Canvases may cover answers alone.
    """
    folder = Path(settings.out)
    tokenizer = Tokenizer.load(data)
    prompts = draw_prompts(sources, tokenizer, settings, seed, exclude)
    if settings.holdout >= len(prompts):
        raise RequestError(
            f"answers.holdout {settings.holdout} leaves nothing of {len(prompts)} prompts: lower it"
        )
    make_folder(folder)
    about = settings.model_dump(include={"tokens", "temperatures"}) | {"seed": seed}
    journal = Journal(folder, about | {"weights": weights, "prompts": _hash(repr(prompts).encode())})
    try:
        done = _answer(backend, tokenizer, prompts, settings, seed, seconds, journal, message, banned)
    finally:
        journal.close()
    if done:
        _write(folder, prompts, journal.answers, settings.holdout, tokenizer, backend.config.vocab_size)
        checkpoints.copy_tokenizer(data, folder)
    return done


def _answer(
    backend: Backend,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[int, ...]],
    settings: Answers,
    seed: int,
    seconds: float | None,
    journal: Journal,
    message: Callable[[str], None],
    banned: tuple[int, ...],
) -> bool:
    """Answers what the journal lacks; False when time ran out."""
    config = backend.config
    renoise = "uniform" if config.mask_token_id is None else "mask"
    engine = Engine(backend, tokenizer.token_bytes, settings.batch, prefix_contexts=0)
    tickets = {}
    for number, prompt in enumerate(prompts):
        if number not in journal.answers:
            heat = settings.temperatures[number % len(settings.temperatures)]
            sampler = SamplerSettings(temperature=heat, canvas_length=config.canvas_length, renoise=renoise)
            request = Request(
                prompt,
                "ar",
                sampler,
                max_tokens=settings.tokens,
                seed=seed,
                sample=number,
                watched=False,
                banned=banned,
            )
            tickets[engine.submit(request)] = number
    start = told = time.perf_counter()
    while engine.has_work:
        now = time.perf_counter()
        if seconds is not None and now - start >= seconds:
            return False
        if now - told >= TOLD_EVERY:
            message(f"{len(journal.answers)} of {len(prompts)} prompts answered")
            told = now
        for ticket, _ in engine.step():
            if ticket.done and ticket.writer is not None and ticket in tickets:
                output = ticket.writer.output
                ended = output.finish_reason == "stop"
                ids = [*map(int, output.tokens), *(config.eos_token_ids[:1] if ended else ())]
                journal.add(tickets.pop(ticket), ids)
    if tickets:
        raise RedraftError(
            f"{len(tickets)} prompts were left without an answer: the base's logits are no numbers"
        )
    return True


def _write(
    folder: Path,
    prompts: Sequence[tuple[int, ...]],
    answers: dict[int, list[int]],
    holdout: int,
    tokenizer: Tokenizer,
    vocab_size: int,
) -> None:
    """The first `holdout` prompts are valid's; train is written last: it is what says that all is there."""
    for split, numbers in (("valid", range(holdout)), ("train", range(holdout, len(prompts)))):
        documents = [[*prompts[n], *answers[n]] for n in numbers]
        size = sum(len(tokenizer.token_bytes(token)) for document in documents for token in document)
        write_corpus(folder, split, documents, [len(prompts[n]) for n in numbers], size, vocab_size)


def digest(name: str, weights: Iterable[np.ndarray]) -> str:
    """Of a backend's name and the weights that it runs on: a sample of each."""
    return _hash(name.encode() + b"".join(w.reshape(-1)[:64].tobytes() for w in weights))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
