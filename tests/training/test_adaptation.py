"""Adapting a tiny AR base: the pass over clean text and canvases, the losses, and a run from start to answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import redraft
from redraft.denoiser import adapters, families
from redraft.denoiser.transformer import Attention, Visibility, attend_canvases
from redraft.engine.backend import Pass
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.errors import RedraftError, RequestError
from redraft.hub.runs import complete
from redraft.hub.tokenizer import Tokenizer
from redraft.training import adaptation_start as start
from redraft.training.adaptation import Adaptation, adapt
from redraft.training.adaptation_batch import AdaptBatch
from redraft.training.adaptation_masks import beside
from redraft.training.data import Corpus
from redraft.training.flops import Work
from tests.training.bases import EOS, NAME, finish, make_base, recipe, shake, torchrun, weights
from tests.training.masks import dense
from tests.training.toys import config


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Adaptation:
    made = Adaptation(recipe(data), tmp_path / "run", resume=False)
    shake(made.model)
    return made


def batch_of(run: Adaptation) -> AdaptBatch:
    return run.batch(range(4))


# -- data -----------------------------------------------------------------------------------------------------


def test_data_is_prepared_with_the_bases_own_tokenizer(data: Path) -> None:
    tokenizer = Tokenizer.load(data)
    document = Corpus(data, "train")[0]
    assert document[-1] == EOS
    assert (tokenizer.encode(tokenizer.decode(document[:-1])) == document[:-1]).all()
    assert tokenizer.template is not None


def test_conversations_go_through_the_chat_template(data: Path, tmp_path: Path) -> None:
    from redraft.training.base_tokenizer import BaseTokenizer
    from redraft.training.data import Document

    base = BaseTokenizer(NAME)
    said = (("user", "the table"), ("assistant", "is booked"))
    ids = base.encode(Document(said))
    rendered = base.tokenizer.render([{"role": r, "content": t} for r, t in said], False)
    assert ids == [*rendered.tolist(), EOS]


# -- the pass -------------------------------------------------------------------------------------------------


def test_training_sees_what_the_engine_sees(run: Adaptation) -> None:
    """Clean rows once, then all canvases, against one canvas after its own prefix in the engine, which lets drafts go
    without their last slots."""
    batch = batch_of(run)
    with torch.no_grad():
        _, drafted = run.objective.hidden(batch)
        logits = run.model.logits(drafted).numpy()
    backend = TorchBackend(run.model)
    checked, drafts = 0, 0
    for b, n in np.argwhere(batch.document >= 0):
        ahead = bool(batch.aside[b, n])
        slots = slice(batch.shown.shape[2] - ahead)
        position = batch.slot_positions[b, n, 0]
        own = np.flatnonzero(batch.canvas_visible[b, n, 0, : batch.clean.shape[1]])
        assert len(own) == position
        call = Pass(
            backend.new_context(64),
            batch.clean[b, own],
            canvas=batch.shown[b, n, slots],
            locked=batch.locked[b, n, slots],
            ahead=ahead,
        )
        result = backend.forward([call])[0].canvas
        assert result is not None
        np.testing.assert_allclose(result[1:], logits[b, n, :-1], atol=2e-4)  # shifted: slot j from row j - 1
        checked, drafts = checked + 1, drafts + ahead
    assert checked > drafts > 0


def test_nothing_leaks_from_the_text_that_a_canvas_covers(run: Adaptation) -> None:
    batch = batch_of(run)
    b, n = np.argwhere(batch.document >= 0)[0]
    seen = np.flatnonzero(batch.canvas_visible[b, n, 0, : batch.clean.shape[1]])
    changed = batch.clean.copy()
    after = np.setdiff1d(np.arange(batch.clean.shape[1]), seen)
    changed[b, after] = (changed[b, after] + 7) % 200
    with torch.no_grad():
        before = run.objective.hidden(batch)[1][b, n]
        again = run.objective.hidden(replace(batch, clean=changed))[1][b, n]
        changed[b, seen[-1]] = (changed[b, seen[-1]] + 7) % 200
        other = run.objective.hidden(replace(batch, clean=changed))[1][b, n]
    assert torch.equal(before, again)
    assert not torch.allclose(before, other)


def test_the_teacher_is_the_ar_self_at_the_same_slot(run: Adaptation) -> None:
    batch = batch_of(run)
    pairs = run.objective.pairs(batch)
    base = TorchBackend(families.load(redraft.hub.resolve(NAME).path))
    wanted = (batch.weight > 0) | (batch.fill > 0)
    where = np.argwhere(wanted)
    taught = np.flatnonzero(pairs.taught.numpy())
    theirs = run.objective.teacher(pairs.clean[pairs.row])
    for i in taught[:: max(1, len(taught) // 5)]:
        b, n, j = where[i]
        own = np.flatnonzero(batch.clean_visible[b, batch.teacher[b, n, j]])
        due = base.forward([Pass(base.new_context(64), batch.clean[b, own], "last")])[0].encode[0]
        np.testing.assert_allclose(theirs[i, :-2], due[:-2], atol=2e-4)
        assert (theirs[i, -2:] < -1e30).all()  # mask and null, which AR never writes


def test_canvases_attend_beside_one_another_as_under_the_whole_mask() -> None:
    rng = np.random.default_rng(0)
    visible = torch.from_numpy(
        rng.random((2, 3, 4, 9)) < 0.5
    )  # 2 rows of 3 canvases of 4 slots over 5 clean tokens
    visible[..., 0] = True
    attention = Attention(config(num_attention_heads=4, num_key_value_heads=2)).double()
    q, k, v, past = (
        torch.from_numpy(rng.standard_normal((2, rows, heads, attention.head_dim))).requires_grad_()
        for rows, heads in ((12, 4), (12, 2), (12, 2), (5, 2))
    )
    whole = attention._attend(
        q,
        torch.cat((past, k), 1),
        torch.cat((past, v), 1),
        Visibility.additive(dense(visible), torch.float64)[:, None],
    )
    parts = attend_canvases(q, (past, past), (k, v), beside(visible, torch.float64))
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)  # the softmax of the parts is float32
    weights = torch.from_numpy(rng.standard_normal(whole.shape))
    due = torch.autograd.grad((whole * weights).sum(), (q, k, v, past))
    found = torch.autograd.grad((parts * weights).sum(), (q, k, v, past))
    for one, other in zip(found, due, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def gradients(run: Adaptation, micro_rows: int) -> dict[str, torch.Tensor]:
    run.micro_rows = micro_rows
    batch = batch_of(run)
    run._gradients(batch, batch.divisors())
    named = adapters.adapter_of(run.model).named_parameters()
    found = {n: p.grad.clone() for n, p in named if p.grad is not None}
    run.state.optimizers[0].zero_grad()
    return found


def test_rows_in_portions_give_the_same_gradient(run: Adaptation) -> None:
    whole, parts = gradients(run, 4), gradients(run, 1)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-4)
    assert all(p.grad is None for n, p in run.model.named_parameters() if not n.startswith("adapter."))


class Teller:
    def __init__(self) -> None:
        self.told: list[str] = []

    def update(self, step: int, metrics: dict[str, float]) -> None: ...

    def message(self, text: str) -> None:
        self.told.append(text)


def test_too_large_a_batch_is_halved_and_says_so(run: Adaptation, monkeypatch: pytest.MonkeyPatch) -> None:
    due = gradients(run, 1)
    run.reporter = teller = Teller()
    forward = run.objective.forward

    def limited(batch: AdaptBatch) -> Any:
        if len(batch.clean) > limit:
            raise torch.OutOfMemoryError("no room")
        return forward(batch)

    limit = 1
    monkeypatch.setattr(run.objective, "forward", limited)
    found = gradients(run, 4)
    assert run.micro_rows == 1
    assert [t for t in teller.told if "out of memory" in t] == [
        "out of memory: going on with 2 rows at a time",
        "out of memory: going on with 1 rows at a time",
    ]
    for name, value in due.items():
        assert torch.equal(found[name], value)
    limit = 0
    with pytest.raises(RedraftError, match="doesn't fit into memory: lower train.row_length"):
        gradients(run, 2)


def test_a_cpu_without_memory_is_a_batch_too_large(run: Adaptation, monkeypatch: pytest.MonkeyPatch) -> None:
    due, forward = gradients(run, 1), run.objective.forward

    def limited(batch: AdaptBatch) -> Any:
        if len(batch.clean) > 1:
            torch.empty(1 << 60)  # more than any machine has: the allocator's own words
        return forward(batch)

    monkeypatch.setattr(run.objective, "forward", limited)
    found = gradients(run, 2)
    assert run.micro_rows == 1
    assert all(torch.equal(found[name], value) for name, value in due.items())

    def broken(batch: AdaptBatch) -> Any:
        raise RuntimeError("something else")

    monkeypatch.setattr(run.objective, "forward", broken)
    with pytest.raises(RuntimeError, match="something else"):
        gradients(run, 2)


def test_flops_of_a_step(run: Adaptation) -> None:
    work = Work.of(run.model)
    hidden, wide, kv, layers, rank = 32, 48, 16, 2, 8
    assert work.layers == layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * wide)
    ends = 2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + wide)
    assert work.adapter == layers * rank * ends
    assert work.flops(1, 0, 0, 0) == 2 * work.layers
    assert work.flops(0, 1, 1, 1) == 4 * work.layers + 6 * work.adapter + 6 * work.head


# -- a run ----------------------------------------------------------------------------------------------------


def test_it_learns_to_draft_what_the_base_would_write(data: Path, tmp_path: Path) -> None:
    train = {"steps": 150, "evaluate_every": 75, "save_every": 150, "batch_rows": 8, "evaluate_rows": 12}
    train |= {"sample_prompts": ["abc"], "sample_tokens": 8}
    teller = Teller()
    settings = recipe(
        data,
        train=train,
        canvas={"draft": 0.8, "hole": 0.2, "prefix": 0, "revealed": 0},
        losses={"ce": 0, "kl_share": 1},  # what this base writes has nothing to do with the text
    )
    last = adapt(settings, tmp_path / "run", reporter=teller)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if "loss" in r]
    first, final = ({k: np.mean([r[k] for r in part]) for k in part[0]} for part in (steps[:5], steps[-5:]))
    assert final["kl"] < first["kl"] / 2
    assert final["fill"] < first["fill"] / 2
    assert final["accept"] > first["accept"] + 0.1
    assert final["agree"] > first["agree"] + 0.1
    measured = [r for r in records if "valid_accepted" in r]
    assert [r["step"] for r in measured] == [0, 75, 150]
    assert measured[-1]["valid_accepted"] > measured[0]["valid_accepted"]
    assert measured[-1]["samples"]
    assert any("drafts accepted in a row" in text for text in teller.told)

    model = redraft.load(tmp_path / "run", backend="torch")
    assert (tmp_path / "run" / last.name) == last
    options = {"max_tokens": 16, "temperature": 0.0, "seed": 0, "ignore_eos": True}
    verified = model.generate("abcdef", decode="verified", **options)
    ar = model.generate("abcdef", decode="ar", **options)
    assert verified.token_ids == ar.token_ids
    assert model.generate("abcdef", decode="diffusion", **options).tokens == 16
    base = redraft.load(NAME, backend="torch")
    text = np.array(model.encode("abcdef"))
    ours, theirs = (
        m.backend.forward([Pass(m.backend.new_context(16), text, "all")])[0].encode for m in (model, base)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_a_run_in_slices_is_the_run_in_one_go(data: Path, tmp_path: Path) -> None:
    adapt(recipe(data), tmp_path / "whole")
    cut = recipe(data, train={"slice_minutes": 1e-9})
    teller = Teller()
    adapt(cut, tmp_path / "cut", reporter=teller)
    assert complete(tmp_path / "cut")[-1].name == "step-000001"
    assert any("this session ends at step 1; go on with --resume" in text for text in teller.told)
    for _ in range(3):
        adapt(cut, tmp_path / "cut", resume=True)
    assert complete(tmp_path / "cut")[-1].name == "step-000004"
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(parts[name], value), name


def test_two_processes_learn_what_one_does(data: Path, tmp_path: Path) -> None:
    own = recipe(data, train={"steps": 2})
    finish(torchrun(own, tmp_path / "two"))
    adapt(own, tmp_path / "one")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-3)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(data: Path, tmp_path: Path) -> None:
    adapt(recipe(data, train={"steps": 2}), tmp_path / "run")
    run = Adaptation(recipe(data), tmp_path / "run", resume=True)
    with torch.no_grad():
        adapters.adapter_of(run.model).slots.mask.fill_(float("nan"))
    with pytest.raises(RedraftError, match="the loss is not finite at step 2; .*step-000002 is good"):
        run.step()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"train": {"batch_rows": 400}},
            "fewer than the 400 rows of 48 of one batch: lower train.batch_rows",
        ),
        ({"train": {"row_length": 126}}, "exceed the 128 positions of the base"),
        ({"base": {"layers": 3}}, "has 2 layers, fewer than the 3"),
        ({"base": {"name": "tiny-bass"}}, "unknown model 'tiny-bass', did you mean tiny-base"),
        ({"base": {"name": "redraft-tiny"}}, "was prepared with another tokenizer"),
        ({"adapter": {"mask_token": "<|masc|>"}}, "no special token <|masc|>, did you mean"),
        (
            {"adapter": {"mask_token": "<|mask|>", "null_token": "<|mask|>"}},
            "no room for a mask and a null token",
        ),
        ({"canvas": {"draft": 0, "prefix": 0, "revealed": 0, "hole": 0}}, "must be above 0"),
        ({"canvas": {"length": 60}}, "canvas.length must not exceed train.row_length"),
    ],
)
def test_what_cannot_be_is_told_before_training(
    data: Path, tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(RequestError, match=line) as caught:
        Adaptation(recipe(data, **changes), tmp_path / "run", resume=False)
    assert "\n" not in str(caught.value)


def test_a_base_of_another_kind_is_refused_and_the_known_kinds_named(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 300}))
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer.json").write_bytes((data / "tokenizer.json").read_bytes())
    toy = recipe(data, base={"name": str(folder)})
    with pytest.raises(
        RequestError, match="gpt2.* is not supported; redraft reads .*Llama.*Qwen2.*Qwen3"
    ) as told:
        Adaptation(toy, tmp_path / "run", resume=False)
    assert "\n" not in str(told.value)


def test_mask_and_null_are_tokens_that_no_text_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path / "home"))
    for spare in (2, 0):
        folder = make_base(spare)
        tokenizer, config = Tokenizer.load(folder), families.load_config(folder)
        mask, null = start.free_tokens(tokenizer, config, None, None)
        names = {number: name for name, number in tokenizer.special_ids.items()}
        if spare:
            assert [mask, null] == [tokenizer.vocab_size, tokenizer.vocab_size + 1]
        else:  # specials that end nothing and aren't named in the template
            assert names[mask] == "<|null|>"
            assert names[null] == "<|mask|>"
        named = start.free_tokens(tokenizer, config, "<|user|>", None)
        assert (names[named[0]], named[1]) == ("<|user|>", mask)
    every = replace(config, eos_token_ids=tuple(tokenizer.special_ids.values()))
    with pytest.raises(RequestError, match="has no room for a mask and a null token"):
        start.free_tokens(tokenizer, every, None, None)
