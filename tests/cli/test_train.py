"""redraft prepare and train, from text to a network that answers, and what is wrong with a request."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch._dynamo

from tests.cli.conftest import Redraft, Terminal

# What training imports when it starts, so that forked processes needn't, one after another.
assert torch._dynamo
plt.switch_backend("Agg")

RECIPE = """\
name: toy
data: {folder}/data
prepare:
  vocab_size: 300
  holdout: 4
  sources: [{{path: {folder}/talk.jsonl, format: dialogue}}]
model: {{hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1,
  head_dim: 16, max_position_embeddings: 96}}
canvas: {{lengths: [8], length_weights: [1]}}
train: {{steps: 4, batch_rows: 2, row_length: 64, log_every: 1, evaluate_every: 2, evaluate_rows: 2, save_every: 2,
  threads: 1, sample_prompts: ["Where to?"]}}
"""


def write_inputs(folder: Path) -> Path:
    """A recipe and the dialogues that it names."""
    turns = [
        "User: Where do you want to go {n}?",
        "Assistant: To the hall {n}.",
        "User: Thanks!",
        "Assistant: Bye.",
    ]
    records = [{"text": "\n".join(turns).replace("{n}", str(n))} for n in range(24)]
    (folder / "talk.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    recipe = folder / "toy.yaml"
    recipe.write_text(RECIPE.format(folder=folder))
    return recipe


@pytest.fixture
def recipe(tmp_path: Path, redraft: Redraft) -> Path:
    """A recipe whose data is prepared."""
    path = write_inputs(tmp_path)
    shown = redraft("prepare", path, "--json")
    assert (shown.status, shown.err) == (0, "")
    told = json.loads(shown.out)
    assert told["folder"] == f"{tmp_path}/data"
    assert {split: about["documents"] for split, about in told["splits"].items()} == {
        "train": 20,
        "valid": 4,
        "test": 0,
    }
    return path


def test_from_text_to_a_network_that_answers(redraft: Redraft, recipe: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shown = redraft("train", recipe, "--out", runs, "--json")
    told = json.loads(shown.out)
    assert (shown.status, told["last"]["step"]) == (0, 4)
    assert {"loss", "ar_loss", "valid_ar", "valid_nelbo", "tokens_per_second"} <= told["last"].keys()
    assert "step 1/4 · loss " in shown.err
    assert "held-out AR" in shown.err
    assert "  Where to? → " in shown.err  # a sample
    assert "\x1b" not in shown.err
    answered = redraft("run", "-m", told["checkpoint"], "--max-tokens", "9", "--json", "Where to?")
    assert answered.status == 0
    assert json.loads(answered.out)["model"] == Path(told["checkpoint"]).name

    again = redraft("train", recipe, "--out", runs)
    assert (again.status, again.out) == (2, "")
    assert "already holds a run; go on with --resume or choose another folder" in again.err
    on = redraft("train", recipe, "--out", runs, "--resume", "--set", "train.steps=6", "--json")
    assert (on.status, json.loads(on.out)["last"]["step"]) == (0, 6)


def test_ctrl_c_keeps_a_checkpoint_that_resume_goes_on_from(
    terminal: Terminal, redraft: Redraft, recipe: Path, tmp_path: Path
) -> None:
    flags = ["train", recipe, "--out", tmp_path / "runs"]
    long = ["--set", "train.steps=100000", "--set", "train.evaluate_every=100000"]
    screen = terminal(*flags, *long, keys=[("/100000 · loss", "\x03")], columns=120)
    assert screen.status == 130
    assert "━" in screen.sent  # the live bar
    assert "go on with --resume" in screen.sent
    assert "Traceback" not in screen.sent
    stopped = max(int(p.name.removeprefix("step-")) for p in (tmp_path / "runs").glob("step-*"))
    assert stopped >= 1
    on = redraft(*flags, "--resume", "--set", f"train.steps={stopped + 1}", "--json")
    assert (on.status, json.loads(on.out)["last"]["step"]) == (0, stopped + 1)


def test_files_can_be_prepared_without_a_recipe(redraft: Redraft, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("One paragraph.\n\nAnother one.\n\nA third.\n")
    flags = ["--vocab-size", "300", "--holdout", "0", "--out", tmp_path / "data"]
    shown = redraft("prepare", text, *flags)
    assert (shown.status, shown.err) == (0, "")
    assert "train  documents" in shown.out
    assert (tmp_path / "data" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "{folder}/none.yaml"], "none.yaml can't be read"),
        (["train", "{recipe}", "--set", "train.stpes=1"], "train.stpes (did you mean steps?)"),
        (["train", "{recipe}", "--set", "train.steps=many"], "train.steps"),
        (["train", "{recipe}", "--set", "train.steps"], "--set takes key=value"),
        (["train", "{recipe}"], "run redraft prepare first"),
        (["train", "{recipe}", "--resume"], "run redraft prepare first"),
        (["train"], "Missing argument 'recipe' (see `redraft train --help`)"),
        (["prepare", "{folder}/talk.jsonl"], "--out is needed to prepare files"),
        (["prepare", "{folder}/talk.jsonl", "--out", "{folder}/d", "--set", "a=1"], "--set changes a recipe"),
        (["prepare", "{folder}/talk.jsonl", "--out", "{folder}/d", "--vocab-size", "7"], "--vocab-size: "),
        (["prepare", "{folder}/talk.jsonl", "--out", "{folder}/d", "--format", "prose"], "--format: "),
        (["prepare", "{folder}/none.jsonl", "--out", "{folder}/d"], "none.jsonl"),
        (["prepare", "{folder}/empty.jsonl", "--out", "{folder}/d"], "empty.jsonl"),
        (["prepare", "{recipe}", "--set", "prepare=null"], "has no prepare section"),
        (["prepare", "{recipe}", "--out", "{folder}/toy.yaml/below"], "can't be made"),
    ],
)
def test_a_wrong_request_is_status_2_and_one_line(
    redraft: Redraft, tmp_path: Path, arguments: list[str], line: str
) -> None:
    recipe = write_inputs(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    filled = [a.replace("{folder}", str(tmp_path)).replace("{recipe}", str(recipe)) for a in arguments]
    shown = redraft(*filled)
    assert (shown.status, shown.out) == (2, "")
    assert line in shown.err
    assert shown.err.count("\n") == 1


def test_a_run_folder_that_cannot_be_written(redraft: Redraft, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown = redraft("train", recipe, "--out", tmp_path / "file" / "run")
    assert (shown.status, shown.out) == (2, "")
    assert "can't be made" in shown.err
    shutil.rmtree(tmp_path / "data")
    assert "run redraft prepare first" in redraft("train", recipe).err
