"""redraft fill and redraft edit on a real (tiny, random) model: what is shown, what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import redraft as package
from redraft.api import Model
from redraft.cli import watching
from tests.cli.conftest import Redraft, Terminal
from tests.editing.models import write_editor

TEXT = "Where do you want to fly?\r\nI want to fly to Zürich 🙂 today.\n\tthe table"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_editor(tmp_path_factory.mktemp("models") / "tiny-editor")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return package.load(folder)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


def test_fill_prints_the_whole_text_and_apply_writes_it(
    redraft: Redraft, model: Model, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "gap.txt"
    path.write_bytes(b"I want <FILL>\r\nto fly<FILL>.")
    same = model.fill(["I want ", "\r\nto fly", "."], seed=4, max_tokens=6)
    flags = ["-m", folder, "--seed", "4", "--max-tokens", "6"]
    shown = redraft("fill", path, *flags)
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.replace("\r\n", "\n") == same.full_text.replace("\r\n", "\n")
    told = json.loads(redraft("fill", path, *flags, "--json").out)
    assert (told["text"], told["texts"], told["full_text"]) == (same.text, list(same.texts), same.full_text)
    assert path.read_bytes() == b"I want <FILL>\r\nto fly<FILL>."
    told = json.loads(redraft("fill", path, *flags, "--candidates", "1", "--slots", "3", "--json").out)
    alone = model.fill(["I want ", "\r\nto fly", "."], seed=4, max_tokens=6, candidates=1, slots=3)
    assert (told["texts"], told["nfe"]) == (list(alone.texts), alone.nfe)
    assert alone.nfe < same.nfe
    path.chmod(0o640)
    done = redraft("fill", path, *flags, "--apply")
    assert (done.status, done.out) == (0, "")
    assert path.read_bytes() == same.full_text.encode()
    assert (tmp_path / "gap.txt~").read_bytes() == b"I want <FILL>\r\nto fly<FILL>."
    assert path.stat().st_mode & 0o777 == 0o640


def test_fill_between_two_files_with_a_pin(
    redraft: Redraft, model: Model, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("Where ")
    (tmp_path / "b").write_text("")
    arguments = [
        "--prefix",
        tmp_path / "a",
        "--suffix",
        tmp_path / "b",
        "--pin",
        "2: to",
        "--max-tokens",
        "8",
    ]
    shown = redraft("fill", *arguments, "-m", folder, "--seed", "1", "--json")
    same = model.fill("Where ", "", pins={2: " to"}, max_tokens=8, seed=1)
    assert json.loads(shown.out)["text"] == same.text
    assert json.loads(redraft("fill", "-", "-m", folder, "--seed", "1", "--json", stdin=b"a<FILL>b").out)[
        "texts"
    ]


def test_edit_shows_a_diff_and_apply_writes_it_with_a_backup(
    redraft: Redraft, model: Model, folder: Path, file: Path
) -> None:
    same = model.edit(TEXT, lines=(2, 2), seed=7)
    assert same.hunks
    shown = redraft("edit", file, "--lines", "2:2", "-m", folder, "--seed", "7")
    assert shown.status == 0
    assert shown.out.replace("\r\n", "\n") == same.diff(str(file)).replace("\r\n", "\n")
    assert file.read_bytes() == TEXT.encode()
    done = redraft("edit", file, "--lines", "2:2", "-m", folder, "--seed", "7", "--apply")
    assert (done.status, done.out) == (0, "")
    assert file.read_bytes() == same.text.encode()
    assert file.with_name("text.txt~").read_bytes() == TEXT.encode()
    assert sorted(p.name for p in file.parent.iterdir() if p.is_file()) == ["text.txt", "text.txt~"]


def test_edit_as_a_filter_and_many_files_as_one_object(
    redraft: Redraft, model: Model, folder: Path, file: Path, tmp_path: Path
) -> None:
    same = model.edit("fly to", spans=[(0, 3)], seed=2)
    shown = redraft("edit", "-", "--span", "0:3", "-m", folder, "--seed", "2", stdin=b"fly to")
    assert (shown.status, shown.out) == (0, same.text)
    other = tmp_path / "other"
    other.write_text("fly to")
    many = [
        "edit",
        file,
        other,
        "make it polite",
        "--threshold",
        "0.1",
        "-m",
        folder,
        "--seed",
        "2",
        "--json",
    ]
    shown = redraft(*many)
    assert (shown.status, shown.err) == (0, "")
    told = json.loads(shown.out)
    assert [f["file"] for f in told["files"]] == [str(file), str(other)]
    want = model.edit("fly to", "make it polite", threshold=0.1, seed=2)
    assert told["files"][1]["text"] == want.text
    one = json.loads(redraft("edit", other, "--instruction", "make it polite", *many[4:]).out)
    assert list(one) == ["text", "hunks", "nfe", "seconds", "time_to_first_hunk", "seed"]
    assert one["text"] == want.text


def test_a_terminal_sees_the_canvas_and_then_the_diff(terminal: Terminal, folder: Path, file: Path) -> None:
    screen = terminal("edit", file, "--lines", "1:1", "-m", folder, "--seed", "1")
    assert screen.status == 0
    assert "NFE" in screen.sent
    assert "\x1b[31m-Where do you want to fly?" in screen.sent


def wrong(file: Path) -> list[tuple[list[str | Path], str]]:
    """Command lines that are refused, and how the line begins. Files beside `file`."""
    here = file.parent
    (here / "empty").write_bytes(b"")
    (here / "binary").write_bytes(b"a\0b")
    (here / "latin").write_bytes("é".encode("latin-1"))
    (here / "fixed").write_text("text <FILL>")
    (here / "fixed").chmod(0o444)
    return [
        (["edit", here / "none"], f"there is no file {here / 'none'}"),
        (["edit", here], f"{here} can't be read: Is a directory"),
        (["edit", here / "empty"], f"{here / 'empty'} is empty"),
        (["edit", here / "binary"], f"{here / 'binary'} is a binary file"),
        (["edit", here / "latin"], f"{here / 'latin'} isn't valid UTF-8"),
        (["edit", here / "fixed", "--apply"], f"{here / 'fixed'} is read-only"),
        (["edit", file, file], f"{file} is named twice"),
        (["edit", file, " "], "the instruction is empty"),
        (["edit", file, ""], "the instruction is empty"),
        (["edit", file, "polite"], "there is no file polite (an instruction of one word"),
        (["edit", file, "--span", "0:4", "--span", "3:5"], "spans 0:4 and 3:5 overlap"),
        (["edit", file, "--span", "0:400"], "span 0:400 is no part of the text"),
        (["edit", file, "--span", "x"], "--span must be A:B"),
        (["edit", file, "--lines", "3:4"], "lines 3:4 are no part of the text"),
        (["edit", file, "--regex", "zzz"], "the regular expression 'zzz' finds nothing"),
        (["edit", file, "--regex", "("], "the regular expression '(' can't be read"),
        (["edit", file, "--strength", "0.5"], "strength is for a selection"),
        (["edit", file, "--span", "0:4", "--strength", "2"], "strength must be a number"),
        (["edit", "-", "--apply"], "stdin is empty"),
        (["fill", file], f"{file} has no <FILL>"),
        (["fill"], "give a file with <FILL> in it"),
        (["fill", file, "--prefix", file], "give FILE or --prefix and --suffix, not both"),
        (["fill", "--prefix", file, "--apply"], "--apply needs FILE"),
        (["fill", "--prefix", here / "empty"], "--prefix and --suffix are both empty"),
        (["fill", here / "fixed", "--apply"], f"{here / 'fixed'} is read-only"),
        (["fill", here / "fixed", "--pin", "x"], "--pin must be SLOT:TEXT"),
        (["fill", here / "fixed", "--pin", "99:x"], "the pin 'x' takes slots 99 to 99"),
        (["fill", here / "fixed", "--slots", "0"], "--slots must be 1 or more"),
        (["fill", here / "fixed", "--candidates", "0"], "--candidates must be 1 or more"),
        (["fill", here / "fixed", "--fills", "0"], "--fills must be 1 or more"),
        (["fill", here / "empty"], f"{here / 'empty'} is empty"),
        (["fill", here / "binary"], f"{here / 'binary'} is a binary file"),
        (["edit", file, "--instruction", ""], "the instruction is empty"),
        (["edit"], "Missing argument"),
    ]


def test_what_can_not_be_done_is_one_line_and_the_file_stays(
    redraft: Redraft, folder: Path, file: Path
) -> None:
    for arguments, line in wrong(file):
        shown = redraft(*arguments, "-m", folder)
        assert (shown.status, shown.out) == (2, ""), arguments
        assert shown.err.startswith(f"redraft: {line}"), (arguments, shown.err)
        assert shown.err.count("\n") == 1, arguments
    assert file.read_bytes() == TEXT.encode()
    assert not list(file.parent.glob("*~"))


@pytest.mark.parametrize(("verb", "flags"), [("fill", ()), ("edit", ("--lines", "1:1"))])
def test_a_file_that_changes_while_it_is_edited_is_left_as_it_is(
    verb: str,
    flags: tuple[str, ...],
    redraft: Redraft,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, other = tmp_path / "text", "someone else's words"
    path.write_text("one <FILL> two\nthree")
    finish = watching.finish

    def meanwhile(*arguments: Any, **options: Any) -> bool:
        path.write_text(other)
        return finish(*arguments, **options)

    monkeypatch.setattr(watching, "finish", meanwhile)
    shown = redraft(verb, path, *flags, "--apply", "-m", folder, "--seed", "1", "--max-tokens", "4")
    assert (shown.status, shown.out) == (2, "")
    assert (
        shown.err == f"redraft: {path} changed while it was being edited: nothing was written, run it again\n"
    )
    assert path.read_text() == other
    assert not list(tmp_path.glob("*~"))


def test_a_file_longer_than_the_context_is_worked_on_whole(
    redraft: Redraft, folder: Path, tmp_path: Path
) -> None:
    """The context has 192 tokens."""
    path = tmp_path / "long"
    lines = [f"line {number}: Where do you want to fly?" for number in range(80)]
    path.write_text("\n".join(lines))
    shown = redraft("edit", path, "--lines", "40:41", "-m", folder, "--seed", "1", "--apply")
    assert (shown.status, shown.out) == (0, "")
    after = path.read_text()
    assert after.startswith("\n".join(lines[:39]) + "\n")
    assert after.endswith("\n" + "\n".join(lines[41:]))
    path.write_text("\n".join([*lines, "<FILL>", *lines]))
    shown = redraft("fill", path, "-m", folder, "--seed", "1", "--max-tokens", "4", "--json")
    told = json.loads(shown.out)
    assert told["full_text"] == "\n".join([*lines, told["text"], *lines])
