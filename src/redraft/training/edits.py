"""Makes a corpus of texts to edit from a prepared one: errors to find, and instructions to follow.

Errors: windows over dialogues (or over their bare text), whose canvas starts from the text with errors made in it and
should end as the text itself. Instructions: `<|edit|>` instruction, a newline, the text before, `<|assistant|>`, the
text after, `<|eos|>`; canvases over the text after start from the text before. In both a canvas sees what comes before
it as it should be.
"""

from __future__ import annotations

import io
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from redraft.editing.alignment import align, capacity, changed_blocks
from redraft.errors import RequestError
from redraft.files import write_atomically
from redraft.training import damage
from redraft.training.data import Corpus, make_folder, write_corpus
from redraft.training.instructions import instruct, sentences
from redraft.training.pairs import OUTSIDE, canvases_file
from redraft.training.recipe import Canvas, Edits
from redraft.training.tokenizer import ASSISTANT, EDIT, EOS, NULL, load_tokenizer

Tokens = tuple[int, ...]
ERROR_COUNTS = (1, 1, 1, 1, 1, 1, 2, 2, 3)  # in a window that isn't left untouched
LOOKAHEAD = 8  # words behind a window, which move in when words of it are missing
TRIES = 50  # documents looked at for each instruction, at most
LONGEST_TEXT = 100  # tokens of a text that an instruction changes


class Splitter:
    """Words as the tokenizer splits a text, and each word's tokens: together those of the text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.pre_tokenizer is None:
            raise RequestError(
                "edits need a tokenizer that splits text into words, such as redraft prepare makes"
            )
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True
        self.special = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        self._tokens: dict[str, Tokens] = {content: (i,) for i, content in self.special.items()}
        for name in (EDIT, ASSISTANT, EOS, NULL):
            if name not in self._tokens:
                raise RequestError(
                    f"the tokenizer has no {name}, which edits need; make it with redraft prepare"
                )

    def words(self, text: str) -> list[str]:
        return [text[a:b] for _, (a, b) in self.tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    def tokens(self, word: str) -> Tokens:
        """A special token by its name is that token: no word of a text is spelt so."""
        if word not in self._tokens:
            self._tokens[word] = tuple(self.tokenizer.encode(word, add_special_tokens=False).ids)
        return self._tokens[word]

    def encode(self, words: list[str]) -> list[Tokens]:
        return [self.tokens(w) for w in words]

    def turns(self, document: np.ndarray) -> list[tuple[str | None, str]]:
        """(role token or None, text) of a prepared document; the end token is left out."""
        turns: list[tuple[str | None, list[int]]] = [(None, [])]
        for token in document.tolist():
            if token in self.special:
                turns.append((self.special[token], []))
            else:
                turns[-1][1].append(token)
        said = [(role, self.tokenizer.decode(ids, skip_special_tokens=False)) for role, ids in turns]
        return [(role, text) for role, text in said if text] or [(None, " ")]


@dataclass
class Written:
    """What has been made so far: documents, where their canvases may start, and rows of canvases by length."""

    lengths: list[int]
    documents: list[list[int]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    rows: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def add(self, document: list[int], start: int) -> None:
        self.documents.append(document)
        self.starts.append(start)

    def add_canvas(self, length: int, anchor: int, noisy: np.ndarray, target: np.ndarray) -> None:
        row = np.concatenate(([len(self.documents) - 1, anchor], noisy, target)).astype(np.int32)
        self.rows.setdefault(length, []).append(row)


def make_edits(
    data: str | Path,
    settings: Edits,
    canvas: Canvas,
    seed: int = 0,
    message: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Writes the corpus settings.out (split train) from the train split of `data`; returns its counts.

    The same seed makes the same corpus. Raises RequestError for a tokenizer without the tokens that edits need.
    """
    corpus, splitter = Corpus(data, "train"), Splitter(load_tokenizer(Path(data)))
    maker = Maker(splitter, settings, canvas)
    written = Written(sorted(set(canvas.lengths)))
    rng = Random(f"edits {seed}")
    for made, document in enumerate(_endless(len(corpus), rng)):
        if made == settings.documents:
            break
        maker.proofread(splitter.turns(corpus[document]), written, rng)
    message(f"{len(written.documents)} texts with errors made")
    for tried, document in enumerate(_endless(len(corpus), rng)):
        if len(written.documents) >= settings.documents + settings.instructions:
            break
        if tried > TRIES * settings.instructions:
            raise RequestError(
                f"{data} holds too few sentences that an instruction could change: lower edits.instructions"
            )
        maker.instruct(splitter.turns(corpus[document]), written, rng)
    folder = Path(settings.out)
    make_folder(folder)
    for length in written.lengths:
        rows = written.rows.get(length) or [np.zeros((0, 2 + 2 * length), np.int32)]
        buffer = io.BytesIO()
        np.save(buffer, np.vstack(rows))
        write_atomically(canvases_file(folder, "train", length), buffer.getvalue())
    message(f"{len(written.documents)} texts to edit made")
    vocab = splitter.tokenizer.get_vocab_size()
    about = write_corpus(folder, "train", written.documents, written.starts, 0, vocab)
    return about | {"canvases": {n: len(written.rows.get(n, [])) for n in written.lengths}}


def _endless(count: int, rng: Random) -> Iterator[int]:
    """Numbers below count in random order, again and again."""
    while True:
        yield from rng.sample(range(count), count)


