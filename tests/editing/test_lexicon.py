"""The words of training texts: what they are slips of, how common they are, and their file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from redraft.editing.lexicon import OFTEN, WORDS_FILE, Lexicon, counted, save
from redraft.errors import RequestError

COUNTS = {"approve": 40, "and": 900, "this": 700, "don't": 60, "book": 300, "look": 500, "rare": 2, "bok": 4}


def test_what_a_rare_word_may_be_a_slip_of() -> None:
    lexicon = Lexicon(counts=COUNTS)
    assert lexicon.respelt("aprove") == ["approve"]
    assert lexicon.respelt("Appprove") == ["Approve"]
    assert lexicon.respelt("APRPOVE") == ["APPROVE"]
    assert lexicon.respelt("cook") == ["look", "book"]
    assert lexicon.respelt("bok") == ["book"]  # known, but rare
    assert lexicon.respelt("andthis") == ["and this"]
    assert lexicon.respelt("rarer") == []  # rare is too rare to be what was meant
    assert lexicon.respelt("look") == []
    assert lexicon.respelt("x") == []
    assert lexicon.respelt("naïve") == []


def test_a_text_is_as_common_as_its_rarest_word() -> None:
    lexicon = Lexicon(counts=COUNTS)
    assert lexicon.commonness(" Approve, and") == pytest.approx(math.log(41))
    assert lexicon.commonness("and ands") == 0.0
    assert lexicon.commonness("Don't") == pytest.approx(math.log(61))
    assert lexicon.commonness("this") == lexicon.commonness("42.") == OFTEN
    assert Lexicon().commonness("ands") == OFTEN
    assert Lexicon().respelt("ands") == []


def test_words_are_counted_kept_and_read_again(tmp_path: Path) -> None:
    counts = counted(["I don't. I do", "Do it, í know; I", "don't"])
    assert counts == {"do": 2, "don't": 2, "i": 3}
    assert Lexicon.of(tmp_path).counts == {}
    save(tmp_path, counts)
    assert (tmp_path / WORDS_FILE).read_text() == "2\tdo\n2\tdon't\n3\ti\n"
    assert Lexicon.of(tmp_path).counts == counts


@pytest.mark.parametrize("content", ["do 2\n", "two\tdo\n", "2\tdo\t3\n"])
def test_a_file_that_is_no_word_list_is_told_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / WORDS_FILE).write_text(content)
    with pytest.raises(RequestError, match="must hold a count, a tab and a word on each line") as caught:
        _ = Lexicon.of(tmp_path).counts
    assert "\n" not in str(caught.value)
