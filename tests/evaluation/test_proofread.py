"""The scorer of edits on triples counted by hand, and the editors that are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.errors import RequestError
from redraft.evaluation.editors import (
    OUTCOMES,
    Pair,
    choose_threshold,
    compare,
    edited,
    example_lines,
    examples,
    lines,
    load_pairs,
    nothing,
    proofreading,
    rewrite_prompt,
    rewriting,
    spelling,
)
from redraft.evaluation.proofread import (
    Change,
    Counts,
    Instructed,
    Triple,
    changes,
    count,
    pieces,
    score,
    score_by_kind,
    score_instructions,
)

GOOD = "I want to go to the park."
TYPO = "I wnat to go to the park."


def test_pieces() -> None:
    assert pieces("Don't go , Zoë!\n") == ["Don't", " go", " ,", " Zoë", "!", "\n"]
    assert pieces("") == []


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_pieces_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


WORDS = st.lists(st.sampled_from([" a", " b", " a.", " c"]), max_size=8).map("".join)


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS)
def test_changes_make_the_one_text_of_the_other(before: str, after: str) -> None:
    given = pieces(before)
    out, at = [], 0
    for change in changes(given, pieces(after)):
        out += [*given[at : change.start], *change.new]
        at = change.stop
    assert "".join([*out, *given[at:]]) == after


def test_one_of_equal_words_is_the_first() -> None:
    given = pieces(" go to to to us")
    assert changes(given, pieces(" go to to us")) == [Change(1, 2, ())]
    assert changes(pieces(" go to us"), pieces(" go to to us")) == [Change(1, 1, (" to",))]


# errors, found, mended, edits, placed, right, untouched, falsely edited
@pytest.mark.parametrize(
    ("damaged", "back", "counted"),
    [
        (TYPO, GOOD, Counts(1, 1, 1, 1, 1, 1)),
        (TYPO, TYPO, Counts(1, 0, 0, 0, 0, 0)),
        (TYPO, "I went to go to the park.", Counts(1, 1, 0, 1, 1, 0)),
        (TYPO, "I wnat to go to the bark.", Counts(1, 0, 0, 1, 0, 0)),
        (TYPO, "I want to go to the bark.", Counts(1, 1, 1, 2, 1, 1)),
        (GOOD, GOOD, Counts(untouched=1)),
        (GOOD, "I want to go in a park.", Counts(edits=1, untouched=1, falsely_edited=1)),
        (GOOD, "I want too go to a park.", Counts(edits=2, untouched=1, falsely_edited=1)),
        # a word left out, put back at its place, beside it, or as another word
        ("I want to go the park.", GOOD, Counts(1, 1, 1, 1, 1, 1)),
        ("I want to go the park.", "I want to go into the park.", Counts(1, 1, 0, 1, 1, 0)),
        ("I want to go the park.", "I want to go to park.", Counts(1, 1, 0, 1, 1, 0)),
        ("I want to go the park.", "I to want to go the park.", Counts(1, 0, 0, 1, 0, 0)),
        # a word too many, whichever of the two goes
        ("I want to to go to the park.", GOOD, Counts(1, 1, 1, 1, 1, 1)),
        # two words in each other's place, and words joined or split
        ("I to want go to the park.", GOOD, Counts(2, 2, 2, 2, 2, 2)),
        ("I wantto go to the park.", GOOD, Counts(1, 1, 1, 1, 1, 1)),
        ("I want to go to the pa rk.", GOOD, Counts(1, 1, 1, 1, 1, 1)),
        ("I want to go to the pa rk.", "I want to go to the park rk.", Counts(1, 1, 0, 1, 1, 0)),
        # marks, case, white space
        ("I want to go to the park .", GOOD, Counts(1, 1, 1, 1, 1, 1)),
        ("i want to go to the park", GOOD, Counts(2, 2, 2, 2, 2, 2)),
        ("i want to go to the park", "I want to go to the park", Counts(2, 1, 1, 1, 1, 1)),
        (TYPO, "", Counts(1, 1, 0, 1, 1, 0)),
    ],
)
def test_counts_by_hand(damaged: str, back: str, counted: Counts) -> None:
    assert count(Triple(GOOD, damaged, back)) == counted


def test_scores_are_those_of_the_formulas() -> None:
    counts = Counts(errors=10, found=6, mended=3, edits=8, placed=6, right=4, untouched=50, falsely_edited=1)
    precision, recall, f05 = counts.detection
    assert (precision, recall) == (0.75, 0.6)
    assert f05 == pytest.approx(1.25 * 0.75 * 0.6 / (0.25 * 0.75 + 0.6))
    assert counts.correction == (0.5, 0.3, pytest.approx(1.25 * 0.15 / (0.125 + 0.3)))
    told = counts.told()
    assert (told["mended_of_found"], told["false_edits"]) == (0.5, 0.02)
    assert told["false_edits_interval"][0] < 0.02 < told["false_edits_interval"][1]
    assert json.loads(json.dumps(told)) == told
    assert Counts(errors=3).detection == (None, 0.0, 0.0)
    assert Counts().false_edits is None


def test_kinds_are_counted_apart() -> None:
    triples = [
        Triple(GOOD, TYPO, GOOD, "typo"),
        Triple(GOOD, TYPO, TYPO, "typo"),
        Triple(GOOD, "I want to go the park.", "I want to go the park.", "word_dropped"),
        Triple(GOOD, GOOD, GOOD),
    ]
    kinds = score_by_kind(triples)
    assert list(kinds) == ["typo", "word_dropped"]
    assert kinds["typo"].correction[:2] == (1.0, 0.5)
    assert kinds["word_dropped"].found == 0
    assert sum(kinds.values(), Counts(untouched=1)) == score(triples)


TEXTS = st.tuples(WORDS, WORDS, WORDS).map(lambda t: Triple(*t))


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_counts_hold_together(triple: Triple) -> None:
    c = count(triple)
    assert c.mended <= c.found <= c.errors
    assert c.right <= c.placed <= c.edits
    assert (c.mended == 0) == (c.right == 0)
    assert c.untouched == (triple.original == triple.damaged)
    perfect = count(Triple(triple.original, triple.damaged, triple.original))
    assert perfect.mended == perfect.errors == perfect.right == perfect.edits
    assert perfect.falsely_edited == 0
    lazy = count(Triple(triple.original, triple.damaged, triple.damaged))
    assert lazy.found == lazy.edits == 0


def test_instructions() -> None:
    before, wanted = "See you on Friday at noon.", "See you on Sunday at noon."
    told = score_instructions(
        Triple(wanted, before, back)
        for back in (wanted, before, "See you on Monday at noon.", "See me on Sunday at noon.")
    )
    assert told == Instructed(texts=4, done=1, begun=3, local=3, to_keep=24, kept=23)
    assert told.told()["done_share"] == 0.25
    assert Instructed().told()["kept_share"] is None


# Editors


def test_a_spelling_dictionary_mends_what_is_no_word() -> None:
    pytest.importorskip("symspellpy", reason="in the extra `eval`")
    mend = spelling()
    assert mend("Thier hose  is smal, isn't it?\r\n") == "Their hose  is small, isn't it?\r\n"
    assert mend("42 zł, I") == "42 zł, I"


def test_rewriting_keeps_the_white_space_around(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Writer:
        def generate(self, prompt: Any, **options: Any) -> Any:
            asked.append((prompt, options))
            return type("Written", (), {"text": " Right.\n"})()

    editor = rewriting(Writer(), lambda text: f"Correct: {text}", max_tokens=9)
    assert editor("\t Wrnog. \n") == "\t Right. \n"
    assert editor("  ") == "  "
    assert asked == [
        ("Correct: \t Wrnog. \n", {"decode": "ar", "temperature": 0.0, "seed": 0, "max_tokens": 9})
    ]


PAIRS = [Pair(f"{GOOD} {i}", f"{TYPO} {i}", "typo") for i in range(6)]
PAIRS += [Pair(f"{GOOD} {i}", f"{GOOD} {i}") for i in range(50)]


def eager(text: str, threshold: float) -> str:
    """Mends more typos the lower the threshold, and begins to touch right texts below 0.6."""
    number = int(text.rpartition(" ")[2])
    if "wnat" in text:
        return text.replace("wnat", "want") if number >= 6 * threshold else text
    return text.replace("park", "bark") if number >= 100 * threshold - 10 else text


def test_the_threshold_is_the_best_that_leaves_right_texts_alone() -> None:
    choice = choose_threshold(eager, PAIRS, [0.1, 0.5, 0.58, 0.59, 0.7, 0.9])
    assert choice is not None
    # 0.59 edits one right text of 50, 0.58 two; 0.59 and 0.58 mend the same
    assert choice.threshold == 0.59
    assert choice.counts.false_edits == 0.02
    assert choose_threshold(eager, PAIRS, [0.1, 0.2]) is None
    assert choose_threshold(lambda text, t: text, PAIRS, [0.5, 0.9]).threshold == 0.9  # type: ignore[union-attr]


def test_editors_side_by_side() -> None:
    pairs = [*PAIRS, Pair(GOOD, "I want to go the park.", "word_dropped")]
    told = compare(
        {"nothing": nothing, "ours": lambda text: text.replace("wnat", "want")}, pairs, ["word_dropped"]
    )
    assert (told["texts"], told["errors"]) == (57, 7)
    ours = told["editors"]["ours"]
    assert ours["seen"]["correction"] == {"precision": 1.0, "recall": 1.0, "f05": 1.0}
    assert ours["unseen"]["detection"]["recall"] == 0.0
    assert ours["kinds"]["typo"]["mended"] == 6
    looked = ours["examples"]
    assert {name: len(texts) for name, texts in looked.items()} == {
        "mended": 6,
        "wrong": 0,
        "missed": 1,
        "false": 0,
    }
    assert looked["missed"] == [
        {
            "text": "I want to go the park.",
            "edited": "I want to go the park.",
            "right": GOOD,
            "kind": "word_dropped",
        }
    ]
    assert told["editors"]["nothing"]["all"]["edits"] == 0
    shown = lines(told)
    assert shown[0] == "57 texts, 7 with an error"
    assert "| ours | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 0.0 |" in shown
    assert "| nothing, kinds not seen | – | 0.0 | 0.0 | – | 0.0 | 0.0 | – | – |" in shown


def test_texts_of_each_outcome_can_be_looked_at() -> None:
    triples = [
        Triple(GOOD, TYPO, GOOD, "typo"),
        Triple(GOOD, TYPO, "I went to go to the park.", "typo"),
        Triple(GOOD, TYPO, "I wnat to go to the bark.", "typo"),
        Triple(GOOD, GOOD, "I want to go in the park."),
        Triple(GOOD, GOOD, GOOD),
    ]
    found = examples(triples)
    assert {name: [text["edited"] for text in texts] for name, texts in found.items()} == {
        name: [t.edited] for name, t in zip(OUTCOMES, triples, strict=False)
    }
    assert found["false"] == [{"text": GOOD, "edited": "I want to go in the park."}]
    assert [len(texts) for texts in examples(triples * 3, 2).values()] == [2, 2, 2, 2]
    assert example_lines({"editors": {"diffusion": {"examples": found}}}) == [
        "- mended: `` I wnat to go to `` → `` I want to go to ``",
        "- wrong: `` I wnat to go to `` → `` I went to go to `` (right: `` I want to go to the park. ``)",
        "- missed: `` I wnat to go to the park. `` (right: `` I want to go to the park. ``)",
        "- false: `` want to go to the park. `` → `` want to go in the park. ``",
    ]
    assert example_lines({"editors": {"diffusion": {}}}) == []
    assert edited(str.upper, [Pair("a", "b", "c")]) == [Triple("a", "b", "B", "c")]


def test_a_model_at_the_threshold_that_validation_chooses() -> None:
    class Model:
        tokenizer = type("Plain", (), {"special_ids": {}})()

        def edit(self, text: str, *, threshold: float) -> Any:
            return type("Edit", (), {"text": eager(text, threshold)})()

        def generate(self, prompt: Any, **options: Any) -> Any:
            return type("Written", (), {"text": prompt[0]["content"].partition("\n")[2].upper()})()

    strange = Pair(GOOD + " 1", "I want to go the park. 1", "word_dropped")
    told = proofreading(Model(), PAIRS, [*PAIRS, strange])  # type: ignore[arg-type]
    assert told["threshold"] == 0.6
    assert told["unseen"] == ["word_dropped"]
    assert list(told["editors"])[:3] == ["nothing", "diffusion", "AR rewriting"]
    assert told["editors"]["diffusion"]["seen"]["false_edits"] == 0.0
    assert told["editors"]["diffusion"]["unseen"]["errors"] == 1
    assert told["editors"]["AR rewriting"]["seen"]["false_edits"] == 1.0
    assert lines(told)[-1] == "threshold 0.6, chosen on validation texts"
    told = proofreading(Model(), [], [*PAIRS, strange], threshold=0.4)  # type: ignore[arg-type]
    assert told["threshold"] == 0.4
    assert told["editors"]["diffusion"]["all"]["false_edits"] == 0.4


def test_rewriting_is_asked_for_as_the_model_was_taught() -> None:
    class Letters:
        def __init__(self, **names: int) -> None:
            self.special_ids = {f"<|{name}|>": number for name, number in names.items()}

        def encode(self, text: str) -> np.ndarray:
            return np.array([ord(c) for c in text])

    content = "Correct the mistakes.\nWrnog."
    assert rewrite_prompt(Letters(user=1), "Wrnog.") == [{"role": "user", "content": content}]  # type: ignore[arg-type]
    ids = rewrite_prompt(Letters(edit=1, assistant=2), "Wrnog.")  # type: ignore[arg-type]
    assert ids.tolist() == [1, *map(ord, content), 2]


def test_pairs_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"original": "a", "damaged": "b", "kind": "typo"}\n{"original": "a", "damaged": "a"}\n')
    assert load_pairs(path) == [Pair("a", "b", "typo"), Pair("a", "a")]
    for bad, message in (
        ("", "no texts"),
        ("{", "line 1"),
        ("[]", "line 1"),
        ('{"original": 1, "damaged": "a"}', "line 1: needs original, damaged and kind"),
    ):
        path.write_text(bad)
        with pytest.raises(RequestError, match=message):
            load_pairs(path)
    with pytest.raises(RequestError, match="can't be read"):
        load_pairs(tmp_path / "none")
