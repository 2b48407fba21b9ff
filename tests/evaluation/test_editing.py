"""Editing beside rewriting, and filling beside going on from the left: on the shipped model, few texts."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

import redraft
from redraft.api import Model
from redraft.errors import RequestError
from redraft.evaluation import editing as e
from redraft.evaluation import filling as f
from redraft.evaluation import following as g
from redraft.evaluation.benches import BENCHES, Options, run_bench
from redraft.evaluation.prompts import load_dialogues


@pytest.fixture(scope="module")
def tiny() -> Model:
    return redraft.load("redraft-tiny")


def documents(model: Model) -> list[np.ndarray]:
    """The packaged dialogues as prepared documents."""
    found = []
    for replies in load_dialogues(model.tokenizer).replies:
        last = replies[-1]
        found.append(np.concatenate((last.prompt, last.text)))
    return found


def test_bench_edit(tiny: Model, tmp_path: Path) -> None:
    told = run_bench("edit", tiny, Options(quick=True))
    assert told["local"] == 1.0
    assert set(told["ways"]) == set(e.WAYS)
    assert told["ways"]["ar"]["nfe"] >= 38  # one evaluation a token of a text of 40
    assert told["ways"]["proofread"]["nfe"] < told["ways"]["ar"]["nfe"]
    assert len(e.lines(told)) == 6
    BENCHES["edit"].plot(told, tmp_path / "edit.svg")
    assert (tmp_path / "edit.svg").read_text().startswith("<?xml")


def test_texts_are_long_enough_and_errors_are_swaps(tiny: Model) -> None:
    settings = e.Editing(texts=3, tokens=60)
    texts = e.long_texts(tiny, load_dialogues(tiny.tokenizer), settings, Random(0))
    for text in texts:
        assert 50 <= len(tiny.tokenizer.encode(text)) <= 66
        wrong = e._swapped(text, 2, Random(1))
        assert sorted(wrong) == sorted(text)
        assert 0 < sum(a != b for a, b in zip(text, wrong, strict=True)) <= 4
    with pytest.raises(RequestError, match="ask for fewer with --prompts"):
        e.long_texts(tiny, load_dialogues(tiny.tokenizer), e.Editing(texts=10**6), Random(0))


def test_gaps_are_words_of_real_turns(tiny: Model) -> None:
    found = f.gaps(documents(tiny), tiny, 20, (1, 4), 0)
    for gap in found:
        assert 1 <= len(gap.middle.split()) <= 4
        assert gap.middle[0] == " "
        assert len(gap.prefix.split()) >= 3
        assert len(gap.suffix.split()) >= 3
    assert found == f.gaps(documents(tiny), tiny, 20, (1, 4), 0)
    with pytest.raises(RequestError, match="lower --limit"):
        f.gaps(documents(tiny), tiny, 10**6, (1, 4), 0)


def test_gaps_in_its_own_text_are_in_what_the_ar_self_writes(tiny: Model) -> None:
    """Other seeds write other texts; none is the same twice; a turn holds no special token."""
    found, other = (f.own_gaps(tiny, 6, (1, 4), seed) for seed in (0, 1))
    texts = [gap.prefix + gap.middle + gap.suffix for gap in found]
    assert len(set(texts)) == 6
    assert not set(texts) & {gap.prefix + gap.middle + gap.suffix for gap in other}
    assert not any(name in text for text in texts for name in tiny.tokenizer.special_ids)
    assert found == f.own_gaps(tiny, 6, (1, 4), 0)


def test_filling_measures_every_way(tiny: Model) -> None:
    told = f.filling(tiny, documents(tiny), count=4)
    own = [f.OWN + f.UNKNOWN, f.OWN + f.ORACLE]
    assert list(told["ways"]) == [*f.WAYS, *own, "true text"]
    assert told["own_gaps"] == 4
    for whose, before in (("held_out", ""), ("own", f.OWN)):
        unknown, oracle = (told["ways"][before + way]["exact"] for way in (f.UNKNOWN, f.ORACLE))
        assert told["found_of_oracle"].get(whose) == (unknown / oracle if oracle else None)
    true = told["ways"]["true text"]
    assert true["exact"] == true["length_ratio"] == 1.0
    assert told["ways"][f.FROM_THE_LEFT]["length_ratio"] <= 1.3
    assert told["ways"]["unknown length"]["nfe"] > told["ways"]["oracle length"]["nfe"]
    low, high = true["interval"]
    assert low < high == 1.0
    assert len(f.lines(told)) == 2 + len(told["ways"])


def test_nats_are_those_of_the_likelihood_of_the_whole_text(tiny: Model) -> None:
    """Of two texts behind one prefix the difference in nats is that of the texts scored whole."""
    gap = f.Gap("I would like", " to book", " a table for two people.")
    ids = f._as_turn(tiny, gap.prefix + gap.middle + gap.suffix)
    before = f._as_turn(tiny, gap.prefix)
    from redraft.engine.likelihood import likelihood

    whole = likelihood(tiny.backend, ids, replicates=0).ar_nll
    first = likelihood(tiny.backend, before, replicates=0).ar_nll
    assert whole is not None
    assert first is not None
    assert f.nats(tiny, gap, gap.middle) == (pytest.approx(whole - first, abs=1e-2), len(ids) - len(before))


def test_instructions_have_one_right_answer_each(tiny: Model) -> None:
    asked = g.cases(documents(tiny), tiny, 30, seed=0)
    assert asked == g.cases(documents(tiny), tiny, 30, seed=0)
    assert any(case.before != case.after for case in asked)
    told = g.following(tiny, documents(tiny), count=6)
    assert told["model_edits"]["texts"] == told["nothing"]["texts"] == 6
    assert told["nothing"]["kept_share"] == 1.0
    assert sum(m["texts"] for m in told["families"].values()) == 6
    assert len(g.lines(told)) == 4 + len(told["failures"])
    with pytest.raises(RequestError, match="lower --limit"):
        g.cases(documents(tiny), tiny, 10**6, seed=0)
