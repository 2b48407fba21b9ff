"""What a person's Python may rely on."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import redraft
from redraft.api import Model
from redraft.denoiser import checkpoint
from redraft.engine import Commit, Step
from redraft.engine.backend import Pass
from redraft.errors import RequestError
from tests.engine.models import NOTHING, network, write_model

torch.set_num_threads(1)
TURN = [{"role": "user", "content": "I want to fly to Zürich."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny-test")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return redraft.load(folder, backend="torch")


def test_importing_redraft_imports_neither_torch_nor_its_own_parts() -> None:
    code = (
        "import redraft, sys; assert not {'torch', 'transformers', 'numpy', 'redraft.api'} & set(sys.modules);"
        "import redraft.api, redraft.engine.scheduler; assert 'torch' not in sys.modules; redraft.load"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": "src"}, cwd=Path(__file__).parents[1]
    )
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        redraft.nothing  # noqa: B018


@pytest.mark.parametrize("decode", ["diffusion", "ar", "verified"])
def test_a_completion_says_what_was_done(model: Model, decode: str) -> None:
    done = model.generate(TURN, max_tokens=10, seed=3, decode=decode, ignore_eos=True)
    assert done.model == "tiny-test"
    assert done.decode == decode
    assert done.seed == 3
    assert (done.finish_reason, done.tokens, len(done.token_ids)) == ("length", 10, 10)
    assert done.prompt_tokens == len(model.tokenizer.render(TURN))
    assert done.text == model.tokenizer.decode(done.token_ids)
    assert done.tokens_per_forward == done.tokens / done.nfe
    assert 0 < done.prefill_seconds < done.seconds
    assert done.time_to_first_draft is not None
    assert done.prefill_seconds <= done.time_to_first_draft <= done.seconds
    assert done.tokens_per_second == pytest.approx(10 / (done.seconds - done.prefill_seconds))
    told = done.to_json()
    assert list(told) == [
        *(
            "model",
            "text",
            "finish_reason",
            "prompt_tokens",
            "tokens",
            "nfe",
            "tokens_per_forward",
            "seconds",
        ),
        *("prefill_seconds", "time_to_first_draft", "tokens_per_second", "seed", "decode"),
    ]
    assert json.loads(json.dumps(told)) == told


def test_the_same_seed_gives_the_same_answer_streamed_or_not(model: Model) -> None:
    for decode in ("diffusion", "ar", "verified"):
        options: dict[str, Any] = {"seed": 5, "temperature": 1.0, "decode": decode, "max_tokens": 16}
        whole = model.generate("fly to", **options)
        stream = model.stream("fly to", **options)
        events = list(stream)
        tokens = tuple(t for e in events if isinstance(e, Commit) for t in e.tokens)
        assert tokens == whole.token_ids == stream.completion.token_ids
        assert stream.completion.text == whole.text
        assert stream.completion.nfe == whole.nfe
        assert events[-1].nfe == whole.nfe
    drawn = [model.generate("fly to", temperature=2.0, max_tokens=8).seed for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_streams_side_by_side_share_the_engine_and_nothing_else(model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.8, "ignore_eos": True}
    alone = [
        model.generate(text, seed=n, **options).token_ids for n, text in enumerate(("fly", "book", "table"))
    ]
    streams = [model.stream(text, seed=n, **options) for n, text in enumerate(("fly", "book", "table"))]
    turn = [iter(s) for s in streams]
    while turn:
        turn = [s for s in turn if next(s, None) is not None]
    assert [s.completion.token_ids for s in streams] == alone


def test_threads_may_ask_at_once(model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 10, "temperature": 0.9}
    words = [f"fly to {n}" for n in range(6)]
    alone = [model.generate(word, seed=n, **options).token_ids for n, word in enumerate(words)]
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(model.generate, word, seed=n, **options) for n, word in enumerate(words)]
        assert [job.result(timeout=120).token_ids for job in jobs] == alone


def test_a_stream_left_early_keeps_what_was_committed(model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 24, "seed": 1, "ignore_eos": True}
    whole = model.generate("Where", **options)
    stream = model.stream("Where", **options)
    seen = []
    for event in stream:
        seen.append(event)
        if isinstance(event, Commit):
            break
    done = stream.completion
    assert done.finish_reason == "interrupted"
    assert done.token_ids == seen[-1].tokens == whole.token_ids[: done.tokens]  # type: ignore[union-attr]
    assert 0 < done.tokens < 24
    assert list(stream) == []
    assert not any(t.writer and not t.done for t in model.engine._active)
    untouched = model.stream("Where", **options).completion
    assert (untouched.finish_reason, untouched.tokens, untouched.nfe) == ("interrupted", 0, 0)
    assert untouched.tokens_per_second == 0.0
    assert model.generate("Where", **options).token_ids == whole.token_ids


def test_a_conversation_goes_on_from_what_was_read(model: Model, folder: Path) -> None:
    turns: list[dict[str, Any]] = list(TURN)
    fresh = redraft.load(folder, backend="torch")
    fresh.engine._prefixes.most = 0
    for turn in range(3):
        options: dict[str, Any] = {"seed": turn, "temperature": 0.7, "max_tokens": 9}
        stream = model.stream(turns, **options)
        for _ in stream:
            pass
        assert stream.completion.token_ids == fresh.generate(turns, **options).token_ids
        if turn:
            assert stream._ticket.reused > len(model.tokenizer.render(TURN)) - 2
        turns += [
            {"role": "assistant", "content": stream.completion.text},
            {"role": "user", "content": "today"},
        ]


def test_saved_and_loaded_gives_the_same_logits(tmp_path: Path) -> None:
    from redraft.engine.backends.torch_backend import TorchBackend

    first = TorchBackend(network(seed=4))
    checkpoint.save(first.model, tmp_path)
    second = TorchBackend.load(tmp_path)
    canvas = np.arange(5)
    before, after = (
        b.forward(
            [Pass(b.new_context(4), np.arange(9), "all"), Pass(b.new_context(4), NOTHING, canvas=canvas)]
        )
        for b in (first, second)
    )
    np.testing.assert_array_equal(before[0].encode, after[0].encode)
    np.testing.assert_array_equal(before[1].canvas, after[1].canvas)


def test_defaults_come_from_the_model_and_effort_changes_them(model: Model) -> None:
    usual = model.request("Hi")
    assert usual.max_tokens == 24
    assert (usual.sampler.canvas_length, usual.sampler.threshold, usual.sampler.max_steps) == (8, 0.8, 8)
    low = model.request("Hi", effort="low")
    assert (low.sampler.threshold, low.sampler.max_steps) == (0.5, 4)
    mine = model.request("Hi", effort="low", threshold=0.6, canvas=5, steps=2, stop="x", top_k=4, top_p=0.5)
    sampler = mine.sampler
    assert (sampler.threshold, sampler.canvas_length, sampler.max_steps) == (0.6, 5, 2)
    assert (sampler.top_k, sampler.top_p, mine.stop) == (4, 0.5, ("x",))


def test_a_stop_string_ends_the_text_before_it(model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 20, "ignore_eos": True, "seed": 2, "temperature": 1.0}
    text = model.generate("Hi", decode="ar", **options).text
    stop = text[6:9]
    for decode in ("ar", "verified"):
        done = model.generate("Hi", decode=decode, stop=[stop], **options)
        assert (done.text, done.finish_reason) == (text[: text.find(stop)], "stop")


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    ("", {}, "the prompt is empty"),
    ([], {}, "messages is empty"),
    ([{"role": "user"}], {}, "message 0: content must be a string"),
    (7, {}, "messages must be a list"),
    ("\ud800", {}, "the text isn't valid UTF-8"),
    ("Hi", {"temperature": math.nan}, "temperature must be a number"),
    ("Hi", {"temperature": -1}, "temperature must be a number"),
    ("Hi", {"top_p": 0.0}, "top_p must be a number above 0 and at most 1"),
    ("Hi", {"top_p": 1.5}, "top_p must be a number above 0 and at most 1"),
    ("Hi", {"top_k": -1}, "top_k must be"),
    ("Hi", {"max_tokens": 0}, "max_tokens must be a whole number of at least 1"),
    ("Hi", {"max_tokens": 10**9}, "max_tokens is 1000000000; the context holds"),
    ("Hi", {"threshold": 2.0}, "threshold must be a number"),
    ("Hi", {"canvas": 0}, "canvas_length must be"),
    ("Hi", {"steps": 0}, "max_steps must be"),
    ("Hi", {"decode": "telepathy"}, "decode 'telepathy' is unknown; one of diffusion, ar, verified"),
    ("Hi", {"effort": "hihg"}, "unknown effort 'hihg', did you mean high?"),
    ("Hi", {"stop": [""]}, "stop must be texts"),
    ("Hi " * 300, {}, "the prompt has"),
]


@pytest.mark.parametrize(("prompt", "options", "line"), WRONG, ids=[line[:24] for *_, line in WRONG])
def test_wrong_arguments_are_refused_in_one_line(
    model: Model, prompt: Any, options: dict[str, Any], line: str
) -> None:
    for call in (model.generate, model.stream):
        with pytest.raises(RequestError) as caught:
            call(prompt, **options)
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)
    assert not model.engine.has_work


def test_models_and_backends_that_do_not_exist(folder: Path) -> None:
    with pytest.raises(RequestError, match="unknown model 'no-such-model'"):
        redraft.load("no-such-model")
    with pytest.raises(RequestError, match="backend 'abacus' is unknown; one of auto, onnx, torch"):
        redraft.load(folder, backend="abacus")


def test_score_is_a_likelihood_in_nats_of_the_whole_text(model: Model) -> None:
    text = "I want to fly to Zürich today."
    score = model.score(text, strata=2, replicates=2)
    ids = model.tokenizer.encode(text)
    assert score.tokens == len(ids) - 1
    assert score.bytes == len(text.encode()) - len(model.tokenizer.token_bytes(int(ids[0])))
    assert score.ar_nll is not None
    assert score.ar_nll > 0
    assert score.nelbo is not None
    assert score.nelbo_se is not None
    assert score.nelbo_se > 0
    assert score == model.score(text, strata=2, replicates=2)
    assert set(score.to_json()) == {"ar_nll", "nelbo", "nelbo_se", "tokens", "bytes"}
    with pytest.raises(RequestError, match="too short"):
        model.score("I")


def test_steps_show_the_canvas_with_its_states(model: Model) -> None:
    stream = model.stream(TURN, max_tokens=8, ignore_eos=True, seed=0)
    steps = [event for event in stream if isinstance(event, Step)]
    assert [step.step for step in steps[:3]] == [1, 2, 3]
    assert all(step.tokens.dtype == np.int64 and step.state.dtype == np.uint8 for step in steps)
    assert all(step.probability.dtype == step.entropy.dtype == np.float32 for step in steps)


def test_a_default_check_gives_way_to_canvases_that_settle_by_themselves() -> None:
    model = redraft.load("redraft-tiny")
    usual = model.request("Hello there")
    assert usual.check_ratio == model.defaults.check_ratio is not None
    for given in ({"threshold": 0.8}, {"steps": 4}, {"canvas": "auto"}, {"check": 0}):
        assert model.request("Hello there", **given).check_ratio is None
    assert model.request("Hello there", threshold=0.8).sampler.canvas_length == model.config.canvas_length
    assert model.request("Hello there", threshold=0.8, check=0.4).check_ratio == 0.4
    for decode in ("ar", "verified"):
        assert model.request("Hello there", decode=decode).check_ratio is None
