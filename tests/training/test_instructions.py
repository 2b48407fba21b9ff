"""Instructions say what happened to the text, in wordings of training or in those kept for evaluation."""

from __future__ import annotations

from random import Random
from string import Formatter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.training.instruction_words import WORDINGS
from redraft.training.instructions import FAMILIES, Instructed, instruct

TEXTS = (
    "I want a table for 2 people at 5 pm on Friday in San Jose. Can you find me a Thai place?",
    "I am looking for something to eat. I don't need live music.",
    "It is $20. There was a bus on the 3rd of March.",
    "We wanted to see a film. They had good ones.",
)


def some(name: str, held_out: bool = False) -> list[Instructed]:
    return [m for seed in range(40) for t in TEXTS if (m := instruct(t, Random(seed), held_out, name))]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_changes_the_text_as_it_says(name: str) -> None:
    made = some(name)
    assert made
    for one in made:
        assert one.family == name
        assert one.before
        assert one.after
        assert "{" not in one.instruction
        assert one.before != one.after or name == "mistakes"
    assert made == some(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_evaluation_has_wordings_of_its_own(name: str) -> None:
    seen, unseen = ({m.instruction for m in some(name, held_out)} for held_out in (False, True))
    assert seen
    assert unseen
    assert not seen & unseen


def test_wordings_are_told_apart_and_take_the_same_values() -> None:
    for name, (trained, kept) in WORDINGS.items():
        assert trained, name
        assert kept, name
        assert not set(trained) & set(kept), name
        fields = {f for w in (*trained, *kept) for _, f, _, _ in Formatter().parse(w) if f}
        assert fields <= {"x", "y"}, name


def test_a_detail_is_exchanged_everywhere_and_nothing_else_is() -> None:
    text = "A table on Friday? Friday is fine."
    made = [m for seed in range(60) if (m := instruct(text, Random(seed), only="detail"))]
    assert made
    for one in made:
        new = next(d for d in one.after.split() if d.endswith("day?"))[:-1]
        assert one.after == text.replace("Friday", new)
        assert new in one.instruction


def test_examples_of_manner_and_sentences() -> None:
    def after(name: str, text: str) -> str | None:
        made = instruct(text, Random(0), only=name)
        return made and made.after

    assert after("polite", "I want tea.") == "I would like tea."
    assert after("casual", "I am here.") == "I'm here."
    assert after("formal", "I'm here.") == "I am here."
    assert after("past", "It is good.") == "It was good."
    assert after("present", "It was good.") == "It is good."
    assert after("join", "It is good. We like it.") == "It is good, and we like it."
    assert after("split", "It is good. We like it.") == "It is good. We like it."
    assert after("upper", "Good.") == "GOOD."
    assert after("lower", "Good.") == "good."
    assert after("please", "Find me a table.") == "Find me a table, please."


@settings(deadline=None)
@given(st.text(max_size=60), st.integers(0, 10**6))
def test_any_text_does(text: str, seed: int) -> None:
    made = instruct(text, Random(seed))
    assert made == instruct(text, Random(seed))
