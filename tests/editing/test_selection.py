"""Rewriting a selection: what is opened, what stands, how it grows, and that nothing else changes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.api import Model
from redraft.engine import Commit
from redraft.errors import RequestError
from tests.editing.models import MASK, scripted, typist


def test_a_selected_word_is_written_anew() -> None:
    text = "Where do you want to fly to Zürich today?"
    start = text.index(" today")
    model, backend = scripted(typist(" home"))
    done = model.edit(text, spans=[(start, start + 6)], seed=2)
    assert done.text == text.replace(" today", " home")
    (hunk,) = done.hunks
    assert (text[hunk.start : hunk.end], hunk.after) == (hunk.before, hunk.after)
    assert done.text == text[: hunk.start] + hunk.after + text[hunk.end :]
    assert 0.9 < hunk.confidence < 1
    assert done.nfe == len(backend.seen)
    assert done.time_to_first_hunk is not None
    assert "-" + text in done.diff()
    assert done.to_json()["hunks"][0]["before"] == hunk.before


def test_a_selection_that_needs_more_room_gets_it_up_to_the_most() -> None:
    text, longer = "I want-xy!", "to fly to Zürich"
    model, _ = scripted(typist(longer))
    assert model.edit(text, spans=[(7, 9)]).text == f"I want-{longer}!"
    short = model.edit(text, spans=[(7, 9)], max_tokens=1).text
    assert short == "I want-to fly!"


def test_strength_is_the_share_that_is_opened_and_a_higher_one_opens_more_of_the_same() -> None:
    text = "qgz" * 10
    opened = []
    for strength in (0.01, 0.2, 0.5, 0.8, 1.0):
        model, _ = scripted(typist(""))
        done = model.edit(text, spans=[(0, 30)], strength=strength, seed=5)
        left = set()
        at = 0
        for hunk in done.hunks:
            assert hunk.after == ""
            left |= set(range(hunk.start, hunk.end))
            at = hunk.end
        assert at <= 30
        opened.append(left)
    assert [len(o) for o in opened] == [1, 6, 15, 24, 30]
    assert all(a <= b for a, b in pairwise(opened))


def test_an_empty_selection_is_a_place_to_insert() -> None:
    model, _ = scripted(typist(" want"))
    done = model.edit("I to fly", spans=[(1, 1)])
    assert done.text == "I want to fly"
    (hunk,) = done.hunks
    assert (hunk.start, hunk.end, hunk.before, hunk.after) == (1, 1, "", " want")
    assert scripted(typist("xy"))[0].edit("z", spans=[(0, 0)]).text == "xyz"


def test_several_spans_lines_and_matches() -> None:
    model, _ = scripted(typist("X"))
    assert model.edit("a-b-c", spans=[(4, 5), (0, 1)]).text == "X-b-X"
    assert model.edit("one\r\ntwo\r\nthree", lines=(2, 2)).text == "one\r\nX\r\nthree"
    assert model.edit("q1g22", regex=r"\d+").text == "qXgX"


def test_a_long_selection_goes_window_by_window() -> None:
    text = "before:" + "q" * 60 + "!"
    model, backend = scripted(typist("b"))
    done = model.edit(text, spans=[(7, 67)])
    assert done.text == "before:bbbb!"
    assert all(canvas.count(MASK) <= 16 + 8 + 1 for _, canvas in backend.seen)
    assert len(backend.seen) == 4


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


@settings(max_examples=30)
@given(TEXT, st.data(), st.floats(0.05, 1.0), st.integers(0, 10**6))
def test_nothing_outside_the_spans_changes(
    random_model: Model, text: str, data: st.DataObject, strength: float, seed: int
) -> None:
    ends = sorted(data.draw(st.sets(st.integers(0, len(text)), min_size=2, max_size=4)))
    spans = list(zip(ends[::2], ends[1::2], strict=False))
    done = random_model.edit(text, spans=spans, strength=strength, seed=seed)
    kept, at = [], 0
    for start, end in spans:
        kept.append(text[at:start])
        at = end
    kept.append(text[at:])
    rest = done.text
    assert rest.startswith(kept[0])
    assert rest.endswith(kept[-1])
    for piece in kept:
        assert piece in rest
        rest = rest[rest.index(piece) + len(piece) :]
    assert all(any(s <= h.start <= h.end <= e for s, e in spans) for h in done.hunks)
    assert done.text.encode().decode() == done.text


def test_the_same_seed_gives_the_same_edit_alone_or_beside_others(random_model: Model) -> None:
    texts = ["I want to fly.", "the table\nis booked", "🙂 Zürich"]
    options: dict[str, Any] = {"seed": 9, "temperature": 1.0, "spans": [(2, 7)]}
    alone = [random_model.edit(text, **options) for text in texts]
    streams = [random_model.edit_stream(text, **options) for text in texts]
    turn = list(streams)
    while turn:
        turn = [stream for stream in turn if next(stream, None) is not None]
    assert [(s.result.text, s.result.hunks, s.result.nfe) for s in streams] == [
        (a.text, a.hunks, a.nfe) for a in alone
    ]


def test_an_edit_left_early_keeps_what_was_done() -> None:
    model, _ = scripted(typist("X"))
    stream = model.edit_stream("a-b-c", spans=[(0, 1), (4, 5)])
    for event in stream:
        if isinstance(event, Commit):
            stream.close()
    assert stream.interrupted
    assert stream.result.text == "X-b-c"


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("", {}, "the text is empty"),
    ("abc", {"instruction": " \n"}, "the instruction is empty"),
    ("abc", {"instruction": "polite", "strength": 0.5}, "strength is for a selection"),
    ("abc", {"strength": 0.5}, "strength is for a selection"),
    ("abc", {"spans": [(0, 1)], "strength": 0.0}, "strength must be a number above 0"),
    ("abc", {"spans": [(0, 1)], "strength": 1.5}, "strength must be a number above 0"),
    ("abc", {"instruction": "polite", "spans": [(1, 1)]}, "the selection is empty"),
    ("abc", {"spans": [(0, 2), (1, 3)]}, "spans 0:2 and 1:3 overlap"),
    ("abc", {"spans": [(0, 4)]}, "span 0:4 is no part"),
    ("abc", {"lines": (2, 3)}, "lines 2:3 are no part"),
    ("abc", {"regex": "["}, "the regular expression '[' can't be read"),
    ("abc", {"spans": [(0, 1)], "max_tokens": 0}, "max_tokens must be a whole number"),
    ("abc", {"threshold": 2.0}, "edit_threshold must be a number"),
    ("abc", {"steps": 0}, "max_steps must be"),
    ("abc", {"instruction": "change " * 200}, "the instruction takes"),
    ("\ud800", {}, "the text isn't valid UTF-8"),
]


@pytest.mark.parametrize(("text", "options", "line"), WRONG, ids=[line[:24] for *_, line in WRONG])
def test_wrong_edits_are_refused_in_one_line(text: str, options: dict[str, Any], line: str) -> None:
    model, backend = scripted(typist("x"))
    with pytest.raises(RequestError) as caught:
        model.edit_stream(text, **options)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert not backend.seen


def test_seams_may_cut_a_word_in_the_middle() -> None:
    text = "the table is booked"
    for start in range(len(text)):
        for end in (start, start + 1, min(len(text), start + 3)):
            model, _ = scripted(typist("Q"))
            done = model.edit(text, spans=[(start, end)])
            assert done.text.startswith(text[:start])
            assert done.text.endswith(text[end:])
