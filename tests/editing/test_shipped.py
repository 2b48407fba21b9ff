"""Filling and editing with the model that ships, on its CPU backend."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.api import Model

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
PIECES = ["I need a table for two", " at 7 pm", "\r\n", "\t", "é", "e\u0301", "👩‍👧 ", " in San José.", "\n"]
WORDS = st.sampled_from(PIECES)


@settings(max_examples=25)
@given(st.lists(st.one_of(TEXT, WORDS), min_size=1, max_size=5), st.data(), st.integers(0, 10**6))
def test_only_the_selection_changes(shipped: Model, words: list[str], data: st.DataObject, seed: int) -> None:
    text = "".join(words)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 12)))
    done = shipped.edit(text, spans=[(start, end)], seed=seed, temperature=1.0)
    assert done.text.startswith(text[:start])
    assert done.text.endswith(text[end:])
    assert len(done.text) >= len(text) - (end - start)
    filled = shipped.fill(text[:start], text[end:], seed=seed, max_tokens=8)
    assert filled.full_text == text[:start] + filled.text + text[end:]


def test_it_fills_with_words_and_proofreads_in_a_pass_a_window(shipped: Model) -> None:
    text = "I need a table for two people at 7 pm in San Jose. " * 4
    filled = shipped.fill("I need a table for", " people.", seed=0)
    assert filled.text.startswith(" ")
    assert filled.finish_reason == "stop"
    done = shipped.edit(text, threshold=1.0)
    assert (done.text, done.hunks) == (text, ())
    count = len(shipped.tokenizer.encode(text))
    assert done.nfe == 1 + -(-(count - 28) // 24)
    again = [shipped.edit(text, lines=(1, 1), seed=5) for _ in range(2)]
    assert again[0].text == again[1].text
