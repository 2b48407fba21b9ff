"""Errors made in right text, one kind a function, so that a model can learn to find and mend them.

A text is a list of words as the tokenizer splits it ("I", "'m", " hungry", "."): joined they are the text. A kind
takes the words and a random generator, and returns other words with one error of its kind, or None where the text
offers no place for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random

from redraft.training import damage_words as tables

Words = list[str]
Kind = Callable[[Words, Random], Words | None]

WORD = re.compile(r" ?[A-Za-z]+")
END = re.compile(r" ?[.!?]+[\r\n]*")
ROLE = re.compile(r"<\|\w+\|>")
KINDS: dict[str, Kind] = {}
WEIGHTS: dict[str, float] = {}
# Kept out of training, so that evaluation can ask for errors of kinds never seen.
UNSEEN = ("vowel_changed", "word_moved", "pronoun")


def kind(weight: float = 1.0) -> Callable[[Kind], Kind]:
    """Registers a kind under its function's name; weight: how often it is drawn."""

    def register(function: Kind) -> Kind:
        KINDS[function.__name__] = function
        WEIGHTS[function.__name__] = weight
        return function

    return register


def damage(
    words: Sequence[str], rng: Random, only: Collection[str] | None = None
) -> tuple[Words, str] | None:
    """The words with one error, and its kind; None where no kind that was tried found a place.

    only: kinds to draw from; all but UNSEEN by default.
    """
    names = [n for n in KINDS if (n not in UNSEEN if only is None else n in only)]
    for name in rng.choices(names, [WEIGHTS[n] for n in names], k=6):
        made = KINDS[name](list(words), rng)
        if made is not None and "".join(made) != "".join(words):
            return made, name
    return None


def starts_sentence(words: Sequence[str], i: int) -> bool:
    return i == 0 or bool(END.fullmatch(words[i - 1]) or ROLE.fullmatch(words[i - 1]))


# -- letters ----------------------------------------------------------------------------------------------------


def _in_a_word(words: Words, rng: Random, change: Callable[[str, Random], str | None]) -> Words | None:
    """Applies `change` to the letters of one word of three letters or more."""
    places = [i for i, w in enumerate(words) if WORD.fullmatch(w) and len(w.strip()) >= 3]
    for i in rng.sample(places, min(3, len(places))):
        space, letters = words[i][: -len(words[i].strip())], words[i].strip()
        made = change(letters, rng)
        if made is not None and made != letters:
            words[i] = space + made
            return words
    return None


@kind(1.5)
def key_beside(words: Words, rng: Random) -> Words | None:
    """A letter from a key beside the right one."""

    def change(letters: str, rng: Random) -> str:
        i = rng.randrange(len(letters))
        near = rng.choice(tables.KEYS_BESIDE[letters[i].lower()])
        return letters[:i] + (near.upper() if letters[i].isupper() else near) + letters[i + 1 :]

    return _in_a_word(words, rng, change)


@kind(1.5)
def letter_dropped(words: Words, rng: Random) -> Words | None:
    def change(letters: str, rng: Random) -> str:
        i = rng.randrange(1, len(letters))
        return letters[:i] + letters[i + 1 :]

    return _in_a_word(words, rng, change)


@kind()
def letter_doubled(words: Words, rng: Random) -> Words | None:
    def change(letters: str, rng: Random) -> str:
        i = rng.randrange(1, len(letters))
        return letters[:i] + letters[i] + letters[i:]

    return _in_a_word(words, rng, change)


@kind(1.5)
def letters_swapped(words: Words, rng: Random) -> Words | None:
    def change(letters: str, rng: Random) -> str:
        i = rng.randrange(1, len(letters) - 1)
        return letters[:i] + letters[i + 1] + letters[i] + letters[i + 2 :]

    return _in_a_word(words, rng, change)


@kind()
def letter_inserted(words: Words, rng: Random) -> Words | None:
    """A key beside the right one, struck together with it."""

    def change(letters: str, rng: Random) -> str:
        i = rng.randrange(1, len(letters))
        return letters[:i] + rng.choice(tables.KEYS_BESIDE[letters[i].lower()]) + letters[i:]

    return _in_a_word(words, rng, change)


