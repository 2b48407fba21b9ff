"""What a person sees of a canvas, slot by slot, and what never reaches a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from redraft.cli.drafts import NOISE_SIGN, STYLES, Slot, settled_text, styled, visible_slots
from redraft.cli.picture import Frame, Recorder, draw
from redraft.cli.render import LiveView, PlainView, Progress, certain, status_line
from redraft.cli.terminal import safe
from redraft.engine.events import Commit, SlotState, Step
from redraft.errors import RequestError
from redraft.hub.chat_template import ChatTemplate
from redraft.hub.tokenizer import Tokenizer
from tests.hub.conftest import TEMPLATE, byte_level

N, D, NEW, REV, SET, LOCK = SlotState
EOS, MASK, NULL = 0, 4, 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(byte_level(), ChatTemplate(TEMPLATE))


def step_of(tokens: list[int], states: list[SlotState], canvas: int = 0, step: int = 1, nfe: int = 1) -> Step:
    zeros = np.zeros(len(tokens), np.float32)
    return Step(canvas, step, 0, np.array(tokens), np.array(states, np.uint8), zeros + 1, zeros, nfe)


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(tokenizer.encode(c)[0]) for c in text]


def test_a_canvas_is_shown_up_to_the_first_stop_token_even_a_predicted_one(tokenizer: Tokenizer) -> None:
    a, b, c = letters(tokenizer, "abc")
    shown = visible_slots(step_of([a, NULL, b, EOS, c], [SET, SET, D, D, SET]), tokenizer, (EOS, 1))
    assert shown == [Slot("a", SET), Slot("", SET), Slot("b", D)]
    # A stop token that is only noise says nothing yet.
    shown = visible_slots(step_of([a, EOS, MASK, c], [SET, N, N, N]), tokenizer, (EOS,))
    assert shown == [Slot("a", SET), Slot(NOISE_SIGN, N), Slot(NOISE_SIGN, N), Slot("c", N)]


def test_settled_text_ends_before_the_first_doubt(tokenizer: Tokenizer) -> None:
    slots = [Slot("a", LOCK), Slot("b", NEW), Slot("c", REV), Slot("d", D), Slot("e", SET)]
    assert settled_text(slots) == "abc"


def test_each_state_has_a_look_of_its_own_with_and_without_colours() -> None:
    assert set(STYLES) == set(SlotState)
    assert len(set(STYLES.values())) == len(SlotState)
    text = styled([Slot(s.name, s) for s in SlotState])
    assert [(text.plain[s.start : s.end], s.style) for s in text.spans] == [
        (s.name, STYLES[s]) for s in SlotState
    ]


@given(st.text())
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    shown = safe(text)
    assert not any((ord(c) < 0x20 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in shown)
    assert len(shown) == len(text)
    assert safe(shown) == shown


def test_control_characters_are_made_visible() -> None:
    assert safe("a\x1b[31mb\x07\r\n\t\x7f\x9b\u202ec") == "a␛[31mb␇␍\n\t␡\ufffd\ufffdc"


class Screenful(io.StringIO):
    """A terminal of a given size that keeps what it's sent."""

    def isatty(self) -> bool:
        return True


def live(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, columns: int, rows: int, **environment: str
) -> tuple[Progress, LiveView, Screenful]:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    settings = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(rows)} | environment
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    screen = Screenful()
    progress = Progress(tokenizer, (EOS,))
    return progress, LiveView(progress, delay=1e-9, stream=screen), screen


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (20, 5), (7, 2), (1, 1)])
def test_frames_fit_the_window_and_the_answer_is_left_plain(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, columns: int, rows: int
) -> None:
    progress, view, screen = live(tokenizer, monkeypatch, columns, rows)
    words = "谢谢 where 谢 to fly,\n" * 6
    ids = tokenizer.encode(words).tolist()
    for event in (Commit(0, tuple(ids), 3), step_of(ids[:30], [D] * 10 + [NEW] * 10 + [SET] * 10, canvas=1)):
        for watcher in (progress, view):
            watcher.put(event) if isinstance(event, Commit) else watcher.put_draft(event)
    frame = view._frame(1.0)
    lines = view._console.render_lines(frame, view._console.options)
    assert len(lines) <= max(2, rows)
    assert all(sum(cell_len(s.text) for s in line) <= max(columns, 2) for line in lines)
    view.end(words)
    assert screen.getvalue().endswith(words)
    assert "\x1b[?25h" in screen.getvalue()  # the cursor is back


