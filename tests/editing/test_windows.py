"""Proofreading and instructions on a network whose answers are known: windows, nulls, passes, long texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.api import Model
from redraft.editing.alignment import with_nulls
from redraft.engine import Commit, Step
from redraft.errors import RequestError
from tests.editing.models import IDS, NULL, corrector, scripted, tokens

LETTERS = "ghijklmnopqrstuv"


def one(letter: str) -> int:
    (token,) = tokens(letter)
    return token


def test_nulls_come_after_every_so_many_tokens() -> None:
    assert with_nulls(np.arange(5), 2, -1).tolist() == [0, 1, -1, 2, 3, -1, 4]
    assert with_nulls(np.arange(4), 2, -1).tolist() == [0, 1, -1, 2, 3, -1]
    assert with_nulls(np.arange(0), 2, -1).tolist() == []
    assert with_nulls(np.arange(3), 8, -1).dtype == np.int64


def test_a_text_without_doubt_costs_an_evaluation_a_window_and_stays() -> None:
    text = "qgz" * 40
    model, backend = scripted(corrector({}))
    done = model.edit(text)
    assert (done.text, done.hunks, done.time_to_first_hunk) == (text, (), None)
    count = len(tokens(text))
    windows = 1 + max(0, -(-(count - 28) // 24))
    assert done.nfe == len(backend.seen) == windows
    assert all(len(canvas) <= 32 for _, canvas in backend.seen)
    assert done.diff() == ""


def test_doubted_tokens_are_replaced_deleted_and_inserted_and_only_changed_windows_read_twice() -> None:
    text = "g" * 30 + "q" + "g" * 30 + "x" + "g" * 30
    model, _ = scripted(corrector({one("q"): one("k"), one("x"): NULL}))
    done = model.edit(text)
    assert done.text == text.replace("q", "k").replace("x", "")
    assert [(h.start, h.end, h.before, h.after) for h in done.hunks] == [
        (30, 31, "q", "k"),
        (61, 62, "x", ""),
    ]
    assert all(0.9 < h.confidence < 1 for h in done.hunks)
    windows = 1 + -(-(len(tokens(text)) - 28) // 24)
    assert windows < done.nfe <= windows + 4
    model, _ = scripted(lambda c, canvas, lk: [(one("k") if t == NULL else t, 0.95) for t in canvas])
    done = model.edit("g" * 20, steps=1)
    assert done.text == "g" * 8 + "k" + "g" * 8 + "k" + "g" * 4 + "k"
    assert [(h.before, h.after) for h in done.hunks] == [("", "k")] * 3


def test_the_threshold_says_how_sure_a_revision_must_be() -> None:
    for sure, threshold, changes in [
        (0.8, None, False),
        (0.95, None, True),
        (0.8, 0.7, True),
        (0.95, 0.99, False),
    ]:
        model, _ = scripted(corrector({one("q"): one("k")}, sure))
        assert (model.edit("gqg", threshold=threshold).text == "gkg") is changes
    model, _ = scripted(corrector({one("q"): one("k")}, 0.6))
    assert model.edit("gqg", "mend it").text == "gkg"


def test_proofreading_leaves_line_ends_and_an_instruction_may_change_them() -> None:
    model, _ = scripted(corrector({one("\n"): one("k")}))
    assert model.edit("gh\ngh\r\n").text == "gh\ngh\r\n"
    assert model.edit("gh\ngh\n", "join the lines").text == "ghkghk"


@pytest.mark.parametrize("instruction", [None, "replace every q by k"])
def test_a_text_longer_than_the_context_is_edited_whole(instruction: str | None) -> None:
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list(LETTERS), 900))
    model, backend = scripted(corrector({one("q"): one("k"), one("x"): NULL}))
    done = model.edit(text, instruction)
    assert done.text == text.replace("q", "k")
    assert all(len(context) + len(canvas) <= 256 for context, canvas in backend.seen)
    # Every stretch sees some text before it: all but the first window, in its passes.
    assert sum(len(context) < 24 for context, _ in backend.seen) <= 2


def test_windows_read_the_edited_text_before_them() -> None:
    text = "q" + "g" * 60
    model, backend = scripted(corrector({one("q"): one("k")}))
    model.edit(text, context=[{"role": "user", "content": "gg"}])
    head = model.tokenizer.render([{"role": "user", "content": "gg"}]).tolist()
    assert backend.seen[0][0] == head
    assert backend.seen[-1][0] == head + tokens("k" + "g" * 47)


def test_an_instruction_is_read_with_the_text() -> None:
    model, backend = scripted(corrector({}))
    model.edit("ghi", "do it")
    want = [IDS["edit"], *tokens("do it\n"), *tokens("ghi"), IDS["assistant"]]
    assert backend.seen[0] == (want, [*tokens("ghi"), NULL])


def test_an_instruction_stays_within_its_spans() -> None:
    text = "q" * 70
    model, backend = scripted(corrector({one("q"): one("k")}))
    done = model.edit(text, "replace", spans=[(3, 6), (40, 69)])
    assert done.text == "qqqkkk" + "q" * 34 + "k" * 29 + "q"
    context, canvas = backend.seen[0]
    assert context[-3:] == tokens("qqq")
    assert canvas[3] == NULL
    assert canvas[4:9] == tokens("qqqqq")


def test_a_model_without_the_token_takes_no_instruction() -> None:
    model, _ = scripted(corrector({}))
    del model.tokenizer.special_ids["<|edit|>"]
    assert model.edit("ghi").text == "ghi"
    with pytest.raises(RequestError, match="takes no instructions"):
        model.edit("ghi", "do it")


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=80)


@settings(max_examples=20)
@given(TEXT, st.data(), st.sampled_from([0.0, 0.02, 0.3]), st.integers(0, 10**6))
def test_whatever_a_network_doubts_the_hunks_say_all(
    random_model: Model, text: str, data: st.DataObject, threshold: float, seed: int
) -> None:
    instruction = data.draw(st.sampled_from([None, "make it 🙂"]))
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    spans = [(start, end)] if instruction else None
    done = random_model.edit(text, instruction, spans, threshold=threshold, seed=seed)
    if spans:
        assert done.text.startswith(text[:start])
        assert done.text.endswith(text[end:])
    rebuilt, at = "", 0
    for hunk in done.hunks:
        assert text[hunk.start : hunk.end] == hunk.before
        rebuilt += text[at : hunk.start] + hunk.after
        at = hunk.end
    assert rebuilt + text[at:] == done.text
    assert done.text.count("\n") >= text.count("\n") or instruction is not None


def test_the_last_frames_are_the_edit_and_it_comes_again(random_model: Model) -> None:
    text = "Where do you want to fly? I want to fly to Zürich today."
    options: dict[str, Any] = {"threshold": 0.05, "seed": 3}
    stream = random_model.edit_stream(text, **options)
    frames: dict[int, Step] = {}
    written: list[int] = []
    for event in stream:
        if isinstance(event, Step):
            frames[event.canvas] = event
        elif isinstance(event, Commit):
            canvas = stream.ask.request.canvases[event.canvas]
            shown = frames[event.canvas].tokens[: canvas.commit].tolist()
            assert tuple(t for t in shown if t != random_model.config.null_token_id) == event.tokens
            written += event.tokens
    data = b"".join(random_model.tokenizer.token_bytes(t) for t in written)
    assert data != text.encode()
    if data.decode("utf-8", "replace").encode() == data:  # no hunk was dropped
        assert stream.result.text == data.decode()
    again = random_model.edit(text, **options)
    assert (again.text, again.hunks, again.nfe) == (
        stream.result.text,
        stream.result.hunks,
        stream.result.nfe,
    )
