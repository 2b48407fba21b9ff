"""redraft bench and redraft eval as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from redraft.cli.bench import NAMES
from redraft.evaluation.benches import BENCHES
from tests.cli.conftest import Redraft
from tests.cli.models import write_network

COMMON = ("--backend", "torch", "--quick", "--tokens", "8", "--prompts", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("models") / "tiny-random", max_position_embeddings=1024)


def test_every_bench_has_a_name_on_the_command_line() -> None:
    assert list(BENCHES) == list(NAMES)


@pytest.mark.parametrize("name", ["speed", "batch"])
def test_json_is_one_object(redraft: Redraft, folder: Path, name: str) -> None:
    shown = redraft("bench", name, "-m", folder, *COMMON, "--no-peers", "--json")
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.count("\n") == 1
    told = json.loads(shown.out)
    assert told["model"] == "tiny-random"
    assert told["backend"] == "torch"
    assert list(told["modes"])[:3] == ["ar", "diffusion", "verified"]
    assert "peers" not in told


def test_a_report_and_a_picture(redraft: Redraft, folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "frontier.svg"
    shown = redraft("bench", "frontier", "-m", folder, *COMMON, "--threshold", "0.3", "--plot", picture)
    assert (shown.status, shown.err) == (0, "")
    assert "diffusion p>0.3 T=0" in shown.out
    assert "<svg" in picture.read_text()[:2000]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sped"], "there is no bench 'sped', did you mean speed?"),
        (["speed", "--prompts", "0"], "--prompts must be 1 or more, not 0"),
        (["speed", "--tokens", "-1"], "--tokens must be 1 or more"),
        (["speed", "--canvas", "0"], "--canvas must be 1 or more"),
        (["speed", "--threshold", "nan"], "--threshold must be a number"),
        (["speed", "--temperature", "-1"], "--temperature must be a number of 0 or more"),
        (["speed", "--threshold", "0.5", "--threshold", "0.6"], "give --threshold once"),
        (["speed", "--draft-steps", "0"], "--draft-steps must be 1 or more"),
        (
            ["speed", "--draft-layout", "wide"],
            "--draft-layout must be one of auto, strided, branches, separate",
        ),
        (["frontier", "--effort", "low"], "leave out --effort"),
        (["speed", "--plot", "a.jpg"], "must end in one of .png, .svg, .pdf"),
        (["speed", "--plot", "/no/such/a.png"], "there is no folder /no/such"),
        (["speed", "--prompts", "100000"], "ask for fewer with --prompts"),
        (["speed", "--data", "/no/such"], "holds no test data"),
        (["speed", "--model", "/no/such"], "there is no folder /no/such"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    redraft: Redraft, folder: Path, arguments: list[str], message: str
) -> None:
    model = [] if "--model" in arguments else ["--model", folder, "--backend", "torch"]
    shown = redraft("bench", *arguments, *model)
    assert shown.status == 2
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert message in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["likelihod"], "there is no task 'likelihod', did you mean likelihood?"),
        (["likelihood"], "needs --data"),
        (["likelihood", "--data", "/no/such"], "holds no valid data"),
        (["likelihood", "--data", "/no/such", "--copies", "1"], "--copies must be 2 or more"),
        (["likelihood", "--data", "/no/such", "--documents", "-1"], "--documents must be 0 or more"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    redraft: Redraft, folder: Path, arguments: list[str], message: str
) -> None:
    shown = redraft("eval", *arguments, "--model", folder)
    assert shown.status == 2
    assert shown.err.count("\n") == 1
    assert message in shown.err


def test_likelihood_of_prepared_data(redraft: Redraft, folder: Path, tmp_path: Path) -> None:
    from redraft.training.data import Document, encode_document, write_corpus
    from tests.hub.conftest import byte_level

    document = Document((("user", "Hi."), ("assistant", "Hello! Where to?")))
    tokenizer = byte_level()
    ids = encode_document(tokenizer, document)
    write_corpus(tmp_path, "valid", [ids], [0], len(document.text.encode()), tokenizer.get_vocab_size())
    shown = redraft("eval", "likelihood", "-m", folder, "--data", tmp_path, "--copies", "2", "--json")
    assert (shown.status, shown.err) == (0, "")
    told = json.loads(shown.out)
    assert told["model"] == "tiny-random"
    assert told["likelihood"]["tokens"] == len(ids) - 1
    assert told["likelihood"]["bytes"] == len("User: Hi.\nAssistant: Hello! Where to?")
    report = redraft("eval", "likelihood", "-m", folder, "--data", tmp_path, "--copies", "2")
    assert report.out.startswith("valid: 1 documents")
