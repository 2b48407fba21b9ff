"""redraft chat on a real (tiny, random) model: commands, what is kept of a conversation, Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import pytest

import redraft as package
from redraft.api import Model
from redraft.cli.chat import Conversation
from redraft.cli.options import SamplingOptions
from redraft.cli.terminal import safe
from redraft.errors import RequestError
from tests.cli.conftest import Redraft, Terminal
from tests.cli.test_run import printed_last


@pytest.fixture(scope="module")
def model(network_folder: Path) -> Model:
    return package.load(network_folder)


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_answers_follow_from_the_whole_conversation(
    redraft: Redraft, model: Model, network_folder: Path
) -> None:
    first = model.generate([said("user", "Hi")], seed=7).text
    history = [said("user", "Hi"), said("assistant", first), said("user", "A table")]
    second = model.generate(history, seed=7).text
    anew = model.generate([said("user", "A table")], seed=7).text
    shown = redraft(
        "chat", "-m", network_folder, "--seed", "7", stdin=b"Hi\n\nA table\n/clear\nA table\n/bye\nunread\n"
    )
    assert (shown.status, shown.out) == (0, f"{first}\n{second}\n{anew}\n")
    assert shown.err == "a new conversation\n"


def test_undo_takes_the_last_exchange_back(redraft: Redraft, model: Model, network_folder: Path) -> None:
    answer = model.generate([said("user", "Hi")], seed=7).text
    shown = redraft("chat", "-m", network_folder, "--seed", "7", stdin=b"Hi\n/undo\nHi\n/undo\n/undo\n")
    assert (shown.status, shown.out) == (0, f"{answer}\n{answer}\n")
    assert shown.err == "taken back: Hi\ntaken back: Hi\nredraft: there is nothing to take back\n"


def test_settings_hold_from_then_on(redraft: Redraft, model: Model, network_folder: Path) -> None:
    same = {"seed": 7, "max_tokens": 5, "temperature": 0.0}
    answer = model.generate([said("user", "Hi")], **same).text
    lines = b"/set seed 7\n/set max-tokens 5\n/set temperature 0\nHi\n/set temperature default\n/set\n"
    shown = redraft("chat", "-m", network_folder, stdin=lines)
    assert (shown.status, shown.out) == (0, answer + "\n")
    assert "max_tokens 5\ntemperature default\n" in shown.err


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/set temprature 1", "there is no setting temprature, did you mean temperature?"),
        ("/set temperature hot", "temperature must be a number, not 'hot'"),
        ("/set temperature nan", "--temperature must be a number of 0 or more, not nan"),
        ("/set seed 1.5", "seed must be a whole number, not '1.5'"),
        ("/set seed", "/set takes a name and a value"),
        ("/set decode foo", "--decode must be one of diffusion, ar, verified"),
        ("/stps on", "there is no command /stps, did you mean steps? (/help lists them)"),
        ("/", "there is no command / (/help lists them)"),
        ("/steps maybe", "/steps takes on or off"),
        ("/steps on", "denoising can only be shown on a terminal"),
        ("caf\udce9", "isn't valid UTF-8"),
        ("/set max_tokens 190\nHi", "--max-tokens 190 is too many"),
        ("word " * 200, "shorten it"),
    ],
)
def test_a_wrong_line_gets_one_line_and_the_conversation_goes_on(
    redraft: Redraft, network_folder: Path, line: str, answer: str
) -> None:
    stdin = f"{line}\n/set\n".encode("utf-8", "surrogateescape")
    shown = redraft("chat", "-m", network_folder, "--seed", "7", stdin=stdin)
    assert (shown.status, shown.out) == (0, "")
    complaint, *listing = shown.err.splitlines()
    assert complaint.startswith("redraft: ")
    assert answer in complaint
    assert listing[0] == "decode diffusion"


def test_the_oldest_exchanges_give_way_when_the_context_is_full(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = Conversation(model, "Be kind.", SamplingOptions(max_tokens=8, seed=1, temperature=0.0))
    long = "where do you want to go " * 4
    for _ in range(5):
        conversation.ask(long)
    out, err = capsys.readouterr()
    assert "(the context is full: the oldest 1 exchange left out)" in err
    rendered = model.tokenizer.render([*conversation.system, *conversation.turns])
    assert len(rendered) <= model.config.max_position_embeddings + 1
    assert conversation.turns[0] == said("user", long)
    assert len(conversation.turns) < 10
    assert out.count("\n") >= 5


def test_a_refused_question_leaves_the_conversation_as_it_was(model: Model) -> None:
    conversation = Conversation(model, None, SamplingOptions(max_tokens=8, seed=1))
    conversation.ask("Hi")
    before = list(conversation.turns)
    with pytest.raises(RequestError, match="shorten it"):
        conversation.ask("word " * 300)
    assert conversation.turns == before


def test_a_person_sees_denoising_turns_it_off_and_leaves(
    terminal: Terminal, model: Model, network_folder: Path
) -> None:
    answer = safe(model.generate([said("user", "Hi")], seed=7).text)
    keys = [
        (">>> ", "Hi\n"),
        (">>> ", "/undo\n"),
        (">>> ", "/steps off\n"),
        (">>> ", "Hi\n"),
        (">>> ", "\x04"),
    ]
    screen = terminal("chat", "-m", network_folder, "--seed", "7", "--delay", "0.001", keys=keys)
    assert screen.status == 0
    shown = screen.sent.replace("\r\n", "\n")
    with_steps, without = shown.split("/steps off")
    assert "canvas 1 · step 1" in with_steps
    assert answer in printed_last(with_steps)
    assert "taken back: Hi\n" in with_steps
    assert "canvas" not in without
    assert f"Hi\n{answer}\n" in without


def test_ctrl_c_stops_an_answer_and_keeps_what_was_settled(
    terminal: Terminal, model: Model, network_folder: Path
) -> None:
    whole = safe(model.generate([said("user", "Hi")], seed=7).text)
    keys = [
        *((">>> ", "Hi\n"), ("canvas 2 · step 2", "\x03"), (">>> ", "\x03"), ("leaves)", "")),
        *((">>> ", "/undo\n"), (">>> ", "/bye\n")),
    ]
    screen = terminal("chat", "-m", network_folder, "--seed", "7", "--delay", "0.3", keys=keys)
    assert screen.status == 0
    shown = printed_last(screen.sent)
    settled = shown[: shown.index("\n(stopped)\n")]
    assert settled
    assert settled != whole
    assert whole.startswith(settled)
    assert "(Ctrl-D or /bye leaves)" in shown
    assert "taken back: Hi" in shown