@kind()
def vowel_changed(words: Words, rng: Random) -> Words | None:
    def change(letters: str, rng: Random) -> str | None:
        places = [i for i, c in enumerate(letters) if i and c in "aeiou"]
        if not places:
            return None
        i = rng.choice(places)
        return letters[:i] + rng.choice("aeiou") + letters[i + 1 :]

    return _in_a_word(words, rng, change)


@kind(1.5)
def phonetic(words: Words, rng: Random) -> Words | None:
    """Spelt as it sounds: ie for ei, f for ph, one consonant for two."""

    def change(letters: str, rng: Random) -> str | None:
        rules = [(a, b) for a, b in tables.SOUNDS if a in letters[1:]]
        if not rules:
            return None
        a, b = rng.choice(rules)
        return letters[0] + letters[1:].replace(a, b, 1)

    return _in_a_word(words, rng, change)


# -- words ------------------------------------------------------------------------------------------------------


def _like(word: str, other: str) -> str:
    """`other` with the space and the capital of `word`."""
    space = word[: len(word) - len(word.lstrip())]
    return space + (
        other[:1].upper() + other[1:] if word.strip()[:1].isupper() and word.strip() != "I" else other
    )


def _exchange(words: Words, rng: Random, table: Mapping[str, Sequence[str]]) -> Words | None:
    """One word of the table for one it is taken for."""
    places = [i for i, w in enumerate(words) if w.strip().lower() in table]
    if not places:
        return None
    i = rng.choice(places)
    words[i] = _like(words[i], rng.choice(table[words[i].strip().lower()]))
    return words


@kind(1.5)
def misspelling(words: Words, rng: Random) -> Words | None:
    return _exchange(words, rng, tables.MISSPELLINGS)


@kind(1.5)
def homophone(words: Words, rng: Random) -> Words | None:
    """their for there; you're for your and the other way round."""
    pairs = [
        i
        for i in range(len(words) - 1)
        if (words[i].strip().lower(), words[i + 1].lower()) in tables.CONTRACTED_HOMOPHONES
    ]
    if pairs and rng.random() < 0.5:
        i = rng.choice(pairs)
        said = tables.CONTRACTED_HOMOPHONES[words[i].strip().lower(), words[i + 1].lower()]
        return [*words[:i], _like(words[i], said), *words[i + 2 :]]
    return _exchange(words, rng, tables.HOMOPHONES)


@kind(2.0)
def word_dropped(words: Words, rng: Random) -> Words | None:
    """A little word that the rest asks for: articles, prepositions, pronouns, auxiliaries."""
    places = [
        i for i, w in enumerate(words) if w.strip().lower() in tables.LITTLE and not starts_sentence(words, i)
    ]
    if not places:
        return None
    i = rng.choice(places)
    return words[:i] + words[i + 1 :]


@kind(1.5)
def word_doubled(words: Words, rng: Random) -> Words | None:
    places = [i for i, w in enumerate(words) if WORD.fullmatch(w) and w.startswith(" ")]
    if not places:
        return None
    i = rng.choice([p for p in places if words[p].strip().lower() in tables.LITTLE] or places)
    return [*words[: i + 1], *words[i:]]


def _neighbours(words: Words, gap: int) -> list[int]:
    return [
        i
        for i in range(len(words) - gap)
        if all(WORD.fullmatch(w) and w.startswith(" ") for w in words[i : i + gap + 1])
    ]


@kind()
def words_swapped(words: Words, rng: Random) -> Words | None:
    places = _neighbours(words, 1)
    if not places:
        return None
    i = rng.choice(places)
    words[i], words[i + 1] = words[i + 1], words[i]
    return words


@kind()
def word_moved(words: Words, rng: Random) -> Words | None:
    """A word two places too late."""
    places = _neighbours(words, 2)
    if not places:
        return None
    i = rng.choice(places)
    words[i : i + 3] = [words[i + 1], words[i + 2], words[i]]
    return words


@kind()
def words_joined(words: Words, rng: Random) -> Words | None:
    places = [i for i in _neighbours(words, 1) if len(words[i]) + len(words[i + 1]) <= 12]
    if not places:
        return None
    i = rng.choice(places)
    words[i : i + 2] = [words[i] + words[i + 1].strip()]
    return words


@kind(0.5)
def word_split(words: Words, rng: Random) -> Words | None:
    places = [i for i, w in enumerate(words) if WORD.fullmatch(w) and len(w.strip()) >= 5]
    if not places:
        return None
    i = rng.choice(places)
    cut = rng.randrange(len(words[i]) - len(words[i].strip()) + 2, len(words[i]) - 1)
    return [*words[:i], words[i][:cut], " " + words[i][cut:], *words[i + 1 :]]


