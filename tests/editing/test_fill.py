"""Filling on a network whose answers are known: seams, gaps that grow, pins, several gaps, limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.api import Model
from redraft.editing.editor import Answer, Ask, Settled, Show
from redraft.editing.gap import CANVAS, Gap, Limits, _Tried
from redraft.engine import OPEN, Commit, GivenCanvas, Step
from redraft.errors import RequestError
from tests.editing.models import IDS, MASK, NULL, Scripted, scripted, tokens, typist


def test_a_gap_takes_what_the_network_knows_and_nulls_drop_out() -> None:
    model, backend = scripted(typist(" want to"))
    done = model.fill("Where do you", " fly? I want", slots=8, candidates=1, seed=1)
    assert (done.text, done.texts, done.full_text) == (
        " want to",
        (" want to",),
        "Where do you want to fly? I want",
    )
    assert (done.finish_reason, done.seed, done.decode) == ("stop", 1, "diffusion")
    assert done.nfe == len(backend.seen) == 1
    assert done.to_json()["full_text"] == done.full_text
    context, canvas = backend.seen[0]
    assert context[0] == IDS["user"]
    assert context[1:] == tokens("Where do you")[: len(context) - 1]
    assert tuple(canvas[-2:]) == tuple(tokens(" fly? I want")[-2:])


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8, 40])
def test_a_gap_that_ends_full_is_filled_again_with_twice_the_slots(slots: int) -> None:
    text = " do you want to fly to Zürich today"
    wanted = len(tokens(text))
    model, backend = scripted(typist(text))
    done = model.fill("Where", "", slots=slots, max_tokens=64)
    assert done.text == text
    assert done.finish_reason == "stop"
    tried = [slots]
    while tried[-1] <= wanted:  # no null was left
        tried.append(2 * tried[-1])
    assert [canvas.count(MASK) for _, canvas in backend.seen] == tried


def test_a_gap_is_cut_at_its_most_slots_and_says_so() -> None:
    model, _ = scripted(typist("qgz" * 9))
    done = model.fill("x", "", max_tokens=5)
    assert (done.finish_reason, done.tokens, done.text) == ("length", 5, "qgzqg")


def test_the_end_of_an_answer_ends_an_open_gap_but_no_other() -> None:
    def answers(context: list[int], canvas: list[int], locked: list[bool]) -> list[tuple[int, float]]:
        out, text = [], [*tokens("ab"), IDS["eos"], *tokens("cd")]
        for token in canvas:
            out.append((text.pop(0) if token == MASK and text else token, 0.99))
        return out

    model, _ = scripted(answers)
    assert model.fill("?", "", slots=8).text in ("ab", "b")
    assert IDS["eos"] not in model.fill("?", "!", slots=8, candidates=1).token_ids


def test_healing_lets_a_word_go_on_over_the_seam() -> None:
    """ "wa" is not bound to stay a token: the slot in its place may hold " want"."""
    model, backend = scripted(typist(" want to"))
    done = model.fill("Where do you wa", " fly?", candidates=1)
    head = tokens("Where do you wa")
    held = model.tokenizer.token_bytes(head[-1])
    assert done.full_text.startswith("Where do you wa")
    assert done.full_text.endswith(" fly?")
    assert backend.seen[0][0] == [IDS["user"], *head[:-1]]
    starting = [t for t in range(model.config.vocab_size) if model.tokenizer.token_bytes(t).startswith(held)]
    assert len(starting) > 1
    assert done.token_ids[0] in starting


def test_broken_characters_at_a_seam_are_left_out() -> None:
    half = next(t for t in range(320) if scripted(typist(""))[0].tokenizer.token_bytes(t) == b"\xc3")

    def answers(context: list[int], canvas: list[int], locked: list[bool]) -> list[tuple[int, float]]:
        out = []
        for token in canvas:
            out.append((half if token == MASK and len(out) < 3 else NULL if token == MASK else token, 0.99))
        return out

    model, _ = scripted(answers)
    for prefix, suffix in (("é", "é"), ("a", "🙂"), ("", "x"), ("谢", "")):
        done = model.fill(prefix, suffix)
        assert done.full_text == prefix + done.text + suffix
        assert "\ufffd" not in done.text


def test_pins_stand_at_their_slots() -> None:
    model, backend = scripted(typist(" a b c d e f"))
    done = model.fill("Where", "!", pins={3: " today"}, slots=4, candidates=1)
    pinned = tokens(" today")
    _, canvas = backend.seen[0]
    at = canvas.index(pinned[0])
    assert canvas[at : at + len(pinned)] == pinned
    assert canvas[:at].count(MASK) in (3, 4)  # a healed slot may come before
    assert " today" in done.text
    several = model.fill(["Where", " and", "?"], pins=[{}, {0: " today"}])
    assert several.texts[1].startswith(" today")


def test_several_gaps_in_one_text_and_each_sees_the_others() -> None:
    model, backend = scripted(typist(" to"))
    parts = ["I want", " fly", " Zürich", ""]
    done = model.fill(parts, candidates=1)
    assert len(done.texts) == 3
    assert done.full_text == "".join(a + b for a, b in zip(parts, [*done.texts, ""], strict=True))
    assert done.text == "".join(done.texts)
    context, _ = backend.seen[-1]
    assert model.tokenizer.decode(context).startswith("I want" + done.texts[0] + " fly")
    first = backend.seen[0][1]
    assert first.index(tokens(" fly")[-1]) < len(first) - 1 - first[::-1].index(
        MASK
    )  # the next gap is open behind


def test_what_stops_a_gap() -> None:
    model, _ = scripted(typist("one. two. three"))
    done = model.fill("Where", "?", stop=". ", slots=32, candidates=1)
    assert (done.text, done.finish_reason) == ("one", "stop")
    assert done.full_text == "Whereone?"


def test_a_long_prefix_keeps_its_last_part_and_a_long_suffix_its_first() -> None:
    model, backend = scripted(typist("x"))
    prefix, suffix = "one " * 900, " two" * 900
    done = model.fill(prefix, suffix, candidates=1, context=[{"role": "user", "content": "Hi"}])
    assert done.full_text == prefix + done.text + suffix
    context, canvas = backend.seen[0]
    assert 0 <= model.config.max_position_embeddings - len(context) - len(canvas) <= 2  # room for two seams
    head = model.tokenizer.render([{"role": "user", "content": "Hi"}]).tolist()
    assert context[: len(head)] == head
    assert done.prompt_tokens == len(context)


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


@settings(max_examples=20)
@given(st.lists(TEXT, min_size=2, max_size=4), st.integers(0, 10**6))
def test_the_text_around_gaps_comes_back_byte_for_byte(
    random_model: Model, parts: list[str], seed: int
) -> None:
    stream = random_model.fill_stream(parts, seed=seed, max_tokens=8, slots=3)
    commits = [event for event in stream if isinstance(event, Commit)]
    done = stream.result
    assert done.full_text == parts[0] + "".join(a + b for a, b in zip(done.texts, parts[1:], strict=True))
    assert done.full_text.encode().decode() == done.full_text
    assert len(commits) >= len(parts) - 1


def test_the_last_frame_is_the_answer_and_a_seed_gives_it_again(random_model: Model) -> None:
    options: dict[str, Any] = {"seed": 4, "temperature": 1.0, "max_tokens": 8}
    alone = [random_model.fill("fly ", tail, **options) for tail in (" to", "?", "")]
    streams = [random_model.fill_stream("fly ", tail, **options) for tail in (" to", "?", "")]
    frames: list[list[Step | Commit]] = [[] for _ in streams]
    turn = list(zip(streams, frames, strict=True))
    while turn:  # side by side: they share evaluations
        turn = [(s, f) for s, f in turn if (event := next(s, None)) is not None and not f.append(event)]
    for stream, events, same in zip(streams, frames, alone, strict=True):
        assert stream.result.texts == same.texts
        assert stream.result.token_ids == same.token_ids
        assert stream.result.nfe == same.nfe
        assert isinstance(events[-1], Commit)
        step = events[-2]
        assert isinstance(step, Step)
        null = random_model.config.null_token_id
        committed = stream.ask.request.canvases[step.canvas].commit
        assert tuple(t for t in step.tokens[:committed].tolist() if t != null) == events[-1].tokens


def test_a_fill_left_early_keeps_the_gaps_that_were_done() -> None:
    model, _ = scripted(typist(" to"))
    stream = model.fill_stream(["I want", " fly", " home"])
    for event in stream:
        if isinstance(event, Commit):
            stream.close()
    done = stream.result
    assert done.finish_reason == "interrupted"
    assert done.texts[0]
    assert done.texts[1] == ""
    assert done.full_text == "I want" + done.texts[0] + " fly home"
    assert not model.engine.has_work or not list(stream)


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (["only"], {}, "there is no gap"),
    ("a", {"pins": {9: "words"}, "max_tokens": 10}, "the pin 'words' takes slots 9 to"),
    ("a", {"pins": {0: "xy", 1: "z"}}, "the pin 'z' lies over another one"),
    ("a", {"pins": {-1: "x"}}, "a pin is a slot from 0 and a text"),
    ("a", {"pins": {0: ""}}, "a pin is a slot from 0 and a text"),
    ("a", {"pins": [{}, {}]}, "pins are for 2 gaps, and there are 1"),
    ("a", {"pins": {0: "x"}, "max_tokens": 1}, "the pins take every slot"),
    ("a", {"candidates": 0}, "candidates must be a whole number of at least 1"),
    ("a", {"fills": 0}, "fills must be a whole number of at least 1"),
    (
        "a",
        {"fills": 2, "candidates": 1},
        "fills are compared where lengths are: ask for more than 1 candidate",
    ),
    (
        "a",
        {"fills": 2, "temperature": 0.5},
        "several fills are the likeliest ones, not draws: use temperature 0",
    ),
    ("a", {"max_tokens": 0}, "max_tokens must be a whole number of at least 1"),
    ("a", {"max_tokens": 250}, "max_tokens is 250; with the text behind the gap"),
    ("a", {"slots": 0}, "slots must be a whole number of at least 1"),
    ("a", {"stop": [""]}, "stop must be texts"),
    ("\ud800", {}, "the text isn't valid UTF-8"),
    ("a", {"temperature": -1}, "temperature must be a number"),
    ("a", {"seed": "x"}, "seed must be a whole number"),
    ("a", {"context": "long " * 400}, "the context takes"),
]


@pytest.mark.parametrize(("prefix", "options", "line"), WRONG, ids=[line[:24] for *_, line in WRONG])
def test_wrong_fills_are_refused_in_one_line(prefix: Any, options: dict[str, Any], line: str) -> None:
    model, backend = scripted(typist("x"))
    with pytest.raises(RequestError) as caught:
        model.fill_stream(prefix, **options)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert not backend.seen


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"null_token_id": None}, "this model has no null token"),
        ({"mask_token_id": None}, "this model only writes from left to right"),
        ({"layout": "block_causal"}, "this model's canvases sit on a grid"),
    ],
)
def test_models_that_can_not_fill(changes: dict[str, Any], line: str) -> None:
    model, _ = scripted(typist("x"), **changes)
    for call in (lambda: model.fill("a", "b"), lambda: model.edit("some text")):
        with pytest.raises(RequestError, match=line):
            call()


def reader(texts: tuple[str, ...], likes: str) -> tuple[Model, Scripted]:
    """A network that fills n slots with the first n tokens of `texts[n - 1]`, and whose AR self writes `likes`."""

    def answers(context: list[int], canvas: list[int], locked: list[bool]) -> list[tuple[int, float]]:
        opened = canvas.count(MASK)
        wanted = list(tokens(texts[min(opened, len(texts)) - 1]))
        return [(wanted.pop(0) if t == MASK and wanted else NULL if t == MASK else t, 0.99) for t in canvas]

    return scripted(answers, likes=tokens(likes))


# No other token starts or ends as these: there are no seams, and a gap's slots are its tokens alone.
BEFORE, BEHIND = "!", "?"


def test_the_length_stays_that_the_ar_self_finds_likeliest_with_what_follows() -> None:
    texts = ("x", "qx", "qgz", "qgzq", "qgzqg", "qgzqgz")
    for length in (1, 2, 3):
        model, backend = reader(texts, BEFORE + texts[length - 1] + BEHIND)
        done = model.fill(BEFORE, BEHIND, seed=0)
        assert done.text == texts[length - 1]
        assert done.finish_reason == "stop"
        assert [canvas.count(MASK) for _, canvas in backend.seen] == [1, 2, 3, 4]
        assert done.nfe == 8  # a canvas and a reading each
    model, backend = reader(texts, BEFORE + texts[0] + BEHIND)
    assert model.fill(BEFORE, BEHIND, candidates=2).text == texts[0]
    assert [canvas.count(MASK) for _, canvas in backend.seen] == [1, 2]


def test_both_selves_say_how_likely_a_fill_is() -> None:
    probability = np.array([0.5, 0.25, 0.1], np.float32)
    ids = np.array([5, 6, 7])
    step = Step(0, 1, 0, ids, np.zeros(3, np.uint8), probability, np.zeros(3, np.float32), 1)
    canvas = GivenCanvas((OPEN, OPEN, 7), (False, False, True), 2, trial=True)
    request = replace(scripted(typist("x"))[0].request("x"), decode="edit", canvases=(canvas,))
    tried = _Tried(Ask(request, "", ""), Settled(step, Commit(0, (5, 6), 2, ar_nll=3.0)))
    assert tried.nll == pytest.approx(3.0 + CANVAS * np.log(8.0))
    assert tried.ids == [5, 6]


def test_of_several_fills_of_each_length_the_likeliest_for_both_selves_stays(random_model: Model) -> None:
    editor = random_model._editor(0, None, {"temperature": 0.0})
    steps = Gap(editor, "fly ", (" to",), {}, Limits(3, fills=3), 0).write()
    ask = next(steps)
    assert isinstance(ask, Ask)
    settled, shown = [], None
    for event in random_model._open(ask.request):
        if isinstance(event, Step):
            shown = event
        else:
            assert shown is not None
            settled.append(Settled(shown, event))
    assert [one.commit.canvas for one in settled] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len({(one.commit.canvas, one.commit.tokens) for one in settled}) == 9
    chosen = steps.send(Answer(tuple(settled)))
    assert isinstance(chosen, Show)
    assert chosen.settled is min(settled, key=lambda one: _Tried(ask, one).nll)


def test_longer_ones_are_tried_while_the_longest_is_the_likeliest() -> None:
    texts = ("x", "qx", "qgx", "qgzq", "qgzqg", "qgzqgz")
    model, backend = reader(texts, BEFORE + texts[-1] + BEHIND)
    done = model.fill(BEFORE, BEHIND, max_tokens=40)
    assert done.text == texts[-1]
    assert [canvas.count(MASK) for _, canvas in backend.seen] == [1, 2, 3, 4, 6, 8]
    assert model.fill(BEFORE, BEHIND, max_tokens=4).finish_reason == "length"


def test_a_gap_of_a_given_length_has_no_empty_slot() -> None:
    model, backend = scripted(typist("qg"))
    done = model.fill(BEFORE, BEHIND, slots=3, max_tokens=3)
    assert len(done.token_ids) == 3
    assert done.text.startswith("qg")
    assert done.finish_reason == "length"
    searched = len(backend.seen)
    alone = model.fill(BEFORE, BEHIND, slots=3, max_tokens=3, fills=1)
    assert alone.text.startswith("qg")
    assert alone.nfe == len(backend.seen) - searched  # nothing is compared
    backend.seen.clear()
    drawn = model.fill(BEFORE, BEHIND, slots=3, max_tokens=3, temperature=1.0)
    assert drawn.nfe == len(backend.seen)  # a draw stands for itself


def test_the_chosen_length_is_the_last_that_is_seen() -> None:
    texts = ("x", "qx", "qgx", "qgzq")
    model, _ = reader(texts, BEFORE + texts[1] + BEHIND)
    stream = model.fill_stream(BEFORE, BEHIND)
    events = list(stream)
    assert [type(event) for event in events] == [Step] * 5 + [Commit]
    assert stream.ask.request.canvases[events[-1].canvas].initial.count(OPEN) == 2
    assert events[-1].tokens == stream.result.token_ids == tuple(tokens(texts[1]))
    assert tuple(events[-2].tokens[:2]) == events[-1].tokens
    early = model.fill_stream(BEFORE, BEHIND)
    for count, _ in enumerate(early):
        if count == 2:  # two have been read, the third has settled
            early.close()
    assert (early.result.finish_reason, early.result.text) == ("interrupted", texts[1])


def test_pins_and_stops_hold_at_every_length(random_model: Model) -> None:
    for seed in range(4):
        done = random_model.fill("fly ", " to", pins={1: " at"}, max_tokens=8, seed=seed)
        assert " at" in done.text
        done = random_model.fill("fly ", " to", stop="e", max_tokens=8, seed=seed)
        assert "e" not in done.text
