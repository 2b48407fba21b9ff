"""The corpus of edits: its canvases hold what they say, its batches start from the text, and runs learn from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redraft import corruption
from redraft.errors import RequestError
from redraft.training import metrics, start
from redraft.training.batch import build
from redraft.training.data import Corpus
from redraft.training.edits import make_edits
from redraft.training.objective import slot_weights
from redraft.training.packing import Rows
from redraft.training.pairs import OUTSIDE, EditCorpus
from redraft.training.recipe import Canvas, Edits, Mixture, Objective, Recipe
from redraft.training.run import train
from redraft.training.tokenizer import ASSISTANT, EDIT, EOS, MASK, NULL, load_tokenizer
from tests.training import toys

LENGTHS = [8, 16]
CANVAS = Canvas(
    lengths=LENGTHS, length_weights=[1, 1], draft_share=0, gap_share=0, insert_share=0, pin_share=0
)


@pytest.fixture(scope="module")
def made(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edits") / "made"
    report = make_edits(prepared, settings(folder), CANVAS)
    assert report["documents"] == 80
    return folder


def settings(folder: Path, **more: Any) -> Edits:
    return Edits(**({"out": str(folder), "documents": 40, "instructions": 40, "longest": 96} | more))


def special(prepared: Path, name: str) -> int:
    return int(load_tokenizer(prepared).token_to_id(name))


def test_every_target_is_the_document_and_its_context_comes_before(made: Path, prepared: Path) -> None:
    corpus, null = EditCorpus(made, "train", LENGTHS), special(prepared, NULL)
    edit, answer, eos = (special(prepared, name) for name in (EDIT, ASSISTANT, EOS))
    changed = locked = 0
    assert len(corpus) == 80
    assert (corpus.lengths <= 96).all()
    for i in range(80):
        document, first = corpus[i].tolist(), int(corpus.starts[i])
        assert null not in document
        assert (document[0] == edit) == (i >= 40) == (first > 0)
        if i >= 40:
            assert document[first - 1] == answer
            assert document[-1] == eos
        for length in LENGTHS:
            for anchor, noisy, target in zip(*corpus.canvases(i, length), strict=True):
                text = target[(target != null) & (target != OUTSIDE)].tolist()
                assert text
                assert anchor >= first
                assert document[anchor : anchor + len(text)] == text
                outside = target == OUTSIDE
                assert (noisy[outside] == null).all()
                assert not outside[: int(np.argmax(outside))].any()
                assert i < 40 or not outside.any()
                tokens = noisy[noisy != null]
                full = noisy[: len(tokens) + len(tokens) // 8]
                assert (np.flatnonzero(full == null) % 9 == 8).all()
                changed += bool((noisy != target)[~outside].any())
                locked += bool(outside.any())
    assert changed > 100
    assert locked > 5


def test_windows_cover_what_an_instruction_leads_to(made: Path) -> None:
    corpus = EditCorpus(made, "train", LENGTHS)
    begun = sum(int(corpus.starts[i]) in corpus.canvases(i, 16)[0] for i in range(40, 80))
    assert begun >= 30


def test_shares_of_untouched_windows_and_plain_text(prepared: Path, tmp_path: Path) -> None:
    make_edits(prepared, settings(tmp_path, untouched=1.0, plain=1.0, instructions=0), CANVAS)
    corpus = EditCorpus(tmp_path, "train", LENGTHS)
    for i in range(40):
        assert not set(corpus[i].tolist()) & {special(prepared, n) for n in (EOS, ASSISTANT, "<|user|>")}
        _, noisy, target = corpus.canvases(i, 8)
        assert ((noisy == target) | (target == OUTSIDE)).all()


def test_the_same_seed_makes_the_same_corpus(made: Path, prepared: Path, tmp_path: Path) -> None:
    make_edits(prepared, settings(tmp_path / "again"), CANVAS)
    make_edits(prepared, settings(tmp_path / "other"), CANVAS, seed=1)
    names = [p.name for p in sorted(made.iterdir())]
    assert "train.canvases-16.npy" in names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()
    assert (tmp_path / "other" / "train.bin").read_bytes() != (made / "train.bin").read_bytes()


# -- batches ----------------------------------------------------------------------------------------------------


def batches(made: Path, prepared: Path, copies: int = 2, **more: Any) -> tuple[Any, Any, Any]:
    tokenizer = load_tokenizer(prepared)
    ids = {n: tokenizer.token_to_id(n) for n in (EOS, MASK, NULL)}
    config = toys.config(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=128,
        mask_token_id=ids[MASK],
        null_token_id=ids[NULL],
        eos_token_ids=(ids[EOS],),
    )
    process = corruption.process("hybrid", config.vocab_size, mask_id=ids[MASK])
    rows = Rows([EditCorpus(made, "train", LENGTHS)], [1.0], 96, 0)
    canvas = CANVAS.model_copy(update={"copies": copies})
    arguments = {"step": 0, "rows": range(6), "batch_rows": 6, "seed": 0} | more
    mixture = [Mixture(path=str(made), edits=True)]
    return build(rows, mixture, config, process, canvas, **arguments), rows, process


@pytest.mark.parametrize("length", LENGTHS)
def test_one_copy_is_the_text_as_it_stands_and_one_partly_hidden(
    made: Path, prepared: Path, length: int
) -> None:
    batch, rows, _ = batches(made, prepared, length=length)
    null, mask = special(prepared, NULL), special(prepared, MASK)
    used = batch.canvas_document >= 0
    half = batch.noisy.shape[1] // 2
    asis, hidden = batch.noisy[:, :half], batch.noisy[:, half:]
    assert (asis != mask).all()
    assert (batch.time[:, :half] == 0).all()
    assert ((hidden == asis) | (hidden == mask)).all()
    assert (hidden == mask)[used[:, half:]].any()
    assert not (hidden == mask)[batch.locked[:, half:]].any()
    wrong = (asis != batch.target[:, :half]) & used[:, :half, None]
    right = ~wrong & used[:, :half, None] & ~batch.locked[:, :half]
    assert (hidden == mask)[wrong].mean() > (hidden == mask)[right].mean()
    assert not batch.locked.all(-1)[used].any()
    for b, m in zip(*np.nonzero(used), strict=True):
        document = rows[b].tokens[rows[b].document == batch.canvas_document[b, m]]
        anchor = batch.positions[b, 96:].reshape(-1, length)[m, 0]
        text = batch.target[b, m][batch.target[b, m] != null]
        assert document[anchor : anchor + len(text)].tolist() == text.tolist()


def test_wrong_slots_weigh_one_and_right_ones_little(made: Path, prepared: Path) -> None:
    batch, _, process = batches(made, prepared)
    weight = slot_weights(batch, process, Objective(right_weight=0.25)).numpy()
    free = ~batch.locked & (batch.canvas_document >= 0)[..., None]
    assert (weight[free & (batch.noisy != batch.target)] == 1).all()
    assert (weight[free & (batch.noisy == batch.target)] == 0.25).all()
    assert (weight[~free] == 0).all()


def test_ar_learns_what_instructions_lead_to_and_not_the_instructions(made: Path, prepared: Path) -> None:
    batch, rows, _ = batches(made, prepared)
    edit = special(prepared, EDIT)
    seen = 0
    for b in range(6):
        row = rows[b]
        for number in range(row.document.max() + 1):
            own = np.flatnonzero(row.document == number)
            taken = batch.next_token[b, own[:-1]] >= 0
            if row.tokens[own[0]] == edit:
                assert (taken == row.supervise[own[1:]]).all()
                assert not taken.all()
                seen += 1
            else:
                assert taken.all()
    assert seen > 3


def test_processes_share_the_batch_and_steps_repeat(made: Path, prepared: Path) -> None:
    for copies in (1, 2):
        whole, _, _ = batches(made, prepared, copies, step=3)
        parts = [batches(made, prepared, copies, step=3, rows=r)[0] for r in (range(2), range(2, 6))]
        for name, value in vars(whole).items():
            assert np.array_equal(np.concatenate([getattr(p, name) for p in parts]), value), name


# -- runs -------------------------------------------------------------------------------------------------------


def recipe(prepared: Path, out: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "toy",
        "data": str(prepared),
        "edits": settings(out).model_dump(),
        "mixture": [
            {"path": str(prepared), "canvas": {"draft_share": 1.0}},
            {"path": str(out), "weight": 2, "edits": True},
        ],
        "model": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "max_position_embeddings": 96,
        },
        "canvas": CANVAS.model_dump(),
        "train": {
            "steps": 12,
            "batch_rows": 3,
            "row_length": 96,
            "log_every": 1,
            "evaluate_every": 100,
            "evaluate_rows": 2,
            "save_every": 6,
            "sample_prompts": [],
        },
    }
    return Recipe.model_validate(values | changes)


def test_a_run_makes_the_corpus_learns_and_resumes_bit_for_bit(prepared: Path, tmp_path: Path) -> None:
    whole = recipe(prepared, tmp_path / "edits")
    last = train(whole, tmp_path / "whole", sampler=lambda model, prompts: [])
    made = (tmp_path / "edits" / "train.bin").stat().st_mtime_ns
    losses = [r["canvas_loss"] for r in records(tmp_path / "whole") if "canvas_loss" in r]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    short = whole.model_copy(update={"train": whole.train.model_copy(update={"keep": 3})})
    train(short, tmp_path / "cut", sampler=lambda model, prompts: [])
    shutil.rmtree(tmp_path / "cut" / last.name)
    again = train(short, tmp_path / "cut", resume=True, sampler=lambda model, prompts: [])
    weights = [(p / "model.safetensors").read_bytes() for p in (last, again)]
    assert weights[0] == weights[1]
    assert (tmp_path / "edits" / "train.bin").stat().st_mtime_ns == made


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / metrics.METRICS).read_text().splitlines()]


def test_a_corpus_may_have_shares_of_its_own(prepared: Path, tmp_path: Path) -> None:
    own = recipe(prepared, tmp_path).corpora()[0].canvas_of(Canvas(gap_share=0.3))
    assert (own.draft_share, own.gap_share) == (1.0, 0.3)


def test_what_cannot_be_edited_is_told(made: Path, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="canvases of 32 slots"):
        EditCorpus(made, "train", [32])
    with pytest.raises(RequestError, match="no edits in canvases"):
        EditCorpus(prepared, "train", [8])
    (tmp_path / "bad").mkdir()
    for path in made.iterdir():
        (tmp_path / "bad" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "bad" / "train.canvases-8.npy").write_bytes(b"no array")
    with pytest.raises(RequestError, match="can't be read"):
        EditCorpus(tmp_path / "bad", "train", [8])
    with pytest.raises(RequestError, match="longest must not exceed"):
        start.check_sizes(recipe(prepared, tmp_path, edits={"out": "x", "longest": 200}), 1)
    with pytest.raises(RequestError, match="weighting must be flat"):
        start.check_sizes(recipe(prepared, tmp_path, objective={"weighting": "elbo"}), 1)
    model = recipe(prepared, tmp_path).model.model_copy(update={"layout": "full"})
    with pytest.raises(RequestError, match="must be causal_context"):
        start.check_sizes(recipe(prepared, tmp_path, model=model.model_dump()), 1)


def test_a_corpus_without_sentences_is_refused(prepared: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(prepared)
    eos = tokenizer.token_to_id(EOS)
    toys.corpus(tmp_path / "data", [[eos]] * 3, vocab=tokenizer.get_vocab_size())
    (tmp_path / "data" / "tokenizer.json").write_bytes((prepared / "tokenizer.json").read_bytes())
    with pytest.raises(RequestError, match="too few sentences"):
        make_edits(tmp_path / "data", settings(tmp_path / "out", documents=0), CANVAS)
    assert len(Corpus(prepared, "train")) > 3
