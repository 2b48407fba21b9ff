"""What the benches report, on a tiny model: shapes, sums and contracts, never a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from redraft.api import Model
from redraft.denoiser import checkpoint
from redraft.engine import Engine
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.errors import RedraftError, RequestError
from redraft.evaluation import batching, latency, speed
from redraft.evaluation.benches import BENCHES, Options, run_bench
from redraft.evaluation.peers import PEER_PROMPTS, PEERS, transformers_twin
from redraft.evaluation.prompts import Dialogues, pick_prompts
from redraft.evaluation.writing import (
    DIFFUSION,
    GREEDY,
    VERIFIED,
    Bench,
    Way,
    fastest_ar,
    unpadded,
    write_all,
)
from tests.denoiser.networks import clean_rows, mask_of, our_logits

MODE_FIELDS = {"tokens_per_second", "step_ms", "tokens_per_forward", "ar_nll", "distinct_3", "tokens"}


@pytest.fixture(scope="module")
def prompts(dialogues: Dialogues) -> list[np.ndarray]:
    return pick_prompts(dialogues, 2, 16)


@pytest.fixture(scope="module")
def told(model: Model, folder: Path) -> dict:
    return run_bench("speed", model, Options(folder=folder, quick=True))


def test_speed_keeps_its_contract(told: dict) -> None:
    assert {"model", "backend", "device", "modes", "ratio"} <= told.keys()
    assert list(told["modes"]) == ["ar", "diffusion", "verified"]
    assert list(told["ratio"]) == ["diffusion", "verified"]
    json.loads(json.dumps(told))
    for mode, m in told["modes"].items():
        assert m.keys() >= MODE_FIELDS
        assert m["tokens"] == 32
        assert m["tokens_per_forward"] == pytest.approx(m["tokens"] / m["nfe"])
        seconds = m["step_ms"] * m["nfe"] / 1000
        assert m["tokens_per_second"] == pytest.approx(m["tokens"] / seconds)
        assert sum(m["split"].values()) == pytest.approx(1.0, abs=1e-6)
        assert m["network_step_ms"] <= m["step_ms"]
        if mode != "ar":
            assert told["ratio"][mode] == pytest.approx(
                m["tokens_per_second"] / told["modes"]["ar"]["tokens_per_second"]
            )
            low, high = told["ratio_interval"][mode]
            assert 0 < low <= high


def test_the_bound_is_tpf_over_the_price_of_a_step() -> None:
    ar = {"network_step_ms": 2.0, "tokens_per_forward": 1.0}
    assert speed.bound({"network_step_ms": 5.0, "tokens_per_forward": 4.0}, ar) == pytest.approx(1.6)


def test_modes_take_turns_in_coming_first() -> None:
    assert [speed._turned("abc", i)[0] for i in range(4)] == ["a", "b", "c", "a"]
    assert sorted(speed._turned("abc", 2)) == ["a", "b", "c"]


def test_a_written_answer_is_the_models_own(model: Model, prompts: list[np.ndarray]) -> None:
    for way in (GREEDY, DIFFUSION, VERIFIED, Way("diffusion", canvas=4, threshold=0.0, temperature=1.0)):
        request = way.request(model, prompts[0], 16, seed=5)
        run = Bench(model).write(request)
        (ticket,) = write_all(model, [request], 8)
        assert ticket.writer is not None
        assert run.tokens == tuple(ticket.writer.output.tokens)
        assert (len(run.tokens), run.nfe) == (16, ticket.writer.nfe)
        assert 0 < run.network + run.sampling <= run.seconds
        assert run.prefill <= run.first_draft <= run.first_commit <= run.total


def test_batches_write_what_single_requests_do(model: Model, dialogues: Dialogues) -> None:
    requests = [DIFFUSION.request(model, p, 12, seed=1) for p in pick_prompts(dialogues, 4, 12)]
    alone, together = ([t.writer.output.tokens for t in write_all(model, requests, n)] for n in (1, 4))
    assert alone == together


def test_no_way_writes_past_the_end_of_the_document(model: Model, prompts: list[np.ndarray]) -> None:
    end = model.config.eos_token_ids[0]
    for way in (Way("ar", temperature=3.0), Way("diffusion", temperature=3.0, threshold=0.0), VERIFIED):
        tickets = write_all(model, [way.request(model, prompts[0], 64, seed=s) for s in range(4)], 4)
        for ticket in tickets:
            assert len(ticket.writer.output.tokens) == 64
            assert end not in ticket.writer.output.tokens


def test_watching_leaves_the_engine_as_it_was(model: Model, prompts: list[np.ndarray]) -> None:
    bench = Bench(model)
    before = bench.write(GREEDY.request(model, prompts[0], 8)).nfe
    assert (before, bench.backend.calls) == (7, 8)
    assert type(bench.engine) is Engine
    assert bench.backend.inner is model.backend


def test_the_baseline_is_padded_only_if_that_is_faster(model: Model, prompts: list[np.ndarray]) -> None:
    bare = unpadded(model.backend)
    assert isinstance(bare, TorchBackend)
    assert bare.row_multiple == 1
    assert bare.model is model.backend.model  # the same weights, not a copy
    assert unpadded(bare) is bare
    request = GREEDY.request(model, prompts[0], 4)
    backend, is_bare = fastest_ar(model, request)
    assert backend.row_multiple == (1 if is_bare else model.backend.row_multiple)


def test_a_backend_may_say_itself_how_to_run_unpadded() -> None:
    class Own:
        name = "own"

        def unpadded(self) -> str:
            return "bare"

    assert unpadded(Own()) == "bare"


def test_single_evaluations_are_timed_for_every_canvas_length(told: dict) -> None:
    assert {"canvas_4", "canvas_8", "canvas_16", "canvas_32"} <= told["costs"]["over_ar"].keys()
    assert told["costs"]["over_ar"]["canvas_4"] == pytest.approx(
        told["costs"]["canvas_4_ms"] / told["costs"]["ar_ms"]
    )


def test_outside_programs_run_the_same_network(told: dict, folder: Path) -> None:
    assert told["peers"]["transformers"]["tokens_per_second"] > 0
    llama = told["peers"]["llama.cpp"]
    assert llama.keys() == {"skipped"} or llama["tokens_per_second"] * llama["ar_over_it"] > 0
    assert told["peers"]["transformers"]["prompts"] == min(PEER_PROMPTS, told["prompts"])
    ids = torch.randint(6, 300, (1, 12), generator=torch.Generator().manual_seed(0))
    rows = clean_rows("causal_context", 12, 8)
    ours = our_logits(checkpoint.load(folder), ids, rows.position, mask_of(rows))
    with torch.no_grad():
        theirs = transformers_twin(folder)(ids).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "family", [{"qk_norm": True}, {"attention_bias": True}, {"tie_word_embeddings": False}]
)
def test_twins_of_all_families(family: dict, tmp_path: Path) -> None:
    from tests.engine.models import network

    denoiser = network(seed=2, **family)
    checkpoint.save(denoiser, tmp_path)
    assert PEERS["transformers"].missing(tmp_path) is None
    ids = torch.randint(2, 40, (1, 9), generator=torch.Generator().manual_seed(0))
    rows = clean_rows("causal_context", 9, 8)
    with torch.no_grad():
        theirs = transformers_twin(tmp_path)(ids).logits
    torch.testing.assert_close(
        theirs, our_logits(denoiser, ids, rows.position, mask_of(rows)), rtol=1e-4, atol=1e-4
    )


def test_what_has_no_twin_says_why(tmp_path: Path) -> None:
    from tests.engine.models import network

    checkpoint.save(network(layout="full"), tmp_path)
    assert "layout full" in (PEERS["transformers"].missing(tmp_path) or "")


def test_latency_reports_every_mode(model: Model, prompts: list[np.ndarray]) -> None:
    told = latency.latency(model, prompts, latency.Latency(tokens=8, cold_starts=0))
    assert told["cold_start"] is None
    for m in told["modes"].values():
        assert 0 < m["first_draft"]["p50"] <= m["first_commit"]["p50"] <= m["answer"]["p50"]
        assert m["answer"]["p50"] <= m["answer"]["p95"]
    assert len(latency.lines(told)) == 5


def test_quantiles_are_numpys() -> None:
    assert latency.quantiles([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx({"p50": 3.0, "p95": 4.8})


def test_a_cold_start_runs_the_command_and_tells_its_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    assert latency.cold_start(str(folder), backend="torch", tokens=4) > 0
    with pytest.raises(RedraftError, match="there is no folder"):
        latency.cold_start("/no/such/model")


def test_batch_counts_all_tokens_and_finds_where_ar_overtakes(model: Model, dialogues: Dialogues) -> None:
    prompts = pick_prompts(dialogues, 3, 8)
    settings = batching.Batch(tokens=8, sizes=(1, 2), repeats=1)
    told = batching.batch(model, prompts, settings)
    assert list(told["modes"]) == ["ar", "diffusion", "verified", "diffusion, canvas 16"]
    assert told["settings"]["diffusion, canvas 16"]["canvas"] == 16
    assert told["settings"]["diffusion"]["canvas"] == 8
    for m in told["modes"].values():
        assert list(m["sizes"]) == ["1", "2"]
        assert m["sizes"]["1"]["gain"] == 1.0
        assert all(s["cpu_seconds_per_1000_tokens"] > 0 for s in m["sizes"].values())
    assert batching.run(model, model.backend, DIFFUSION, prompts, 2, settings).tokens == 24
    assert len(batching.lines(told)) == 8
    asked = batching.Batch(diffusion=Way("diffusion", canvas=16))
    assert "diffusion, canvas 16" not in batching.ways_of(model, prompts[0], asked)


def test_better_from_is_the_size_after_which_diffusion_never_leads() -> None:
    sizes = (1, 2, 4, 8)
    assert batching.better_from(sizes, [1, 1, 5, 9], [2, 3, 4, 5]) == 4
    assert batching.better_from(sizes, [3, 1, 5, 9], [2, 3, 4, 5]) == 4
    assert batching.better_from(sizes, [3, 4, 5, 9], [2, 3, 4, 5]) == 1
    assert batching.better_from(sizes, [9, 9, 9, 5], [2, 3, 4, 5]) is None


def test_drafting_reaches_the_engine(model: Model, prompts: list[np.ndarray]) -> None:
    options = Options(verified_canvas=4, draft_steps=2, draft_layout="separate", sharp=False)
    request = options.verified().request(model, prompts[0], 8)
    assert (request.decode, request.sampler.canvas_length) == ("verified", 4)
    assert (request.draft_steps, request.draft_layout) == (2, "separate")
    assert options.point().request(model, prompts[0], 8).sharp is False
    greedy = Bench(model).write(GREEDY.request(model, prompts[0], 16))
    assert Bench(model).write(options.verified().request(model, prompts[0], 16)).tokens == greedy.tokens


def test_a_bench_of_one_point_takes_one() -> None:
    assert Options(thresholds=(0.5,), canvases=(4,)).point() == Way("diffusion", threshold=0.5, canvas=4)
    with pytest.raises(RequestError, match="give --threshold once"):
        Options(thresholds=(0.5, 0.6)).point()


@pytest.mark.parametrize("name", ["speed", "latency", "batch"])
def test_pictures(name: str, model: Model, prompts: list[np.ndarray], told: dict, tmp_path: Path) -> None:
    made = {
        "speed": lambda: told,
        "latency": lambda: latency.latency(model, prompts, latency.Latency(tokens=4, cold_starts=0)),
        "batch": lambda: batching.batch(model, prompts, batching.Batch(tokens=4, sizes=(1, 2), repeats=1)),
    }[name]()
    BENCHES[name].plot(made, tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()[:2000]
    assert len(list(tmp_path.iterdir())) == 1
