"""Changes by bytes to changes by characters, and back to a text."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from redraft.editing.hunks import Edit, Hunk, Part, apply, hunks_of

TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)


@st.composite
def cut(draw: st.DrawFn) -> tuple[str, list[Part]]:
    """A text and disjoint parts of its bytes, some with others' bytes in their place."""
    text = draw(TEXTS)
    size = len(text.encode())
    ends = sorted(draw(st.lists(st.integers(0, size), max_size=8)))
    parts = []
    for start, end in zip(ends[::2], ends[1::2], strict=False):
        kind = draw(st.integers(0, 2))
        after = [text.encode()[start:end], draw(st.binary(max_size=4)), draw(TEXTS).encode()][kind]
        parts.append(Part(start, end, after, draw(st.floats(0, 1))))
    return text, parts


@given(cut())
def test_what_no_part_touches_stays_byte_for_byte(case: tuple[str, list[Part]]) -> None:
    text, parts = case
    hunks = hunks_of(text, parts)
    edited = apply(text, hunks)
    at, shift = 0, 0
    for hunk in hunks:
        assert at <= hunk.start <= hunk.end
        assert text[hunk.start : hunk.end] == hunk.before != hunk.after
        assert edited[hunk.start + shift :].startswith(hunk.after)
        assert text[at : hunk.start] == edited[at + shift : hunk.start + shift]
        at, shift = hunk.end, shift + len(hunk.after) - len(hunk.before)
    assert text[at:] == edited[at + shift :]
    changed = [p for p in parts if p.after != text.encode()[p.start : p.end]]
    for hunk in hunks:  # within the characters that changed parts touch
        low, high = len(text[: hunk.start].encode()), len(text[: hunk.end].encode())
        assert any((p.start - 4 < high and low < p.end + 4) or p.start <= low <= p.end for p in changed)


@given(TEXTS, TEXTS, TEXTS)
def test_whole_characters_are_changed_as_asked(before: str, inside: str, after: str) -> None:
    text = before + "xyz" + after
    start = len(before.encode())
    (*hunks,) = hunks_of(text, [Part(start, start + 3, inside.encode(), 0.5)])
    assert apply(text, hunks) == before + inside + after
    assert [h.confidence for h in hunks] == [0.5] * (inside != "xyz")


def test_half_a_character_widens_the_hunk_and_broken_bytes_are_dropped() -> None:
    text = "Zürich 🙂!"
    assert text.encode()[1:3] == b"\xc3\xbc"
    assert hunks_of(text, [Part(2, 3, b"\xb6")]) == (Hunk(1, 2, "ü", "ö", 1.0),)
    assert hunks_of(text, [Part(2, 3, b"")]) == ()
    assert hunks_of(text, [Part(2, 3, b"", lossy=True)]) == (Hunk(1, 2, "ü", "", 1.0),)
    assert hunks_of(text, [Part(8, 12, b"\x9fok\xe2", lossy=True)]) == (Hunk(7, 8, "🙂", "ok", 1.0),)
    assert hunks_of(text, [Part(1, 2, b"\xc3"), Part(2, 3, b"\xa4", 0.25)]) == (Hunk(1, 2, "ü", "ä", 0.25),)
    both = hunks_of("éü", [Part(1, 2, b"\xa8", 0.5), Part(2, 3, b"\xc3"), Part(3, 4, b"\xb6", 0.75)])
    assert [(h.before, h.after, h.confidence) for h in both] == [("é", "è", 0.5), ("ü", "ö", 0.75)]


def test_insertions_and_deletions_say_so() -> None:
    assert hunks_of("ab", [Part(0, 1, b"a-x")]) == (Hunk(1, 1, "", "-x", 1.0),)
    assert hunks_of("ab", [Part(0, 2, b"a")]) == (Hunk(1, 2, "b", "", 1.0),)
    assert hunks_of("abc", [Part(0, 1, b"x", 0.5), Part(1, 2, b"y", 0.25)]) == (Hunk(0, 2, "ab", "xy", 0.25),)


def test_a_diff_is_one_that_patch_applies(tmp_path: Path) -> None:
    for before, after in [
        ("a\nb\nc\n", "a\nB\nc\n"),
        ("a\nb", "a\nc"),
        ("a\r\nb\r\n", "a\r\nc\r\n"),
        ("one\u2028line\x0bstill\n", "one\u2028line\x0bmore\n"),
        ("a\n", "a"),
        ("a\n" * 20 + "x\n", "b\n" + "a\n" * 20 + "x\n"),
    ]:
        edit = Edit(after, (), 0, 0.0, before)
        file = tmp_path / "file"
        file.write_bytes(before.encode())
        diff = edit.diff("file").encode()
        subprocess.run(["patch", "--binary", "-s", str(file)], input=diff, check=True, cwd=tmp_path)
        assert file.read_bytes() == after.encode()
    assert Edit("a", (), 0, 0.0, "a").diff() == ""
