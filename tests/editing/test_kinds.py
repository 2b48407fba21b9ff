"""Kinds of slips, on pairs of texts that differ as they say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.editing.kinds import Hunk, differing, hunk_between, one_slip, slip_of


@pytest.mark.parametrize(
    ("old", "new", "hunk", "slip"),
    [
        ("I wnat to go.", "I want to go.", ("wnat", "want"), "letter"),
        ("I wat to go.", "I want to go.", ("wat", "want"), "letter"),
        ("I wannt to go.", "I want to go.", ("wannt", "want"), "letter"),
        ("I wamt to go.", "I want to go.", ("wamt", "want"), "letter"),
        ("We recieve it", "We receive it", ("recieve", "receive"), "letter"),
        ("reservasion", "reservation", ("reservasion", "reservation"), "letter"),
        ("teh definately", "teh definitely", ("definately", "definitely"), "letter"),
        ("It is their car", "It is there car", ("their", "there"), "letters"),
        ("at the the park", "at the park", ("the ", ""), "repeat"),
        ("you're from from 4", "you're from 4", ("from ", ""), "repeat"),
        ("for your thank help", "thank for your help", ("for your thank", "thank for your"), None),
        ("What time at is it", "What at time is it", ("time at", "at time"), "swap"),
        ("thank you for. you", "thank for you. you", ("you for", "for you"), "swap"),
        ("Is ata park?", "Is at a park?", ("ata", "at a"), "space"),
        ("Is at a park?", "Is ata park?", ("at a", "ata"), "space_less"),
        ("the park .", "the park.", (" ", ""), "space_less"),
        ("the park", "the park.", ("", "."), "mark"),
        ("the park..", "the park.", (".", ""), "mark_less"),
        ("dont go", "don't go", ("dont", "don't"), "mark"),
        ("i go", "I go", ("i", "I"), "capital"),
        ("in HOmes", "in Homes", ("HOmes", "Homes"), "small"),
        ("go the park", "go to the park", ("the", "to the"), None),
        ("go to to the park", "go park", ("to to the ", ""), None),
        ("go into the park", "go the park", ("into ", ""), None),
        ("a big park", "a small park", ("big", "small"), None),
        ("it is here", "it are here", ("is", "are"), None),
    ],
)
def test_slips(old: str, new: str, hunk: tuple[str, str], slip: str | None) -> None:
    found = hunk_between(old, new)
    assert (found.before, found.after) == hunk
    assert slip_of(found) == slip


def test_parts_that_differ() -> None:
    assert differing("abcde", "abXde") == ("c", "X")
    assert differing("aa", "aaa") == ("", "a")
    assert differing("", "b") == ("", "b")
    assert [one_slip(*pair) for pair in (("a", "b"), ("", "b"), ("a", ""), ("ab", "ba"))] == [True] * 4
    assert [one_slip(*pair) for pair in (("", ""), ("ab", "cd"), ("ab", ""), ("aba", "bab"))] == [False] * 4


TEXT = st.text(st.sampled_from("ab '.\n"), max_size=12)


@settings(max_examples=100, deadline=None)
@given(TEXT, TEXT)
def test_a_hunk_is_where_texts_differ(old: str, new: str) -> None:
    found = hunk_between(old, new)
    assert found.left + found.before + found.right == old
    assert found.left + found.after + found.right == new
    assert isinstance(found, Hunk)
