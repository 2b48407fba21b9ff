"""Spans, lines and regular expressions: what they select and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.editing.spans import checked, chosen, lines, matches
from redraft.errors import RequestError


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=5), min_size=1),
    st.data(),
)
def test_lines_are_those_of_the_text_without_the_last_end(parts: list[str], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    last = data.draw(st.booleans())
    text = end.join(parts) + end * last
    count = len(parts) - (not last and len(parts) > 1 and parts[-1] == "")
    first = data.draw(st.integers(1, count))
    second = data.draw(st.integers(first, count))
    start, stop = lines(text, first, second)
    assert text[start:stop] == end.join(parts[first - 1 : second])


def test_all_selections_together_in_order() -> None:
    assert chosen("one two\nthree", [(8, 13)], (1, 1), None) == [(0, 7), (8, 13)]
    assert chosen("one two\nthree", [(8, 13)], None, "^one|two") == [(0, 3), (4, 7), (8, 13)]
    assert chosen("text", None, None, None) == []
    assert checked("ab", [(1, 2), (0, 1)]) == [(0, 1), (1, 2)]
    assert checked("ab", [(2, 2), (0, 0)]) == [(0, 0), (2, 2)]
    assert matches("aXbX", "X?") == [(1, 2), (3, 4)]


WRONG: list[tuple[list[Any], tuple[int, int] | None, str | None, str]] = [
    ([(0, 3), (2, 4)], None, None, "spans 0:3 and 2:4 overlap: join them"),
    ([(1, 1), (1, 1)], None, None, "spans 1:1 and 1:1 overlap"),
    ([(0, 3)], (1, 1), None, "spans 0:3 and 0:5 overlap"),
    ([(0, 6)], None, None, "span 0:6 is no part of the text, which has 5 characters"),
    ([(-1, 2)], None, None, "span -1:2 is no part"),
    ([(3, 2)], None, None, "span 3:2 is no part"),
    ([(0.0, 2)], None, None, "span 0.0:2 is no part"),
    ([7], None, None, "a span is two offsets"),
    ([], (0, 1), None, "lines 0:1 are no part of the text, which has lines 1 to 1"),
    ([], (1, 2), None, "lines 1:2 are no part"),
    ([], None, "z", "the regular expression 'z' finds nothing"),
    ([], None, "(", "the regular expression '(' can't be read"),
    ([], None, "z*", "the regular expression 'z*' finds nothing"),
]


@pytest.mark.parametrize(("spans", "between", "regex", "line"), WRONG, ids=[line[:30] for *_, line in WRONG])
def test_what_can_not_be_selected(spans: list[Any], between: Any, regex: str | None, line: str) -> None:
    with pytest.raises(RequestError) as caught:
        chosen("hello", spans, between, regex)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
