"""redraft models pull, and what an AR base does when it is asked for diffusion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Redraft
from tests.hub.gguf_files import tiny_gguf

pytest.importorskip("gguf", reason="in the extra `gguf`, which make test installs")


def test_a_gguf_file_is_pulled_and_writes_from_left_to_right(redraft: Redraft, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "mine.gguf")
    pulled = redraft("models", "pull", str(path), "--json")
    assert pulled.status == 0
    told = json.loads(pulled.out)
    assert (told["name"], told["source"], told["fetched"]) == ("mine", str(path), True)
    assert "converting" in pulled.err
    assert "mine was already in the store" in redraft("models", "pull", str(path)).out
    for backend in ("auto", "torch", "onnx"):
        answer = redraft(
            "run", "-m", "mine", "--decode", "ar", "--max-tokens", "4", "--backend", backend, "--json", "the"
        )
        assert answer.status == 0
        assert json.loads(answer.out)["decode"] == "ar"
    for decode in ("diffusion", "verified"):
        refused = redraft("run", "-m", "mine", "--decode", decode, "the")
        assert (refused.status, refused.out) == (2, "")
        assert "only writes from left to right: use --decode ar, or adapt it first" in refused.err
        assert len(refused.err.splitlines()) == 1


def test_what_can_be_pulled_is_listed(redraft: Redraft) -> None:
    assert json.loads(redraft("models", "list", "--json").out)["to_pull"] == ["smollm2-135m", "redraft-135m"]
    assert "redraft models pull: smollm2-135m" in redraft("models", "list").out


def test_an_unknown_source_gets_one_line(redraft: Redraft) -> None:
    refused = redraft("models", "pull", "smolm2-135m")
    assert refused.status == 2
    assert "did you mean smollm2-135m" in refused.err
    assert len(refused.err.splitlines()) == 1
