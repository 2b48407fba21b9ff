"""Instructions and what they make of a text, from templates: (instruction, before, after).

Each family knows several wordings. The last ones of each are kept for evaluation: `held_out=True` uses them alone,
training never does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from redraft.training import damage as errors
from redraft.training import instruction_words as tables


@dataclass(frozen=True)
class Instructed:
    """An instruction, the text before it and after it; family: which template made it."""

    instruction: str
    before: str
    after: str
    family: str


# What a family makes of a text: (name in WORDINGS, values for its wording, before, after).
Made = tuple[str, dict[str, str], str, str]
Family = Callable[[str, Random], Made | None]
FAMILIES: dict[str, Family] = {}
WEIGHTS: dict[str, float] = {}


def family(weight: float, name: str | None = None) -> Callable[[Family], Family]:
    """Registers a family under its function's name, or under the name given; weight: how often it is drawn."""

    def register(function: Family) -> Family:
        FAMILIES[name or function.__name__] = function
        WEIGHTS[name or function.__name__] = weight
        return function

    return register


def instruct(text: str, rng: Random, held_out: bool = False, only: str | None = None) -> Instructed | None:
    """An instruction that `text` (one to three sentences) offers a place for, or None.

    held_out: in wordings that training never uses; only: the one family to use.
    """
    names = list(FAMILIES) if only is None else [only]
    for name in rng.choices(names, [WEIGHTS[n] for n in names], k=6):
        made = FAMILIES[name](text, rng)
        if made is not None:
            wording, values, before, after = made
            said = rng.choice(wordings(wording, held_out)).format(**values)
            return Instructed(said, before, after, name)
    return None


def wordings(name: str, held_out: bool) -> Sequence[str]:
    trained, kept = tables.WORDINGS[name]
    return kept if held_out else trained


# -- change X to Y ----------------------------------------------------------------------------------------------


def _whole(word: str) -> str:
    return rf"(?<![\w'])(?:{word})(?![\w'])"


_DETAILS: dict[str, tuple[re.Pattern[str], Callable[[Random], str]]] = {
    "day": (re.compile(_whole("|".join(tables.DAYS))), lambda rng: rng.choice(tables.DAYS)),
    "month": (re.compile(_whole("|".join(tables.MONTHS))), lambda rng: rng.choice(tables.MONTHS)),
    "time": (
        re.compile(_whole(r"\d{1,2}(?::\d\d)? ?(?:am|pm|AM|PM|o'clock)|\d{1,2}:\d\d")),
        lambda rng: f"{rng.randint(1, 12)}{rng.choice(['', ':30', ':15', ':45'])} {rng.choice(['am', 'pm'])}",
    ),
    "city": (re.compile(_whole("|".join(tables.CITIES))), lambda rng: rng.choice(tables.CITIES)),
    "name": (re.compile(_whole("|".join(tables.NAMES))), lambda rng: rng.choice(tables.NAMES)),
    "food": (re.compile(_whole("|".join(tables.FOODS))), lambda rng: rng.choice(tables.FOODS)),
    "price": (re.compile(r"\$\d+(?:\.\d\d)?(?!\d)"), lambda rng: f"${rng.randint(5, 900)}"),
    "number": (
        re.compile(
            _whole(rf"\d|{'|'.join(tables.NUMBERS)}") + r"(?= (?:people|persons|person|tickets|seats|bags))"
        ),
        lambda rng: rng.choice([*"23456789", *tables.NUMBERS[1:]]),
    ),
}


def _details(text: str) -> list[tuple[str, str]]:
    return [(name, found[0]) for name, (pattern, _) in _DETAILS.items() for found in pattern.finditer(text)]


@family(4.0)
def detail(text: str, rng: Random) -> Made | None:
    """A day, time, city, name, number of people … for another; sometimes only the new one is named."""
    found = _details(text)
    if not found:
        return None
    name, old = rng.choice(found)
    new = _DETAILS[name][1](rng)
    if new == old or new in text:
        return None
    after = re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", lambda _: new, text)
    unnamed = f"detail_{name}"
    alone = len({o for n, o in found if n == name}) == 1 and unnamed in tables.WORDINGS
    return unnamed if alone and rng.random() < 0.4 else "change", {"x": old, "y": new}, text, after


@family(2.5)
def word(text: str, rng: Random) -> Made | None:
    """Any word for any other."""
    inside = re.findall(r"(?<![\w'])[A-Za-z]{3,}(?![\w'])", text)
    if not inside:
        return None
    old, new = rng.choice(inside), rng.choice(tables.WORDS)
    if old[0].isupper():
        new = new.capitalize()
    if old.lower() == new.lower():
        return None
    after = re.sub(rf"(?<![\w']){old}(?![\w'])", new, text)
    return "change", {"x": old, "y": new}, text, after


