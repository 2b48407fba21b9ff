"""Held-out texts with errors made in them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.api import Model
from redraft.errors import RequestError
from redraft.evaluation.damaged import Words, made_pairs, pairs_of, turns, words
from redraft.evaluation.editors import Pair
from redraft.evaluation.proofread import Triple, count
from redraft.training.data import Corpus

TEXTS = [f"Table {n} is free now." for n in range(400)]


def first_dropped(text: Words, rng: Random) -> tuple[Words, str] | None:
    return text[1:], "first_dropped"


def last_doubled(text: Words, rng: Random) -> tuple[Words, str] | None:
    return [*text, text[-1]], "last_doubled"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_words_are_the_text(text: str) -> None:
    assert "".join(words(text)) == text


def test_words_take_their_space_along() -> None:
    assert words("I'd like  2 more, please.") == [
        "I",
        "'d",
        " like",
        " ",
        " ",
        "2",
        " more",
        ",",
        " please",
        ".",
    ]


def test_half_of_the_texts_have_one_error() -> None:
    pairs = made_pairs(TEXTS, 300, 1, first_dropped, last_doubled)
    assert pairs == made_pairs(TEXTS, 300, 1, first_dropped, last_doubled)
    assert pairs != made_pairs(TEXTS, 300, 2, first_dropped, last_doubled)
    assert len({p.original for p in pairs}) == 300
    kinds = [p.kind for p in pairs]
    assert 120 < kinds.count("") < 180
    assert 10 < kinds.count("last_doubled") < 60 < kinds.count("first_dropped")
    assert all((p.damaged == p.original) == (p.kind == "") for p in pairs)
    assert {count(Triple(p.original, p.damaged, p.original)).errors for p in pairs} == {0, 1}


def test_texts_without_a_place_stay_whole() -> None:
    assert {p.kind for p in made_pairs(TEXTS, 20, 0, lambda text, rng: None)} == {""}
    with pytest.raises(RequestError, match="there are 2 texts to proofread, not 3"):
        made_pairs(["one two three", "one two three", "a b c", "short", "long " * 90], 3, 0, first_dropped)


def test_what_was_said_in_prepared_documents(model: Model, data: Path) -> None:
    corpus = Corpus(data, "valid")
    said = list(turns([corpus[i] for i in range(len(corpus))], model.tokenizer))
    assert said[:3] == ["Find me a café in Zürich.", "Sure: 谢谢 is open.", "Book it!"]
    assert len(said) == 7


def test_pairs_from_files_or_from_a_prepared_folder(model: Model, data: Path, tmp_path: Path) -> None:
    for name in ("valid", "test"):
        told = {"original": name, "damaged": "x", "kind": "typo"}
        (tmp_path / f"proofread_{name}.jsonl").write_text(json.dumps(told) + "\n")
    assert pairs_of(tmp_path, model.tokenizer, None, 0) == (
        [Pair("valid", "x", "typo")],
        [Pair("test", "x", "typo")],
    )
    (tmp_path / "proofread_test.jsonl").unlink()
    with pytest.raises(RequestError, match="proofread_test.jsonl can't be read"):
        pairs_of(tmp_path, model.tokenizer, None, 0)
    pytest.importorskip("redraft.training.damage", reason="what makes the errors")
    valid, test = pairs_of(data, model.tokenizer, 4, 0)
    assert len(valid) == len(test) == 4
