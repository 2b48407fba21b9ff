"""Which prompts are taken, and where they end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from redraft.api import Model
from redraft.errors import RequestError
from redraft.evaluation.prompts import Dialogues, Reply, load_dialogues, pick_prompts, replies, to_messages
from redraft.hub.tokenizer import Tokenizer
from tests.hub.conftest import byte_level

USER, ASSISTANT, EOS = 1, 2, 0


def test_a_reply_ends_where_the_next_turn_or_the_document_does() -> None:
    document = np.array([USER, 10, 11, ASSISTANT, 20, USER, 12, ASSISTANT, 21, 22, EOS])
    found = list(replies(document, ASSISTANT, (USER, ASSISTANT, EOS)))
    assert [r.prompt.tolist() for r in found] == [document[:4].tolist(), document[:8].tolist()]
    assert [r.text.tolist() for r in found] == [[20], [21, 22]]
    assert [r.left for r in found] == [7, 3]


def test_a_document_cut_within_a_reply() -> None:
    (found,) = replies(np.array([ASSISTANT, 20, 21]), ASSISTANT, (USER, ASSISTANT, EOS))
    assert found.text.tolist() == [20, 21]


def test_the_sample_needs_nothing_but_a_chat_template(model: Model, dialogues: Dialogues) -> None:
    assert len(dialogues.replies) == 60
    assistant = model.tokenizer.special_id("<|assistant|>")
    for reply in dialogues.all():
        assert reply.prompt[-1] == assistant
        assert 0 < len(reply.text) <= reply.left
    first = dialogues.replies[0][0]
    assert model.tokenizer.decode(np.concatenate((first.prompt, first.text)), skip_special=False).startswith(
        "<|user|>"
    )
    with pytest.raises(RequestError, match="no chat template"):
        load_dialogues(Tokenizer(byte_level()))


def test_a_prepared_folder_gives_the_same_replies_as_its_text(model: Model, data: Path) -> None:
    found = load_dialogues(model.tokenizer, data, "valid")
    texts = [model.tokenizer.decode(r.text) for r in found.all()]
    assert texts == [
        "Sure: 谢谢 is open.",
        "Hello! What can I do for you today?",
        "Where do you want to fly?",
    ]
    prompt = model.tokenizer.render([{"role": "user", "content": "Find me a café in Zürich."}])
    np.testing.assert_array_equal(found.replies[0][0].prompt, prompt)
    assert found.source == "3 dialogues, valid split"


def test_data_of_another_tokenizer_is_refused(data: Path) -> None:
    small = Tokenizer('{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}')
    with pytest.raises(RequestError, match="another tokenizer"):
        load_dialogues(small, data, "valid")


def some(lefts: list[list[int]]) -> Dialogues:
    """Dialogues whose replies have so many tokens left; a prompt's tokens say which it is."""
    return Dialogues(
        tuple(
            tuple(Reply(np.array([i, j]), np.array([5]), left) for j, left in enumerate(own))
            for i, own in enumerate(lefts)
        ),
        "made up",
    )


def test_each_dialogue_gives_one_prompt_before_any_gives_two() -> None:
    chosen = pick_prompts(some([[9, 9, 9], [9], [9, 9]]), 3, 9)
    assert sorted(p[0] for p in chosen) == [0, 1, 2]
    assert sorted(p[0] for p in pick_prompts(some([[9, 9, 9], [9], [9, 9]]), 5, 9)) == [0, 0, 1, 2, 2]


def test_prompts_that_leave_too_little_come_last() -> None:
    chosen = [tuple(p) for p in pick_prompts(some([[9, 3], [3], [9]]), 4, 9)]
    assert set(chosen[:2]) == {(0, 0), (2, 0)}
    assert set(chosen[2:]) == {(0, 1), (1, 0)}
    with pytest.raises(RequestError, match="there are 4 prompts"):
        pick_prompts(some([[9, 3], [3], [9]]), 5, 9)


def test_a_seed_fixes_the_choice(dialogues: Dialogues) -> None:
    first, again = (pick_prompts(dialogues, 8, 32, seed=3) for _ in range(2))
    other = pick_prompts(dialogues, 8, 32, seed=4)
    assert [p.tolist() for p in first] == [p.tolist() for p in again] != [p.tolist() for p in other]


def test_prompts_leave_room_in_the_context(dialogues: Dialogues) -> None:
    assert all(len(p) <= 100 for p in pick_prompts(dialogues, 6, 28, context=128))


def test_transcripts_become_messages() -> None:
    assert to_messages("User: A: b\nAssistant: c") == [
        {"role": "user", "content": "A: b"},
        {"role": "assistant", "content": "c"},
    ]


def test_benches_need_no_torch() -> None:
    """On a fresh base install, with the packaged sample."""
    import subprocess
    import sys

    code = "import sys, redraft.evaluation.benches, redraft.cli.bench; sys.exit('torch' in sys.modules)"
    source = str(Path(__file__).parents[2] / "src")
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}, check=False).returncode == 0
    )
