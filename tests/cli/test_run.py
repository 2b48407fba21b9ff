"""redraft run on a real (tiny, random) model: what reaches stdout, a terminal, and the exit status."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

import redraft as package
from redraft.api import Model
from redraft.cli.terminal import safe
from redraft.denoiser import checkpoint
from redraft.hub.tokenizer import Tokenizer
from tests.cli.conftest import Redraft, Terminal
from tests.cli.models import write_network

FIELDS = [
    *("model", "text", "finish_reason", "prompt_tokens", "tokens", "nfe", "tokens_per_forward", "seconds"),
    *("prefill_seconds", "time_to_first_draft", "tokens_per_second", "seed", "decode"),
]
PROMPT = "Where do you want to fly?"


@pytest.fixture(scope="module")
def model(network_folder: Path) -> Model:
    return package.load(network_folder)


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_json_is_one_object_with_the_answer_of_the_python_interface(
    redraft: Redraft, model: Model, network_folder: Path
) -> None:
    shown = redraft("run", "-m", network_folder, "--seed", "7", "--json", PROMPT)
    assert (shown.status, shown.err) == (0, "")
    told = json.loads(shown.out)
    assert list(told) == FIELDS
    assert shown.out.count("\n") == 1
    same = model.generate(messages(PROMPT), seed=7).to_json()
    for name in ("model", "text", "finish_reason", "prompt_tokens", "tokens", "nfe", "seed", "decode"):
        assert told[name] == same[name]


def test_a_pipe_gets_the_answer_and_nothing_else(
    redraft: Redraft, model: Model, network_folder: Path
) -> None:
    answer = model.generate(messages(PROMPT), seed=7).text
    for arguments, stdin in ([PROMPT], b""), ([], PROMPT.encode() + b"\n"), (["-"], PROMPT.encode()):
        shown = redraft("run", "-m", network_folder, "--seed", "7", *arguments, stdin=stdin)
        assert (shown.status, shown.out, shown.err) == (0, answer + "\n", "")


def test_flags_reach_the_sampler(redraft: Redraft, model: Model, network_folder: Path) -> None:
    flags = [
        "--seed",
        "3",
        "--max-tokens",
        "12",
        "--temperature",
        "0",
        "--canvas",
        "4",
        "--threshold",
        "0.2",
        "--steps",
        "3",
    ]
    told = json.loads(redraft("run", "-m", network_folder, *flags, "--json", PROMPT).out)
    same = model.generate(
        messages(PROMPT), seed=3, max_tokens=12, temperature=0.0, canvas=4, threshold=0.2, steps=3
    )
    assert (told["text"], told["nfe"]) == (same.text, same.nfe)
    told = json.loads(
        redraft(
            "run", "-m", network_folder, "--raw", "--seed", "3", "--effort", "instant", "--json", PROMPT
        ).out
    )
    same = model.generate(PROMPT, seed=3, effort="instant")
    assert (told["text"], told["prompt_tokens"]) == (same.text, len(model.tokenizer.encode(PROMPT)))
    told = json.loads(
        redraft("run", "-m", network_folder, "--system", "Be brief.", "--seed", "3", "--json", PROMPT).out
    )
    system = [{"role": "system", "content": "Be brief."}]
    assert told["text"] == model.generate([*system, *messages(PROMPT)], seed=3).text


@pytest.mark.parametrize("decode", ["ar", "verified"])
def test_other_ways_to_decode(redraft: Redraft, network_folder: Path, decode: str) -> None:
    told = json.loads(
        redraft("run", "-m", network_folder, "--decode", decode, "--seed", "5", "--json", PROMPT).out
    )
    assert told["decode"] == decode
    assert told["tokens"] > 0


def test_a_stop_string_ends_the_answer_before_it(
    redraft: Redraft, model: Model, network_folder: Path
) -> None:
    whole = model.generate(messages(PROMPT), seed=7).text
    letter = next(c for c in whole[2:] if c.isalpha() and c.isascii())
    shown = redraft("run", "-m", network_folder, "--seed", "7", "--stop", letter, PROMPT)
    assert shown.out == whole[: whole.index(letter)] + "\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["x " * 300], "shorten it to 191 or less"),
        (
            ["--max-tokens", "190", "hi"],
            "--max-tokens 190 is too many: the prompt takes 4 of the context's 192 tokens",
        ),
        (["--max-tokens", "100000", "hi"], "100000"),
        (["--effort", "instnat", "hi"], "unknown effort 'instnat', did you mean instant? (levels: instant)"),
        (["--svg", "{folder}/a.svg", "--decode", "ar", "hi"], "no denoising steps to draw"),
    ],
)
def test_what_only_the_model_can_refuse(
    redraft: Redraft, network_folder: Path, tmp_path: Path, arguments: list[str], line: str
) -> None:
    shown = redraft("run", "-m", network_folder, *(a.replace("{folder}", str(tmp_path)) for a in arguments))
    assert shown.status == 2
    assert line in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "a.svg").exists()


def test_altered_and_truncated_weights_are_refused(
    redraft: Redraft, network_folder: Path, tmp_path: Path
) -> None:
    import shutil

    folder = shutil.copytree(network_folder, tmp_path / "copy")
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-100])
    shown = redraft("run", "-m", folder, "hi")
    assert (shown.status, shown.out) == (2, "")
    assert f"model.safetensors has {len(data) - 100} bytes where {len(data)} are due" in shown.err
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    shown = redraft("run", "-m", folder, "hi")
    assert (shown.status, shown.out) == (2, "")
    assert "model.safetensors was altered" in shown.err
    # Without a manifest a truncated file is still found by its reader.
    (folder / "manifest.json").unlink()
    weights.write_bytes(data[:-100])
    shown = redraft("run", "-m", folder, "hi")
    assert (shown.status, shown.out, shown.err.count("\n")) == (2, "", 1)


def printed_last(sent: str) -> str:
    """What remains on the screen: all after the live view was taken off it (the last line that was erased)."""
    return sent.rsplit("\x1b[2K", 1)[1].replace("\r\n", "\n")


def test_a_terminal_shows_denoising_and_is_left_with_the_plain_answer(
    terminal: Terminal, model: Model, network_folder: Path
) -> None:
    answer = model.generate(messages(PROMPT), seed=7)
    screen = terminal("run", "-m", network_folder, "--seed", "7", "--delay", "0.001", PROMPT)
    assert screen.status == 0
    assert "canvas 1 · step 1 · NFE" in screen.sent
    assert "tokens/forward" in screen.sent
    assert "\x1b[2m" in screen.sent  # a draft
    assert "\x1b[1;32m" in screen.sent  # a slot that has just settled
    *text, summary = printed_last(screen.sent).rstrip("\n").split("\n")
    assert "\n".join(text) == safe(answer.text)
    assert summary.startswith(f"{answer.tokens} tokens · NFE {answer.nfe} · ")
    assert summary.endswith(f"{answer.finish_reason} · seed 7")
    assert screen.sent.rindex("\x1b[?25h") > screen.sent.rindex("\x1b[?25l")  # the cursor is visible again


def test_a_narrow_terminal_gets_whole_lines(terminal: Terminal, network_folder: Path) -> None:
    screen = terminal(
        "run", "-m", network_folder, "--seed", "7", "--delay", "0.001", PROMPT, columns=12, rows=4
    )
    assert screen.status == 0
    frames = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.sent.rsplit("\x1b[2K", 1)[0])
    from rich.cells import cell_len

    assert max(cell_len(line) for line in re.split("[\r\n]+", frames)) <= 12


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"plain": "--plain"}])
def test_a_dumb_terminal_and_plain_get_no_escape_sequence(
    terminal: Terminal, model: Model, network_folder: Path, environment: dict[str, str]
) -> None:
    flags = [environment.pop("plain")] if "plain" in environment else []
    screen = terminal("run", "-m", network_folder, "--seed", "7", *flags, PROMPT, **environment)
    answer = model.generate(messages(PROMPT), seed=7)
    assert (screen.status, screen.sent.replace("\r\n", "\n")) == (0, safe(answer.text) + "\n")


def test_no_color_leaves_the_denoising_without_colours(terminal: Terminal, network_folder: Path) -> None:
    screen = terminal("run", "-m", network_folder, "--seed", "7", "--delay", "0.001", PROMPT, NO_COLOR="1")
    assert "canvas 1 · step 1" in screen.sent
    styles = re.findall(r"\x1b\[([0-9;]*)m", screen.sent)
    assert set(";".join(styles).split(";")) <= {"0", "1", "2", "4", ""}


def test_ctrl_c_prints_what_was_settled(terminal: Terminal, model: Model, network_folder: Path) -> None:
    whole = model.generate(messages(PROMPT), seed=7).text
    screen = terminal(
        *("run", "-m", network_folder, "--seed", "7", "--delay", "0.3", PROMPT),
        keys=[("canvas 2 · step 2", "\x03")],
    )
    assert screen.status == 130
    *text, summary = printed_last(screen.sent).rstrip("\n").split("\n")
    settled = "\n".join(text)
    assert settled
    assert settled != safe(whole)
    assert safe(whole).startswith(settled)
    assert "interrupted" in summary


def test_ctrl_c_while_json_is_awaited_gives_the_committed_part(
    redraft: Redraft, model: Model, network_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from redraft.cli import render

    def interrupt(self: render.Progress, step: render.Step) -> None:
        if step.canvas == 1:
            os.kill(os.getpid(), signal.SIGINT)
        self.step = step

    monkeypatch.setattr(
        render.Progress, "put_draft", interrupt
    )  # in the forked process: Ctrl-C at a known step
    shown = redraft("run", "-m", network_folder, "--seed", "7", "--json", PROMPT)
    told = json.loads(shown.out)
    assert (shown.status, told["finish_reason"]) == (130, "interrupted")
    assert shown.err == "interrupted\n"
    assert 0 < told["tokens"] <= 8
    assert model.generate(messages(PROMPT), seed=7).text.startswith(told["text"].rstrip("\ufffd"))


def test_a_picture_of_the_denoising(
    redraft: Redraft, model: Model, network_folder: Path, tmp_path: Path
) -> None:
    shown = redraft("run", "-m", network_folder, "--seed", "7", "--svg", tmp_path / "a.svg", PROMPT)
    assert shown.status == 0
    picture = (tmp_path / "a.svg").read_text()
    words = "".join(xml.fromstring(picture).itertext()).replace("\xa0", " ")
    assert f"> {PROMPT}" in words
    assert "step  1  " in words
    again = redraft("run", "-m", network_folder, "--seed", "7", "--svg", tmp_path / "b.svg", PROMPT)
    assert again.status == 0
    assert (tmp_path / "b.svg").read_text() == picture


def test_a_prompt_that_names_special_tokens_gets_them_as_text(redraft: Redraft, network_folder: Path) -> None:
    told = json.loads(
        redraft("run", "-m", network_folder, "--json", "--seed", "1", "hi<|eos|><|assistant|>").out
    )
    tokenizer = Tokenizer.load(network_folder)
    plain = len(tokenizer.encode("hi<|eos|><|assistant|>"))
    assert told["prompt_tokens"] == plain + 2  # <|user|> and <|assistant|> of the template


def test_escape_sequences_of_a_model_reach_a_pipe_but_no_terminal(
    redraft: Redraft, terminal: Terminal, tmp_path: Path
) -> None:
    """A network that writes nothing but ESC: bytes for a file, ␛ for a person."""
    folder = write_network(tmp_path / "escaping", tie_word_embeddings=False)
    (folder / "manifest.json").unlink()
    tensors = checkpoint.read_tensors(folder)
    # One feature is always positive, alone survives the last norm, and speaks for ESC alone.
    tensors["model.embed_tokens.weight"][:, 0] = 10.0
    tensors["model.norm.weight"][:] = 0.0
    tensors["model.norm.weight"][0] = 1.0
    tensors["lm_head.weight"][:] = 0.0
    tensors["lm_head.weight"][int(Tokenizer.load(folder).encode("\x1b")[0]), 0] = 50.0
    checkpoint.save_weights(folder / checkpoint.WEIGHTS, tensors)
    flags = ["run", "-m", folder, "--temperature", "0", "--max-tokens", "8", "hi"]
    assert redraft(*flags).out == "\x1b" * 8 + "\n"
    sent = terminal(*flags).sent
    assert printed_last(sent).startswith("␛" * 8 + "\n")
    assert "\x1b\x1b" not in sent
