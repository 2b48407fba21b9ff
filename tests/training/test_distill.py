"""Continuations with a cache filled in place are those of full passes; prompts are true beginnings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from redraft.denoiser import checkpoint
from redraft.errors import RequestError
from redraft.training.data import Corpus
from redraft.training.distill import continue_texts, distill, draw_prompts
from redraft.training.recipe import Distill
from tests.training import toys
from tests.training.toys import EOS, MASK, NULL


def naive(model: torch.nn.Module, prompt: list[int], tokens: int) -> list[int]:
    """Greedy, the whole text anew for each token."""
    text = list(prompt)
    for _ in range(tokens):
        text.append(int(toys.logprobs(toys.dense_logits(model, text, []), MASK, NULL)[-1].argmax()))
    return text[len(prompt) :]


def prompts(count: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(1, NULL, (count, length))


@pytest.mark.parametrize("length", [1, 5])
def test_greedy_continuations_are_those_of_full_passes(length: int) -> None:
    model = toys.network(dtype=torch.float64)
    given = prompts(4, length)
    found = continue_texts(model, given, 9, 0.0, torch.Generator())
    assert found.dtype == np.int64
    assert found.tolist() == [naive(model, p.tolist(), 9) for p in given]
    assert len(set(found.reshape(-1).tolist())) > 3


def test_a_row_is_the_same_alone_and_among_others() -> None:
    model = toys.network(dtype=torch.float64)
    given = prompts(5, 3)
    together = continue_texts(model, given, 7, 0.0, torch.Generator())
    alone = [continue_texts(model, given[i : i + 1], 7, 0.0, torch.Generator())[0] for i in range(5)]
    assert together.tolist() == [a.tolist() for a in alone]


def test_sampled_continuations_follow_the_distribution() -> None:
    """One token to one prompt 4,000 times: frequencies against softmax(logits / T), by chi-square."""
    model = toys.network()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.3)
    prompt = prompts(1, 4)
    generator = torch.Generator().manual_seed(0)
    draws = 4000
    found = continue_texts(model, np.repeat(prompt, draws, 0), 1, 0.7, generator)[:, 0]
    logits = toys.dense_logits(model, prompt[0].tolist(), [])[-1:] / 0.7
    expected = np.exp(toys.logprobs(logits, MASK, NULL)[0]) * draws
    counts = np.bincount(found, minlength=toys.VOCAB)
    assert counts[[MASK, NULL]].tolist() == [0, 0]
    live = expected > 5
    statistic = ((counts - expected)[live] ** 2 / expected[live]).sum()
    assert live.sum() > 5
    assert statistic < live.sum() + 5 * (2 * live.sum()) ** 0.5
    again = continue_texts(model, np.repeat(prompt, draws, 0), 1, 0.7, torch.Generator().manual_seed(0))
    assert again[:, 0].tolist() == found.tolist()


def test_prompts_are_beginnings_of_documents(tmp_path: Path) -> None:
    texts = toys.documents(12, longest=20)
    corpus = toys.corpus(tmp_path, texts)
    drawn = draw_prompts(corpus, 50, [2, 5, 30], seed=0)
    assert set(drawn) <= {2, 5}
    assert sum(map(len, drawn.values())) == 50
    for length, found in drawn.items():
        assert found.shape[1] == length
        for prompt in found.tolist():
            assert any(prompt == t[:length] and len(t) > length for t in texts)
    again = draw_prompts(corpus, 50, [2, 5, 30], seed=0)
    assert all(np.array_equal(again[n], drawn[n]) for n in drawn)
    with pytest.raises(RequestError, match="longer than 30"):
        draw_prompts(corpus, 5, [30], seed=0)


def test_the_distilled_corpus_holds_prompt_and_continuation_up_to_its_end(tmp_path: Path) -> None:
    model = toys.network()
    with torch.no_grad():  # EOS comes sometimes
        model.lm_head.weight[EOS] *= 2
    checkpoint.save(model, tmp_path / "model")
    toys.corpus(tmp_path / "data", toys.documents(30, longest=12))
    settings = Distill(
        out=str(tmp_path / "out"), prompts=24, prompt_lengths=[2, 4], tokens=8, temperature=1.0, batch=5
    )
    told: list[str] = []
    report = distill(tmp_path / "model", tmp_path / "data", settings, message=told.append)
    corpus = Corpus(tmp_path / "out", "train")
    assert report["documents"] == len(corpus) == 24
    assert set(corpus.starts.tolist()) == {2, 4}
    ended = 0
    for i in range(24):
        text = corpus[i][corpus.starts[i] :].tolist()
        assert EOS not in text[:-1]
        assert len(text) == 8 or text[-1] == EOS
        ended += text[-1] == EOS
        assert not set(text) & {MASK, NULL}
    assert 0 < ended < 24
    assert told[-1] == "24 of 24 beginnings continued"
