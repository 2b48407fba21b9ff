"""A corpus of the AR self's own answers: what is asked, what is written, and going on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import redraft
from redraft.errors import RequestError
from redraft.hub.tokenizer import Tokenizer
from redraft.training import adaptation_start as start
from redraft.training import answers
from redraft.training.adaptation import adapt
from redraft.training.adaptation_recipe import AdaptRecipe, Answers
from redraft.training.answers import JOURNAL, draw_prompts, make_answers
from redraft.training.data import Corpus
from redraft.training.recipe import Source
from redraft.training.start import training_rows
from tests.training.bases import EOS, NAME, recipe


def settings(data: Path, **changes: Any) -> Answers:
    held = {"out": str(data.parent / "answers"), "sources": [{"path": str(data.parent / "letters.jsonl")}]}
    sizes = {"prompts": 12, "longest": 20, "tokens": 8, "batch": 5, "holdout": 3}
    return Answers.model_validate(held | sizes | changes)


def make(data: Path, own: Answers, **options: Any) -> bool:
    backend, weights = start.answering(recipe(data), redraft.hub.resolve(NAME), start.torch.device("cpu"))
    return make_answers(backend, weights, data, own, own.sources, **options)


@pytest.mark.parametrize("temperatures", [[0.0], [0.0, 0.8]])
def test_answers_are_what_the_base_writes(data: Path, temperatures: list[float]) -> None:
    own = settings(data, temperatures=temperatures)
    assert make(data, own)
    tokenizer, base = Tokenizer.load(data), redraft.load(NAME, backend="torch")
    prompts = draw_prompts(own.sources, tokenizer, own, 0)
    assert len(set(prompts)) == len(prompts) == 12
    held = Corpus(own.out, "valid"), Corpus(own.out, "train")
    assert (len(held[0]), len(held[1])) == (3, 9)
    documents = [corpus[i] for corpus in held for i in range(len(corpus))]
    starts = np.concatenate([corpus.starts for corpus in held])
    for number, (prompt, document, begins) in enumerate(zip(prompts, documents, starts, strict=True)):
        assert begins == len(prompt)
        assert tuple(document[:begins]) == prompt
        answer = document[begins:]
        if temperatures[number % len(temperatures)] == 0:
            due = base.generate(np.array(prompt), decode="ar", temperature=0.0, max_tokens=8, seed=0)
            written = [*due.token_ids, *([EOS] if due.finish_reason == "stop" else [])]
            assert answer.tolist() == written


def test_an_interrupted_corpus_goes_on_and_is_the_same(data: Path, tmp_path: Path) -> None:
    whole = settings(data, temperatures=[0.0, 1.0])
    assert make(data, whole)
    cut = whole.model_copy(update={"out": str(tmp_path / "cut"), "batch": 2})
    assert not make(data, cut, seconds=0.0)
    journal = Path(cut.out) / JOURNAL
    lines = (Path(whole.out) / JOURNAL).read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:5]) + lines[5][:4])  # killed in the middle of a line
    assert make(data, cut)
    for split in ("train", "valid"):
        for ending in ("bin", "npy", "json"):
            name = f"{split}.{ending}"
            assert (Path(cut.out) / name).read_bytes() == (Path(whole.out) / name).read_bytes()
    other = cut.model_copy(update={"tokens": 6})
    with pytest.raises(RequestError, match="holds answers of another recipe or base: remove"):
        make(data, other)


def test_prompts_are_turns_of_conversations_through_the_template(data: Path, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    said += [{"role": "user", "content": "bye"}, {"role": "assistant", "content": "see you"}]
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"text": said}) + "\n")
    source = Source(path=str(path), format="messages")
    tokenizer = Tokenizer.load(data)
    own = Answers(out="", prompts=5, longest=60, tokens=4)
    found = draw_prompts([source], tokenizer, own, 0)
    assert set(found) == {tuple(map(int, tokenizer.render(said[:n]))) for n in (1, 3)}
    path.write_text(json.dumps({"text": "hi"}) + "\n")
    asked = Source(path=str(path), format="question")
    assert draw_prompts([asked], tokenizer, own, 0) == [tuple(map(int, tokenizer.render(said[:1])))]
    with pytest.raises(RequestError, match="fits into 2 tokens: raise answers.longest"):
        draw_prompts([asked], tokenizer, own.model_copy(update={"longest": 2}), 0)


def with_answers(data: Path, **train: Any) -> AdaptRecipe:
    return recipe(data, answers=settings(data).model_dump(), train={"steps": 2, "batch_rows": 2} | train)


def test_a_run_makes_its_answers_first_and_covers_nothing_else(data: Path, tmp_path: Path) -> None:
    toy = with_answers(data)
    assert [part.path for part in toy.corpora()] == [toy.answers.out] if toy.answers else None
    made = adapt(toy, tmp_path / "run")
    assert made.name == "step-000002"
    rows = training_rows(toy)
    assert 0 < rows[0].supervise.sum() < (rows[0].document >= 0).sum()
    held = start.held_out_rows(toy)
    assert held is not None
    assert len(held.corpora[0]) == 3


def test_a_slice_may_end_among_the_answers(data: Path, tmp_path: Path) -> None:
    toy = with_answers(data, slice_minutes=1e-9)
    assert adapt(toy, tmp_path / "run") == Path(toy.answers.out if toy.answers else "")
    assert not (tmp_path / "run").exists()
    assert adapt(with_answers(data), tmp_path / "run").name == "step-000002"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"longest": 45}, "together must not exceed train.row_length"),
        ({"holdout": 12}, "answers.holdout 12 leaves nothing of 12 prompts"),
        ({"sources": []}, "answers needs prompts: name sources"),
    ],
)
def test_what_cannot_be_answered(data: Path, tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    toy = recipe(data, answers=settings(data, **changes).model_dump())
    with pytest.raises(RequestError, match=line):
        adapt(toy, tmp_path / "run")


def test_a_model_that_writes_no_numbers_is_told(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answers.TOLD_EVERY > 0
    monkeypatch.setattr(answers, "TOLD_EVERY", 0.0)
    told: list[str] = []
    assert make(data, settings(data), message=told.append)
    assert told[-1].endswith("of 12 prompts answered")


def test_prompts_hold_nothing_that_the_answers_exclude(data: Path) -> None:
    toy = with_answers(data)
    assert toy.answers is not None
    letters = {"path": str(data.parent / "letters.jsonl")}
    barred = toy.answers.model_copy(update={"exclude": [Source.model_validate(letters)]})
    with pytest.raises(RequestError):  # all of its prompts are beginnings of just that file
        start.write_answers(toy.model_copy(update={"answers": barred}), lambda text: None)
    assert toy.barred() == []
    start.write_answers(toy, lambda text: None)


def test_what_does_not_fit_the_base_is_told_before_its_answers_are_written(data: Path) -> None:
    toy = with_answers(data)
    assert toy.answers is not None
    wrong = toy.model_copy(update={"adapter": toy.adapter.model_copy(update={"first_layer": 9})})
    with pytest.raises(RequestError, match="first_layer is 9, but the base's last layer is number 1"):
        start.write_answers(wrong, lambda text: None)
    assert not (Path(toy.answers.out) / JOURNAL).exists()