@kind(0.5)
def word_too_many(words: Words, rng: Random) -> Words | None:
    """A little word where none belongs."""
    places = [i for i, w in enumerate(words) if WORD.fullmatch(w) and w.startswith(" ")]
    if not places:
        return None
    i = rng.choice(places)
    return [*words[:i], " " + rng.choice(tables.SURPLUS), *words[i:]]


# -- case and punctuation ---------------------------------------------------------------------------------------


def _recase(words: Words, rng: Random, places: list[int], change: Callable[[str], str]) -> Words | None:
    if not places:
        return None
    i = rng.choice(places)
    words[i] = change(words[i])
    return words


def _first_capital(word: str) -> str:
    return word[: len(word) - len(word.lstrip())] + word.strip().capitalize()


@kind()
def capital_missing(words: Words, rng: Random) -> Words | None:
    """A sentence's first word, a name or I in small letters."""
    places = [i for i, w in enumerate(words) if WORD.fullmatch(w) and w.strip()[0].isupper()]
    return _recase(words, rng, places, str.lower)


@kind(0.7)
def capital_too_many(words: Words, rng: Random) -> Words | None:
    places = [i for i, w in enumerate(words) if WORD.fullmatch(w) and w.startswith(" ") and w.islower()]
    return _recase(words, rng, places, _first_capital)


@kind(0.4)
def all_capitals(words: Words, rng: Random) -> Words | None:
    places = [i for i, w in enumerate(words) if WORD.fullmatch(w) and len(w.strip()) > 2]
    return _recase(words, rng, places, str.upper)


@kind()
def end_mark_wrong(words: Words, rng: Random) -> Words | None:
    """A question mark for a full stop, or the other way round."""
    places = [i for i, w in enumerate(words) if w in (".", "?")]
    return _recase(words, rng, places, lambda w: "?" if w == "." else ".")


@kind()
def mark_missing(words: Words, rng: Random) -> Words | None:
    """A comma, full stop or question mark left out."""
    places = [i for i, w in enumerate(words) if i and w in (".", "?", ",", "!")]
    if not places:
        return None
    i = rng.choice(places)
    return words[:i] + words[i + 1 :]


@kind(0.5)
def mark_doubled(words: Words, rng: Random) -> Words | None:
    places = [i for i, w in enumerate(words) if w in (".", "?", ",")]
    return _recase(words, rng, places, lambda w: w + w)


@kind(0.5)
def space_before_mark(words: Words, rng: Random) -> Words | None:
    places = [i for i, w in enumerate(words) if w in (".", "?", ",", "!")]
    return _recase(words, rng, places, lambda w: " " + w)


@kind(0.7)
def apostrophe_missing(words: Words, rng: Random) -> Words | None:
    """dont for don't, Im for I'm."""
    places = [
        i
        for i in range(len(words) - 1)
        if WORD.fullmatch(words[i]) and re.fullmatch(r"'(?:t|m|d|s|ll|ve|re)", words[i + 1])
    ]
    if not places:
        return None
    i = rng.choice(places)
    words[i : i + 2] = [words[i] + words[i + 1][1:]]
    return words


# -- grammar ----------------------------------------------------------------------------------------------------


@kind(1.5)
def agreement(words: Words, rng: Random) -> Words | None:
    """is for are, has for have, wants for want."""
    return _exchange(words, rng, tables.AGREEMENT)


@kind(1.5)
def tense(words: Words, rng: Random) -> Words | None:
    """found for find, booked for book, going for go."""
    return _exchange(words, rng, tables.TENSES)


@kind(1.2)
def article(words: Words, rng: Random) -> Words | None:
    return _exchange(words, rng, tables.ARTICLES)


@kind(1.2)
def preposition(words: Words, rng: Random) -> Words | None:
    return _exchange(words, rng, tables.PREPOSITIONS)


@kind()
def pronoun(words: Words, rng: Random) -> Words | None:
    return _exchange(words, rng, tables.PRONOUNS)


@kind()
def number(words: Words, rng: Random) -> Words | None:
    """One for many and the other way round: restaurants, persons."""
    return _exchange(words, rng, tables.NUMBERS)