class Maker:
    """Makes documents and their canvases; the settings of a recipe."""

    def __init__(self, splitter: Splitter, settings: Edits, canvas: Canvas) -> None:
        self.splitter, self.settings, self.every = splitter, settings, canvas.insert_every
        self.null_id = splitter.tokens(NULL)[0]

    # -- errors to find -------------------------------------------------------------------------------------------

    def proofread(self, turns: list[tuple[str | None, str]], written: Written, rng: Random) -> None:
        """One document, and windows over it for each length."""
        plain = rng.random() < self.settings.plain
        words = self._passage(turns, plain, rng)
        tokens = self.splitter.encode(words)
        written.add([t for w in tokens for t in w], 0)
        for length in written.lengths:
            for anchor, noisy, target in self._windows(words, tokens, length, plain, rng):
                written.add_canvas(length, anchor, noisy, target)

    def _passage(self, turns: list[tuple[str | None, str]], plain: bool, rng: Random) -> list[str]:
        """Turns in a row, as many as fit, with their role tokens and the end token if it comes so far; plain: some
        turns as one text."""
        first = rng.randrange((len(turns) + 1) // 2) if plain or rng.random() < 0.5 else 0
        most = rng.randint(2, 8) if plain else len(turns)
        glue = rng.choice([" ", "\n"])
        words: list[str] = []
        room = self.settings.longest - 1
        for number, (role, text) in enumerate(turns[first : first + most]):
            head = [role] if role and not plain else []
            said = self.splitter.words(glue + text if plain and number else text)
            room -= sum(len(self.splitter.tokens(w)) for w in head + said)
            if room < 0 and number:
                return words
            words += head + said
        while sum(len(self.splitter.tokens(w)) for w in words) > self.settings.longest:
            words.pop()  # of a turn that alone is too long
        return words if plain or first + most < len(turns) or room < 0 else [*words, EOS]

    def _windows(
        self, words: list[str], tokens: list[Tokens], length: int, plain: bool, rng: Random
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(anchor, noisy, target) of windows end to end, from a random first word."""
        held = capacity(length, self.every)
        at = [0, *accumulate(map(len, tokens))]
        first = 0 if rng.random() < 0.5 else bisect_left(at, rng.randrange(min(held, at[-1]) + 1))
        while first < len(words):
            inside = max(first + 1, bisect_left(at, at[first] + held))
            ahead = min(inside + LOOKAHEAD, len(words))
            pair = self._damaged(words[first:ahead], min(inside, ahead) - first, length, rng)
            noisy, target = pair
            old = int((noisy != self.null_id).sum())
            if ahead == len(words) and old < held and words[-1] != EOS:
                if not plain:
                    return  # the dialogue goes on, and nobody knows how
                end = min(length, old + old // self.every + 1)
                end = max(end, 1 + int(np.flatnonzero(target != self.null_id)[-1]))
                target[end:] = OUTSIDE
            yield at[first], noisy, target
            used = int(((target != self.null_id) & (target != OUTSIDE)).sum())
            first = max(first + 1, bisect_left(at, at[first] + used))

    def _damaged(
        self, words: list[str], inside: int, length: int, rng: Random
    ) -> tuple[np.ndarray, np.ndarray]:
        """A canvas over `words` with errors in the first `inside` of them, or with none."""
        right = self.splitter.encode(words)
        if rng.random() >= self.settings.untouched:
            for _ in range(4):
                wrong = words[:inside]
                for _ in range(rng.choice(ERROR_COUNTS)):
                    made = damage.damage(wrong, rng)
                    wrong = made[0] if made else wrong
                before = self.splitter.encode(wrong) + right[inside:]
                found = align(before, right, self.every, self.null_id, length)
                if found is not None:
                    return found
        clean = align(right, right, self.every, self.null_id, length)
        assert clean is not None
        return clean

    # -- instructions to follow -----------------------------------------------------------------------------------

    def instruct(self, turns: list[tuple[str | None, str]], written: Written, rng: Random) -> None:
        """One document with an instruction for one to three sentences of a turn, if there is one that suits them."""
        parts = sentences(rng.choice(turns)[1])
        count = rng.choice((1, 1, 2, 2, 3))
        at = rng.randrange(max(1, len(parts) - count + 1))
        text = " ".join(parts[at : at + count])
        made = instruct(text, rng) if len(text) > 8 else None
        if made is None:
            return
        spl = self.splitter
        head = [spl.tokens(EDIT), *spl.encode(spl.words(made.instruction + "\n"))]
        before, after = (spl.encode(spl.words(t)) for t in (made.before, made.after))
        if max(sum(map(len, before)), sum(map(len, after))) > LONGEST_TEXT:
            return
        given = [t for w in (*head, *before, spl.tokens(ASSISTANT)) for t in w]
        before, after = [*before, spl.tokens(EOS)], [*after, spl.tokens(EOS)]
        document = [*given, *(t for w in after for t in w)]
        if len(document) > self.settings.longest:
            return
        written.add(document, len(given))
        for length in written.lengths:
            for anchor, noisy, target in self._steps(before, after, length):
                written.add_canvas(length, len(given) + anchor, noisy, target)

    def _steps(
        self, before: list[Tokens], after: list[Tokens], length: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Canvases one behind the other over the whole text, as editing lays them; what doesn't fit is passed over."""
        anchor = 0
        while before:
            found = align(before, after, self.every, self.null_id, length)
            if found is not None:
                noisy, target = found
                yield anchor, noisy, target
                old, new = (int((slots != self.null_id).sum()) for slots in found)
            else:
                _, old, _, new = changed_blocks(before, after)[0]
            before, after = _without(before, old), _without(after, new)
            anchor += new


def _without(words: list[Tokens], count: int) -> list[Tokens]:
    """The words less their first `count` tokens."""
    for i, word in enumerate(words):
        if count < len(word):
            return [word[count:], *words[i + 1 :]]
        count -= len(word)
    return []
