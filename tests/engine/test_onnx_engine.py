"""The engine on the ONNX backend: torch's answers, and `verified` telling what `ar` tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.engine.backend import Backend
from redraft.engine.backends.onnx_backend import OnnxBackend
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.engine.request import Request
from redraft.engine.scheduler import Engine
from redraft.sampling import SamplerSettings
from tests.engine.onnx_models import denoiser, onnx, tokens

EOS = 1


def answers(
    backend: Backend, requests: Sequence[Request], max_batch: int = 8
) -> list[tuple[list[int], str | None]]:
    """Token ids and finish_reason of each request, all submitted at once."""
    engine = Engine(backend, lambda token: bytes([97 + token % 26]), max_batch=max_batch, prefix_contexts=2)
    tickets = [engine.submit(request) for request in requests]
    while engine.has_work:
        engine.step()
    outputs = [ticket.writer.output for ticket in tickets if ticket.writer is not None]
    assert len(outputs) == len(requests)
    return [(list(output.tokens), output.finish_reason) for output in outputs]


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(int(t) for t in 2 + tokens(length, seed) % 44)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def backend(request: pytest.FixtureRequest) -> OnnxBackend:
    return onnx(denoiser(seed=5, eos_token_ids=(EOS,), max_position_embeddings=256), request.param)


@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True}, {"layout": "block_causal"}, {"shift": True}], ids=str
)
def test_the_same_tokens_as_torch(options: dict) -> None:
    """Greedy answers of both backends; random weights leave no near ties between so few choices (seed fixed)."""
    model = denoiser(seed=5, eos_token_ids=(EOS,), max_position_embeddings=256, **options)
    modes = ["diffusion"] if options.get("layout") else ["diffusion", "ar", "verified"]
    requests = [
        Request(prompt(8 + 5 * i, i), mode, SamplerSettings(canvas_length=8), max_tokens=24, ignore_eos=True)
        for i, mode in enumerate(modes)
    ]
    theirs, ours = answers(TorchBackend(model), requests), answers(onnx(model), requests)
    assert ours == theirs
    assert all(len(t) == 24 for t, _ in ours)
    assert len({tuple(t) for t, _ in ours}) == len(ours)


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_verified_tells_what_ar_tells(backend: OnnxBackend, data: st.DataObject) -> None:
    """Greedy and sampled, odd canvases, mixed with other requests in one batch: the same ids and finish_reason."""
    draw = data.draw
    requests = []
    for i in range(draw(st.integers(1, 3))):
        sampler = SamplerSettings(
            canvas_length=draw(st.integers(3, 11)),
            threshold=0.1,
            temperature=draw(st.sampled_from([0.0, 0.7, 1.3])),
            top_k=draw(st.sampled_from([0, 5])),
            top_p=draw(st.sampled_from([1.0, 0.9])),
        )
        verified = Request(
            prompt(draw(st.integers(1, 30)), i),
            "verified",
            sampler,
            max_tokens=draw(st.integers(1, 20)),
            seed=draw(st.integers(0, 999)),
            draft_steps=draw(st.integers(1, 3)),
            draft_layout=draw(st.sampled_from(["strided", "branches", "separate"])),
            ignore_eos=draw(st.booleans()),
        )
        requests.append(verified)
    alone = [answers(backend, [replace(r, decode="ar")])[0] for r in requests]
    others = [replace(requests[0], decode="diffusion", seed=7), replace(requests[0], decode="ar", seed=8)]
    together = answers(backend, [others[0], *requests, others[1]], max_batch=draw(st.integers(1, 5)))
    assert together[1:-1] == alone


def test_a_conversation_goes_on_from_a_kept_context(backend: OnnxBackend) -> None:
    """Prefix reuse changes no token: the second turn alone and after the first."""
    first = Request(prompt(20), "ar", max_tokens=10, ignore_eos=True)
    reply = answers(backend, [first])[0][0]
    second = replace(first, prompt=(*first.prompt, *reply, *prompt(5, 3)), decode="diffusion")
    alone = answers(backend, [second])[0]
    engine = Engine(backend, lambda token: b"a")
    for request in (first, second):
        ticket = engine.submit(request)
        while engine.has_work:
            engine.step()
    assert ticket.reused >= len(first.prompt)
    assert ticket.writer is not None
    assert list(ticket.writer.output.tokens) == alone[0]
    assert np.asarray(alone[0]).size == 10
