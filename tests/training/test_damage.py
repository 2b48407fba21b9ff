"""Each kind of error makes one error of its kind, and only where the text offers a place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.training import damage_words
from redraft.training.damage import KINDS, UNSEEN, WEIGHTS, damage
from redraft.training.edits import Splitter
from redraft.training.tokenizer import load_tokenizer

TEXT = (
    *("<|user|>", "I", "'d", " like", " to", " find", " a", " nice", " restaurant", ",", " please", "."),
    *(" Do", " they", " have", " live", " music", " there", "?", "<|assistant|>", "It", " is", " for", " 3"),
    *(" people", " at", " Sino", " in", " San", " Jose", "."),
)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_makes_an_error_and_keeps_roles(name: str) -> None:
    made = [KINDS[name](list(TEXT), Random(seed)) for seed in range(40)]
    texts = {"".join(m) for m in made if m is not None}
    assert texts - {"".join(TEXT)}
    for words in filter(None, made):
        assert [w for w in words if w.startswith("<|")] == ["<|user|>", "<|assistant|>"]
        assert "" not in words
        kept = Counter(TEXT) & Counter(words)
        assert kept.total() >= len(TEXT) - 3


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_its_place_or_none(name: str) -> None:
    assert KINDS[name]([], Random(0)) is None
    assert KINDS[name](["<|user|>"], Random(0)) is None


def test_kinds_left_for_evaluation_are_drawn_only_when_asked() -> None:
    rng = Random(0)
    drawn = Counter(made[1] for _ in range(3000) if (made := damage(TEXT, rng)))
    assert set(drawn) == set(KINDS) - set(UNSEEN)
    assert {m[1] for _ in range(200) if (m := damage(TEXT, rng, only=UNSEEN))} == set(UNSEEN)
    assert drawn["word_dropped"] > drawn["all_capitals"]
    assert all(w > 0 for w in WEIGHTS.values())


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=6), max_size=8), st.integers(0, 10**6))
def test_any_words_do(words: list[str], seed: int) -> None:
    made = damage(words, Random(seed))
    assert made == damage(words, Random(seed))
    if made is not None:
        assert "".join(made[0]) != "".join(words)


def test_damage_to_the_words_leaves_the_tokens_of_the_text(prepared: Path) -> None:
    """Words encoded one by one are the text encoded at once, damaged or not."""
    splitter = Splitter(load_tokenizer(prepared))
    words = [w for w in TEXT if not w.startswith("<|")]
    rng = Random(1)
    for _ in range(300):
        made = damage(words, rng)
        assert made is not None
        at_once = splitter.tokenizer.encode("".join(made[0]), add_special_tokens=False).ids
        assert [t for w in splitter.encode(made[0]) for t in w] == at_once


def test_tables_hold_no_word_for_itself() -> None:
    for name in (
        "MISSPELLINGS",
        "HOMOPHONES",
        "AGREEMENT",
        "TENSES",
        "ARTICLES",
        "PREPOSITIONS",
        "PRONOUNS",
        "NUMBERS",
    ):
        for word, others in getattr(damage_words, name).items():
            assert others, (name, word)
            assert word not in others, (name, word)