@family(1.5)
def remove_word(text: str, rng: Random) -> Made | None:
    inside = re.findall(r" ([a-z]{3,})(?= [a-z])", text)
    if not inside:
        return None
    old = rng.choice(inside)
    return "remove", {"x": old}, text, re.sub(rf" {old}(?![\w'])", "", text)


# -- manner -----------------------------------------------------------------------------------------------------


def _rewrite(text: str, rules: Sequence[tuple[str, str]]) -> str:
    for old, new in rules:
        text = re.sub(_whole(old), new, text)
    return text


def _by_rules(name: str, rules: Sequence[tuple[str, str]]) -> Family:
    def make(text: str, rng: Random) -> Made | None:
        after = _rewrite(text, rules)
        return None if after == text else (name, {}, text, after[:1].upper() + after[1:])

    return make


for _name, _weight, _rules in (
    ("polite", 2.0, tables.POLITE),
    ("casual", 1.5, tables.CASUAL),
    ("formal", 1.5, tables.FORMAL),
    ("past", 2.0, tables.PAST),
    ("present", 1.0, tables.PRESENT),
):
    family(_weight, _name)(_by_rules(_name, _rules))


@family(0.8)
def upper(text: str, rng: Random) -> Made | None:
    return ("upper", {}, text, text.upper()) if len(text) < 60 else None


@family(0.8)
def lower(text: str, rng: Random) -> Made | None:
    return "lower", {}, text, text.lower()


@family(0.6)
def please(text: str, rng: Random) -> Made | None:
    """A please at the end."""
    if not re.search(r"[a-z][.?]$", text) or "please" in text.lower():
        return None
    return "please", {}, text, f"{text[:-1]}, please{text[-1]}"


# -- sentences --------------------------------------------------------------------------------------------------


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[a-z][.?!]) +(?=[A-Z])", text)


@family(1.0)
def remove_sentence(text: str, rng: Random) -> Made | None:
    parts = sentences(text)
    if len(parts) < 2:
        return None
    first = rng.random() < 0.5
    return (
        ("first_off", {}, text, " ".join(parts[1:]))
        if first
        else ("last_off", {}, text, " ".join(parts[:-1]))
    )


def _joined(text: str) -> str | None:
    """Two statements as one sentence."""
    parts = sentences(text)
    if len(parts) != 2 or not all(p.endswith(".") for p in parts):
        return None
    second = parts[1] if re.match(r"I\b|[A-Z]\w* [A-Z]", parts[1]) else parts[1][0].lower() + parts[1][1:]
    return f"{parts[0][:-1]}, and {second}"


@family(1.5)
def split(text: str, rng: Random) -> Made | None:
    joined = _joined(text)
    return None if joined is None else ("split", {}, joined, text)


@family(1.0)
def join(text: str, rng: Random) -> Made | None:
    joined = _joined(text)
    return None if joined is None else ("join", {}, text, joined)


# -- mistakes ---------------------------------------------------------------------------------------------------

_PIECES = re.compile(r"'(?:[sdmt]|ll|ve|re)\b|[^\r\n\w]?[^\W\d_]+|\d| ?[^\s\w]+[\r\n]*|\s+|\w")


@family(4.0)
def mistakes(text: str, rng: Random) -> Made | None:
    """One to three errors to correct; now and then there is none."""
    words = _PIECES.findall(text)
    if "".join(words) != text:
        return None
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 3))):
        made = errors.damage(words, rng)
        words = made[0] if made else words
    return "mistakes", {}, "".join(words), text


# -- code -------------------------------------------------------------------------------------------------------


def _code(rng: Random) -> tuple[str, list[str]]:
    """A line or two of code, and the names in it."""
    names = rng.sample(tables.IDENTIFIERS, 3)
    a, b, c = names
    line = rng.choice(tables.CODE).format(a=a, b=b, c=c, n=rng.randint(1, 20))
    return line, [n for n in names if re.search(rf"\b{n}\b", line)]


@family(1.5)
def rename(text: str, rng: Random) -> Made | None:
    """A name in code, wherever it stands. The text given is not used."""
    line, names = _code(rng)
    old = rng.choice(names)
    new = rng.choice([n for n in tables.IDENTIFIERS if n not in names])
    return "rename", {"x": old, "y": new}, line, re.sub(rf"\b{old}\b", new, line)


@family(1.0)
def brackets(text: str, rng: Random) -> Made | None:
    """A bracket missing, doubled or of the wrong kind. The text given is not used."""
    line, _ = _code(rng)
    places = [i for i, c in enumerate(line) if c in "()[]{}"]
    if not places:
        return None
    i = rng.choice(places)
    how = rng.choice(("", line[i] * 2, rng.choice([c for c in "()[]{}" if c != line[i]])))
    return "brackets", {}, line[:i] + how + line[i + 1 :], line
