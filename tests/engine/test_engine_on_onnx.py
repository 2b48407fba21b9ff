"""The engine's promises on the backend that needs no torch."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from redraft.denoiser.checkpoint import state_dict
from redraft.engine import Engine, Request
from redraft.engine.likelihood import likelihood
from redraft.sampling import SamplerSettings
from tests.engine.models import backend, finish, network, prompt, token_bytes, told
from tests.engine.test_engine import MODES, finish_quietly, some_request
from tests.engine.test_verified import options

onnx_backend = pytest.importorskip("redraft.engine.backends.onnx_backend")


@functools.cache
def onnx(precision: str = "fp32", **changes: object) -> onnx_backend.OnnxBackend:  # type: ignore[name-defined]
    model = network(**changes)
    tensors = {name: tensor.numpy() for name, tensor in state_dict(model).items()}
    return onnx_backend.OnnxBackend(model.config, tensors, precision, threads=1)


@pytest.mark.parametrize("precision", ["fp32", "blocks", "int8"])
def test_verified_is_ar(precision: str) -> None:
    engine = Engine(onnx(precision), token_bytes, max_batch=10)
    pairs = [
        [engine.submit(Request(decode=mode, **options(seed))) for mode in ("ar", "verified")]
        for seed in range(60)
    ]
    finish_quietly(engine)
    for ar, verified in pairs:
        assert told(ar)[:3] == told(verified)[:3], ar.request


@pytest.mark.parametrize("precision", ["fp32", "blocks", "int8"])
def test_an_answer_is_the_same_alone_and_in_company(precision: str) -> None:
    rng = np.random.default_rng(1)
    requests = [some_request(rng, n) for n in range(12)]
    alone = []
    for request in requests:
        engine = Engine(onnx(precision), token_bytes, prefix_contexts=0)
        ticket = engine.submit(request)
        finish(engine, [ticket])
        alone.append(told(ticket))
    engine = Engine(onnx(precision), token_bytes, max_batch=5)
    tickets = []
    for request in requests:
        tickets.append(engine.submit(request))
        engine.step()
    finish_quietly(engine)
    assert [told(ticket) for ticket in tickets] == alone


@pytest.mark.parametrize("family", [{}, {"layout": "block_causal"}, {"shift": True}, {"layout": "full"}])
def test_both_backends_write_and_score_the_same(family: dict[str, object]) -> None:
    text = np.array(prompt(21))
    ours, theirs = (likelihood(b, text, 4, seed=2) for b in (onnx(**family), backend(**family)))
    assert ours.nelbo == pytest.approx(theirs.nelbo, rel=1e-4)
    assert ours.ar_nll == (None if theirs.ar_nll is None else pytest.approx(theirs.ar_nll, rel=1e-4))
    modes = ("diffusion",) if family.get("layout") else MODES
    for mode in modes:
        answers = []
        for b in (onnx(**family), backend(**family)):
            engine = Engine(b, token_bytes)
            ticket = engine.submit(
                Request(prompt(), mode, SamplerSettings(threshold=0.4), max_tokens=16, seed=1)
            )
            finish(engine, [ticket])
            answers.append(told(ticket))
        assert answers[0] == answers[1]
