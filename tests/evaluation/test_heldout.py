"""Likelihood of a prepared split: bytes, sums, and agreement with the engine's own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from redraft.api import Model
from redraft.denoiser import checkpoint
from redraft.errors import RequestError
from redraft.evaluation.heldout import HeldOutSettings, chosen, likelihood, lines, transcript_bytes
from redraft.training.data import Corpus
from tests.engine.models import network


def test_bytes_of_tokens_are_those_of_the_transcript(model: Model, data: Path) -> None:
    corpus = Corpus(data, "valid")
    documents = [corpus[i] for i in range(len(corpus))]
    assert transcript_bytes(documents, model.tokenizer) == corpus.about["bytes"]
    assert transcript_bytes(documents[1:2], model.tokenizer) == len(
        b"User: Hi.\nAssistant: Hello! What can I do for you today?"
    )


def test_a_draw_of_documents_is_fixed_by_its_seed(model: Model, data: Path) -> None:
    corpus = Corpus(data, "valid")
    some, size = chosen(corpus, model.tokenizer, HeldOutSettings(documents=2, seed=1))
    again, _ = chosen(corpus, model.tokenizer, HeldOutSettings(documents=2, seed=1))
    assert [d.tolist() for d in some] == [d.tolist() for d in again]
    assert size == transcript_bytes(some, model.tokenizer)
    every, total = chosen(corpus, model.tokenizer, HeldOutSettings())
    assert (len(every), total) == (3, corpus.about["bytes"])


def test_ar_nats_are_those_of_the_engine(folder: Path, model: Model, data: Path) -> None:
    from redraft.engine.likelihood import likelihood as score

    told = likelihood(folder, data, HeldOutSettings(copies=2))
    corpus = Corpus(data, "valid")
    documents = [corpus[i] for i in range(len(corpus))]
    expected = sum(score(model.backend, d, replicates=1, strata=1).ar_nll for d in documents)
    tokens = sum(len(d) - 1 for d in documents)
    assert told["tokens"] == tokens
    assert told["ar_nats_per_token"] == pytest.approx(expected / tokens, rel=1e-5)
    assert told["ar_bits_per_byte"] == pytest.approx(expected / math.log(2) / corpus.about["bytes"], rel=1e-5)
    ratio = told["nelbo_nats_per_token"] / told["nelbo_bits_per_byte"]
    assert ratio == pytest.approx(told["nelbo_nats_per_token_se"] / told["nelbo_bits_per_byte_se"])
    assert told["nelbo_nats_per_token_se"] > 0
    assert len(lines(told)) == 3


def test_more_copies_narrow_the_error(folder: Path, data: Path) -> None:
    few = likelihood(folder, data, HeldOutSettings(copies=2))
    many = likelihood(folder, data, HeldOutSettings(copies=32))
    assert many["nelbo_nats_per_token_se"] < few["nelbo_nats_per_token_se"]
    spread = 5 * np.hypot(few["nelbo_nats_per_token_se"], many["nelbo_nats_per_token_se"])
    assert few["nelbo_nats_per_token"] == pytest.approx(many["nelbo_nats_per_token"], abs=spread)


def test_bad_requests(folder: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="even number"):
        likelihood(folder, data, HeldOutSettings(copies=3))
    with pytest.raises(RequestError, match="holds no nothing data"):
        likelihood(folder, data, HeldOutSettings(split="nothing"))
    checkpoint.save(network(null_token_id=None), tmp_path / "plain")
    with pytest.raises(RequestError, match="mask and null"):
        likelihood(tmp_path / "plain", data, HeldOutSettings())