def test_frames_have_the_colours_of_the_states_unless_unwanted(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = letters(tokenizer, "abcdef")
    step = step_of([MASK, *tokens[1:]], [N, D, NEW, REV, SET, LOCK], nfe=7)
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        progress, view, screen = live(tokenizer, monkeypatch, 80, 24, **environment)
        progress.put_draft(step)
        view.put_draft(step)
        view.close()
        sent = screen.getvalue()
        assert ("\x1b[90m░" in sent, "\x1b[1;32mc" in sent, "\x1b[4;35md" in sent, "\x1b[34mf" in sent) == (
            coloured,
        ) * 4
        assert "\x1b[2mb" in sent  # dim isn't a colour
        assert ("\x1b[1mc" in sent, "\x1b[4md" in sent) == (not coloured,) * 2
        assert "canvas 1 · step 1 · NFE 7 · 0.57 tokens/forward" in sent


def test_frames_come_at_most_thirty_times_a_second_and_none_is_queued(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, view, screen = live(tokenizer, monkeypatch, 80, 24)
    view._delay = 0.0
    now = [100.0]
    monkeypatch.setattr("redraft.cli.render.time.perf_counter", lambda: now[0])
    frames = 0
    for n in range(100):
        now[0] += 0.01
        before = len(screen.getvalue())
        event = step_of(letters(tokenizer, "ab"), [D, D], step=n)
        progress.put_draft(event)
        view.put_draft(event)
        frames += len(screen.getvalue()) > before
    assert frames == 25  # one second: every fourth step, the first that is due after a thirtieth of a second
    view.close()


def test_a_models_escape_sequences_stay_text_in_the_live_view(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, view, screen = live(tokenizer, monkeypatch, 80, 24)
    evil = "\x1b]0;owned\x07[red]"
    step = step_of(tokenizer.encode(evil).tolist(), [SET] * len(tokenizer.encode(evil)))
    progress.put_draft(step)
    view.put_draft(step)
    view.end(evil)
    assert "\x1b]" not in screen.getvalue()
    assert "␛]0;owned␇[red]" in screen.getvalue()


def test_a_character_that_spans_two_canvases_is_shown_whole(tokenizer: Tokenizer) -> None:
    progress = Progress(tokenizer, (EOS,))
    sloth = tokenizer.encode("🦥").tolist()
    progress.put(Commit(0, tuple(letters(tokenizer, "a") + sloth[:3]), 1))
    assert progress.text == "a"
    progress.put_draft(step_of([sloth[3], *letters(tokenizer, "b")], [SET, NEW], canvas=1))
    assert progress.settled() == "a🦥b"
    progress.put(Commit(1, (sloth[3],), 2))
    assert progress.text == "a🦥"
    assert progress.settled(["🦥"]) == "a"


def test_status_counts_settled_slots(tokenizer: Tokenizer) -> None:
    progress = Progress(tokenizer, (EOS,))
    a, b = letters(tokenizer, "ab")
    progress.put(Commit(0, (a, b, EOS), 4))
    assert progress.committed == [a, b]
    progress.put_draft(step_of([a, b, NULL, EOS], [SET, D, SET, D], canvas=1, step=2, nfe=6))
    assert status_line(progress, 1.5) == "canvas 2 · step 2 · NFE 6 · 0.50 tokens/forward · 2 tokens/s"
    assert progress.settled() == "aba"


class Pipe(io.StringIO):
    """Not a terminal."""


def test_the_plain_view_shows_committed_text_once_it_is_certain(tokenizer: Tokenizer) -> None:
    out = Pipe()
    view = PlainView(tokenizer, stop=["END"], stop_ids=(EOS,), stream=out)
    sloth = tokenizer.encode("🦥").tolist()
    view.put_draft(step_of(sloth, [SET] * 4))
    assert out.getvalue() == ""
    view.put(Commit(0, tuple(letters(tokenizer, "ab") + sloth[:2]), 1))
    assert out.getvalue() == "ab"
    view.put(Commit(1, tuple(sloth[2:] + letters(tokenizer, "cE")), 2))
    assert out.getvalue() == "ab🦥c"  # the E may be the beginning of END
    view.put(Commit(2, tuple(letters(tokenizer, "nd")), 3))
    assert out.getvalue() == "ab🦥cEnd"
    view.put(Commit(3, (*letters(tokenizer, ".END!"), EOS), 4))
    assert out.getvalue() == "ab🦥cEnd."
    view.end("ab🦥cEnd.")
    assert out.getvalue() == "ab🦥cEnd.\n"


@example("ab", ["b", "abb"], "b")
@given(st.text("ab"), st.lists(st.text("ab", min_size=1, max_size=3), max_size=2), st.text("ab"))
def test_what_is_called_certain_stays_so(text: str, stop: list[str], more: str) -> None:
    """However the answer goes on, what was shown is the beginning of what the answer is in the end."""

    def answer(whole: str) -> str:
        return whole[: min([at for s in stop if (at := whole.find(s)) >= 0], default=len(whole))]

    if any(s in text for s in stop):
        more = ""  # the answer has ended: nothing is written behind a stop
    shown = text[: certain(text, stop)]
    assert answer(text + more).startswith(shown)
    if not stop:
        assert shown == text


def test_the_picture_shows_the_steps_of_the_canvas_that_took_most(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    progress = Progress(tokenizer, (EOS,))
    recorder = Recorder(progress)
    a, b = letters(tokenizer, "ab")
    events = [
        step_of([a, b], [SET, SET], canvas=0, step=1),
        Commit(0, (a, b), 1),
        step_of([MASK, b], [N, D], canvas=1, step=1),
        step_of([a, MASK], [NEW, N], canvas=1, step=2),
        Commit(1, (a, b, EOS), 3, "stop"),
    ]
    for event in events:
        for watcher in (progress, recorder):
            watcher.put(event) if isinstance(event, Commit) else watcher.put_draft(event)
    recorder.end("abab")
    assert [(f.canvas, f.step, f.before) for f in recorder.frames] == [(0, 1, ""), (1, 1, "ab"), (1, 2, "ab")]
    recorder.save(tmp_path / "a.svg", "why <this> & that?")
    picture = (tmp_path / "a.svg").read_text()
    import xml.etree.ElementTree as xml

    words = "".join(xml.fromstring(picture).itertext()).replace("\xa0", " ")
    assert "> why <this> & that?" in words
    assert words.count("step  ") == 2
    assert "░b" in words
    assert "noisedraftnewrevisedsettled" in words
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")  # asks the network for nothing


def test_without_drafts_there_is_no_picture(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no denoising steps to draw"):
        Recorder(Progress(tokenizer, ())).save(tmp_path / "a.svg", "x")


def test_a_picture_needs_no_terminal_and_ignores_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Frame(0, 1, "", (Slot("a\n", NEW), Slot("b", D)))]
    plain = draw(frames, "x", "ab")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    assert draw(frames, "x", "ab") == plain
    assert "a⏎" in plain
