"""Texts with errors to be found: held-out turns of dialogues, half of them with one error made in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from redraft.errors import RequestError
from redraft.evaluation.editors import TEST, VALID, Pair, load_pairs
from redraft.hub.tokenizer import Tokenizer

Words = list[str]
# One error in a list of words, and its kind; None where it finds no place.
Damage = Callable[[Words, Random], tuple[Words, str] | None]
UNTOUCHED = 0.5  # share of the texts that get no error
UNSEEN = 0.2  # share of the test's errors that are of kinds kept out of training
LONGEST = 200  # characters of a text
# As byte-level BPE splits a text before it merges: a word takes the space before it along.
_WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)\b| ?[^\W\d_]+|\d| ?[^\s\w]+|\s+(?!\S)|\s+|\w")


def words(text: str) -> Words:
    """Joined they are the text."""
    return _WORDS.findall(text)


def made_pairs(
    texts: Sequence[str], count: int, seed: int, seen: Damage, unseen: Damage | None = None
) -> list[Pair]:
    """`count` different texts, a fixed choice for a seed: UNTOUCHED of them as they are, the others with an error by
    `seen`, or UNSEEN of these by `unseen` if it is given. Where an error finds no place, the text stays as it is.

    Raises RequestError when there are fewer different texts of 3 words and LONGEST characters at most.
    """
    rng = Random(f"pairs {seed}")
    fit = _fit(texts)
    if len(fit) < count:
        raise RequestError(
            f"there are {len(fit)} texts to proofread, not {count}: ask for fewer with --limit"
        )
    return [_pair(text, rng, seen, unseen) for text in rng.sample(fit, count)]


def _fit(texts: Sequence[str]) -> list[str]:
    """Different texts, neither too long nor too short."""
    return [t for t in dict.fromkeys(texts) if len(t) <= LONGEST and len(t.split()) >= 3]


def _pair(text: str, rng: Random, seen: Damage, unseen: Damage | None) -> Pair:
    if rng.random() < UNTOUCHED:
        return Pair(text, text)
    damage = unseen if unseen is not None and rng.random() < UNSEEN else seen
    made = damage(words(text), rng)
    return Pair(text, text) if made is None else Pair(text, "".join(made[0]), made[1])


def turns(documents: Sequence[Any], tokenizer: Tokenizer) -> Iterator[str]:
    """What is said in prepared documents (int64 token ids each): the text between special tokens."""
    special = set(tokenizer.special_ids.values())
    for document in documents:
        said: list[int] = []
        for token in [*document.tolist(), None]:
            if token is not None and token not in special:
                said.append(token)
            elif said:
                yield tokenizer.decode(said).strip()
                said = []


def pairs_of(
    folder: Path, tokenizer: Tokenizer, limit: int | None, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """Validation and test pairs: a folder's proofread_valid.jsonl and proofread_test.jsonl, or made of the valid and
    test splits of a prepared folder, as many of each as `limit` (400) says.

    Raises RequestError where there is neither.
    """
    if (folder / VALID).exists() or (folder / TEST).exists():
        return load_pairs(folder / VALID), load_pairs(folder / TEST)
    from redraft.training.damage import UNSEEN as KEPT_OUT
    from redraft.training.damage import damage

    def kept_out(text: Words, rng: Random) -> tuple[Words, str] | None:
        return damage(text, rng, only=KEPT_OUT)

    made = [
        made_pairs(split_texts(folder, split, tokenizer), limit or 400, seed, damage, unseen)
        for split, unseen in (("valid", None), ("test", kept_out))
    ]
    return made[0], made[1]


def tuning_pairs(folder: Path, tokenizer: Tokenizer, most: int, seed: int) -> list[Pair]:
    """`most` texts of the valid split of a prepared folder, or all there are, half of them with an error of the kinds
    that are trained on."""
    from redraft.training.damage import damage

    texts = split_texts(folder, "valid", tokenizer)
    return made_pairs(texts, min(most, len(_fit(texts))), seed, damage)


def split_texts(folder: Path, split: str, tokenizer: Tokenizer) -> list[str]:
    """All turns of a split of a prepared folder."""
    from redraft.training.data import Corpus

    corpus = Corpus(folder, split)
    return list(turns([corpus[i] for i in range(len(corpus))], tokenizer))
