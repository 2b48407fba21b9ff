"""llama.cpp on a file that redraft wrote: the same greedy text as decode "ar"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import redraft
from redraft.evaluation import peers
from redraft.hub import to_gguf
from redraft.hub.store import resolve
from redraft.hub.tokenizer import Tokenizer
from tests.cli.models import write_network

pytest.importorskip("gguf", reason="in the extra `gguf`, which make test installs")


def both(folder: Path, prompt: np.ndarray, tokens: int, place: Path) -> tuple[list[int], dict[str, Any]]:
    """Greedy AR from the same prompt: our tokens, llama.cpp's answer."""
    pytest.importorskip("xllamacpp", reason="llama.cpp is in the extra `peers`")
    model = redraft.load(folder, backend="torch")  # float32, as the file is
    ours = model.generate(prompt, decode="ar", temperature=0.0, max_tokens=tokens, ignore_eos=True)
    to_gguf.export(folder, place / "model.gguf")
    server = peers.llama_cpp(place / "model.gguf", 192, threads=1)
    return list(ours.token_ids), peers.complete(
        server, prompt, tokens, model.config.special_slot_ids, ids=True
    )


@pytest.mark.parametrize("family", [{}, {"qk_norm": True}, {"attention_bias": True}])
def test_llama_cpp_writes_the_same_from_random_weights(tmp_path: Path, family: dict[str, Any]) -> None:
    """Pairs of rows of q and k in the wrong order, a norm or a bias left out would all show. Random tokens make broken
    characters, for which llama.cpp tells bytes and not every token."""
    folder = write_network(tmp_path / "mine", **family)
    prompt = np.random.default_rng(0).integers(6, 300, 12)
    ours, theirs = both(folder, prompt, 40, tmp_path)
    pieces = Tokenizer.load(folder)
    due, found = b"".join(pieces.token_bytes(token) for token in ours), peers.written(theirs)
    assert theirs["usage"]["completion_tokens"] == len(ours) == 40
    assert len(found) > len(due) // 2
    assert found == due[: len(found)]


def test_llama_cpp_writes_what_the_shipped_model_does(tmp_path: Path) -> None:
    folder = resolve("redraft-tiny").path
    prompt = Tokenizer.load(folder).encode("I need a table for two")
    ours, theirs = both(folder, prompt, 48, tmp_path)
    assert len(set(ours)) > 8
    assert peers.token_ids(theirs) == ours


def test_it_says_why_it_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = peers.PEERS["llama.cpp"]
    folder = write_network(tmp_path / "full", layout="full", canvas_rows_marked=False)
    monkeypatch.setattr(peers, "find_spec", lambda name: object())
    assert "layout full" in (llama.missing(folder) or "")
    assert llama.missing(write_network(tmp_path / "mine")) is None
    (tmp_path / "mine" / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')
    assert "no byte-level BPE" in (llama.missing(tmp_path / "mine") or "")
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "xllamacpp" else object())
    assert llama.missing(folder) == "xllamacpp is not installed"
