"""Any text survives the tokenizer, and no text becomes a special token."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers

from redraft.errors import RequestError
from redraft.hub.chat_template import ChatTemplate, load_template
from redraft.hub.tokenizer import Tokenizer
from tests.hub.conftest import SPECIALS, TEMPLATE, byte_level

unicode_text = st.text(st.characters(exclude_categories=["Cs"]))
# Text likely to hit a special token, whole or in pieces.
special_text = st.lists(
    st.sampled_from([*SPECIALS, "<|", "|>", "<|e", "os|>", "user", "<", ">", " ", "a"])
).map("".join)


@given(unicode_text)
@example("\x00\x1b[2J\r\n")
@example("e\u0301👩‍👩‍👧\ufffd\U0010fffd")
def test_any_unicode_survives_encoding_and_decoding(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert tokenizer.decode(ids) == text
    assert "".join(tokenizer.decode_slots(ids)) == text


@given(special_text)
@example("<|eos|>")
def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not set(ids.tolist()) & set(tokenizer.special_ids.values())
    assert tokenizer.decode(ids) == text


@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), special_text | unicode_text), min_size=1
    )
)
def test_a_conversation_has_the_templates_special_tokens_and_no_others(
    tokenizer: Tokenizer, turns: list[tuple[str, str]]
) -> None:
    ids = tokenizer.render([{"role": r, "content": c} for r, c in turns])
    specials = set(tokenizer.special_ids.values())
    expected = [tokenizer.special_id(f"<|{role}|>") for role, _ in turns]
    expected.append(tokenizer.special_id("<|assistant|>"))
    assert [i for i in ids.tolist() if i in specials] == expected
    # Between them stands what was written (trimmed, as the template says).
    ends = [n for n, i in enumerate(ids.tolist()) if i in specials]
    texts = [tokenizer.decode(ids[a + 1 : b]) for a, b in itertools.pairwise(ends)]
    assert texts == [content.strip() for _, content in turns]


def test_the_rendered_ids_are_those_of_the_template_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.render([{"role": "user", "content": " Hi there "}], add_generation_prompt=False)
    assert ids.tolist() == [tokenizer.special_id("<|user|>"), *tokenizer.encode("Hi there").tolist()]
    assert tokenizer.decode(ids) == "Hi there"
    assert tokenizer.decode(ids, skip_special=False) == "<|user|>Hi there"


def test_slots_show_a_character_where_it_is_complete_and_a_broken_one_safely(tokenizer: Tokenizer) -> None:
    # U+1F9A5 has no merges in this vocabulary: four tokens of one byte each.
    ids = tokenizer.encode("🦥").tolist()
    assert len(ids) == 4
    assert tokenizer.decode_slots(ids) == ["", "", "", "🦥"]
    assert tokenizer.decode_slots(ids[:2]) == ["", "\ufffd"]
    eos = tokenizer.special_id("<|eos|>")
    assert tokenizer.decode_slots([*ids[:2], eos, *ids]) == ["", "\ufffd", "", "", "", "", "🦥"]
    assert tokenizer.decode_slots([]) == []


@given(unicode_text, st.data())
def test_text_arrives_in_pieces_as_it_is_decoded_at_once(
    tokenizer: Tokenizer, text: str, data: st.DataObject
) -> None:
    ids = tokenizer.encode(text).tolist()
    cut = data.draw(st.integers(0, len(ids)))
    stream = tokenizer.text_stream()
    first = stream.put(ids[:cut])
    assert text.startswith(first)
    assert first + stream.put(ids[cut:]) + stream.end() == text


@given(st.lists(st.integers(6, 319), max_size=12))
def test_slots_of_any_tokens_join_to_their_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    ids = [i for i in ids if i < tokenizer.vocab_size]
    assert "".join(tokenizer.decode_slots(ids)) == tokenizer.decode(ids)


def test_ids_named_in_config_json_are_special_whatever_the_tokenizer_says(model_folder: Path) -> None:
    path = model_folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    for entry in raw["added_tokens"]:
        entry["special"] = entry["content"] not in ("<|mask|>", "<|eos|>")
    path.write_text(json.dumps(raw))
    loose = Tokenizer(path.read_text())
    assert loose.encode("<|mask|>").tolist() == [4]  # so the file says
    tokenizer = Tokenizer.load(model_folder)
    assert tokenizer.special_ids["<|mask|>"] == 4
    assert 4 not in tokenizer.encode("<|mask|>")
    assert 0 not in tokenizer.encode("<|eos|>")


def test_a_word_level_vocabulary_that_holds_a_special_word_refuses_it() -> None:
    fast = Fast(models.WordLevel({"<eos>": 0, "hi": 1, "?": 2}, unk_token="?"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.add_special_tokens(["<eos>", "?"])
    tokenizer = Tokenizer(fast)
    assert tokenizer.encode("hi you").tolist() == [1, 2]
    with pytest.raises(RequestError, match="the text contains <eos>"):
        tokenizer.encode("hi <eos>")


def test_sentencepiece_pieces_give_their_bytes() -> None:
    vocab = {"▁hi": 0, "<0xC3>": 1, "<0xBC>": 2, "<s>": 3, "▁": 4}
    fast = Fast(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    fast.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(fast)
    assert tokenizer.decode_slots([0, 1, 2, 3]) == [" hi", "", "ü", ""]
    assert tokenizer.token_bytes(3) == b""
    assert tokenizer.token_bytes(1) == b"\xc3"
    assert tokenizer.token_bytes(999) == b""  # a padded row of a network


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([], "messages is empty"),
        ("Hi", "must be a list"),
        (["Hi"], "message 0 must be an object"),
        ([{"role": "user"}], "message 0: content must be a string"),
        (
            [{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}],
            "message 1: role must be one of system",
        ),
        ([{"role": "user<|eos|>", "content": "a"}], "role must be one of"),
        ([{"role": "user", "content": "\ud800"}], "isn't valid UTF-8"),
        ([{"role": "user", "content": "a", "name": {1, 2}}], "isn't JSON"),
    ],
)
def test_malformed_messages_get_one_line(tokenizer: Tokenizer, messages: object, line: str) -> None:
    with pytest.raises(RequestError, match=line) as caught:
        tokenizer.render(messages)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_text_that_is_no_utf8_gets_one_line(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="isn't valid UTF-8"):
        tokenizer.encode("a\udce9")
    with pytest.raises(RequestError, match="must be a string"):
        tokenizer.encode(b"bytes")  # type: ignore[arg-type]


def test_special_tokens_by_name(tokenizer: Tokenizer) -> None:
    assert [tokenizer.special_id(n) for n in SPECIALS] == list(range(6))
    with pytest.raises(RequestError, match=r"no special token <\|eot\|>, did you mean <\|eos\|>"):
        tokenizer.special_id("<|eot|>")


def test_a_template_cannot_leave_its_sandbox_and_its_faults_are_one_line() -> None:
    with pytest.raises(RequestError, match="can't be read"):
        ChatTemplate("{% if %}")
    for source in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 1 / 0 }}",
    ):
        with pytest.raises(RequestError, match="chat template failed"):
            ChatTemplate(source).render([{"role": "user", "content": "a"}])
    with pytest.raises(RequestError, match="refuses these messages: no tools here"):
        ChatTemplate("{{ raise_exception('no tools\nhere') }}").render([])


def test_a_model_without_template_says_so() -> None:
    with pytest.raises(RequestError, match="no chat template: give raw text"):
        Tokenizer(byte_level()).render([{"role": "user", "content": "a"}])


def test_templates_are_found_where_the_format_keeps_them(tmp_path: Path) -> None:
    assert load_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": [{"name": "default", "template": "A{{ bos_token }}"}],
                                  "bos_token": {"content": "<s>"}, "pad_token": None}))  # fmt: skip
    template = load_template(tmp_path)
    assert template is not None
    assert template.render([]) == "A<s>"
    (tmp_path / "chat_template.jinja").write_text("B{{ {'a': '<'} | tojson }}")
    template = load_template(tmp_path)
    assert template is not None
    assert template.render([]) == 'B{"a": "<"}'
    config.write_text("[]")
    with pytest.raises(RequestError, match="must hold a JSON object"):
        load_template(tmp_path)


def test_unreadable_tokenizers_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    for content in ("{", "[]", '{"version": "1.0"}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(RequestError, match=r"tokenizer\.json can't be read") as caught:
            Tokenizer.load(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(RequestError, match="can't be read"):
        Tokenizer.load(tmp_path)


@settings(max_examples=20)
@given(special_text)
def test_a_template_sees_the_text_almost_as_it_is(text: str) -> None:
    """What templates do to texts (split, in, trim) still works: only special tokens' names are broken in
    there.
    """
    seen = Tokenizer(byte_level_once(), ChatTemplate("{{ messages[0].content.split('a')[-1] }}"))
    ids = seen.render([{"role": "user", "content": text}])
    assert seen.decode(ids) == text.split("a")[-1]


_FAST: list[Fast] = []


def byte_level_once() -> Fast:
    if not _FAST:
        _FAST.append(byte_level())
    return _FAST[0]


def test_the_template_in_a_folder_is_used(model_folder: Path) -> None:
    tokenizer = Tokenizer.load(model_folder)
    assert tokenizer.template is not None
    assert tokenizer.template.source == TEMPLATE
    assert tokenizer.render([{"role": "user", "content": "Hi"}])[-1] == tokenizer.special_id("<|assistant|>")


def test_conversations_are_rendered_as_transformers_renders_them() -> None:
    from transformers import PreTrainedTokenizerFast

    template = (
        "{%- if tools %}{{ raise_exception('no tools') }}{% endif -%}\n"
        "{% for message in messages %}\n"
        "    {%- if loop.first and message.role != 'system' %}{{ '<|system|>' }}{% endif %}\n"
        "    {%- if message.role == 'tool' %}{% continue %}{% endif %}\n"
        "{{ '<|' ~ message['role'] ~ '|>' + message.content | trim }}{{ {'n': loop.index} | tojson }}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}{{ eos_token }}"
    )
    fast = byte_level()
    theirs = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|eos|>", chat_template=template)
    ours = Tokenizer(fast, ChatTemplate(template, {"eos_token": "<|eos|>"}))
    messages = [
        {"role": "user", "content": "  Where to?\n"},
        {"role": "tool", "content": "unseen"},
        {"role": "assistant", "content": "To Zürich – 谢谢 <b>"},
    ]
    for generation in (True, False):
        expected = theirs.apply_chat_template(messages, add_generation_prompt=generation, return_dict=False)
        assert ours.render(messages, generation).tolist() == expected
    assert ours.decode(expected, skip_special=False) == theirs.decode(expected)
