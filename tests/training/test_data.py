"""From text to shards and back, whatever the file, and one line for what can't be."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from redraft.errors import RequestError
from redraft.training.data import (
    Corpus,
    Document,
    encode_document,
    prepare,
    read_documents,
    write_corpus,
)
from redraft.training.recipe import Prepare, Source
from redraft.training.tokenizer import SPECIALS
from tests.training.toys import dialogues, write_jsonl

TEXTS = [
    "one two three",
    "Grüße, 世界 🦥",
    "a <|eos|> typed by a person <|mask|>",
    "12.50\n\n  tabs\tand  spaces ",
]


def settings(path: Path, **changes: Any) -> Prepare:
    source = {k: changes.pop(k) for k in ("format", "field", "where", "limit") if k in changes}
    return Prepare(
        **({"sources": [Source(path=str(path), **source)], "vocab_size": 300, "holdout": 0} | changes)
    )


def text_of(folder: Path, ids: np.ndarray) -> str:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_documents_come_back_from_jsonl(tmp_path: Path, suffix: str) -> None:
    plain = write_jsonl(tmp_path / "t.jsonl", [{"text": t} for t in TEXTS]).read_bytes()
    path = tmp_path / f"p.jsonl{suffix}"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix](plain))
    report = prepare(settings(path), tmp_path / "out")
    corpus = Corpus(tmp_path / "out", "train")
    assert [text_of(tmp_path / "out", corpus[i]) for i in range(len(corpus))] == [
        t + "<|eos|>" for t in TEXTS
    ]
    assert report["train"]["bytes"] == sum(len(t.encode()) for t in TEXTS)
    assert report["train"]["tokens"] == sum(len(corpus[i]) for i in range(len(corpus)))
    assert corpus.lengths.tolist() == [len(corpus[i]) for i in range(len(corpus))]


def test_a_txt_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("first\n\nsecond\n")
    prepare(settings(tmp_path / "t.txt"), tmp_path / "out")
    corpus = Corpus(tmp_path / "out", "train")
    assert len(corpus) == 1
    assert text_of(tmp_path / "out", corpus[0]) == "first\n\nsecond\n<|eos|>"


def test_special_tokens_that_a_person_types_stay_text(tmp_path: Path) -> None:
    typed = "".join(SPECIALS)
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": f"User: {typed}\nAssistant: {typed}"}])
    prepare(settings(path, format="dialogue"), tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    special = {tokenizer.token_to_id(s): s for s in SPECIALS}
    ids = Corpus(tmp_path / "out", "train")[0].tolist()
    assert [special[i] for i in ids if i in special] == ["<|user|>", "<|assistant|>", "<|eos|>"]
    text = text_of(tmp_path / "out", np.array(ids))
    assert text == f"<|user|>{typed}<|assistant|>{typed}<|eos|>"


def test_dialogues_and_messages_are_the_same_documents(tmp_path: Path) -> None:
    lines = "User: hi\nthere\nAssistant:\nUser: ok: yes\nAssistant: bye"
    turns = [("user", "hi\nthere"), ("assistant", ""), ("user", "ok: yes"), ("assistant", "bye")]
    write_jsonl(tmp_path / "d.jsonl", [{"text": lines}])
    write_jsonl(tmp_path / "m.jsonl", [{"talk": [{"role": r, "content": c} for r, c in turns]}])
    dialogue = read_documents([Source(path=str(tmp_path / "d.jsonl"), format="dialogue")])
    messages = read_documents([Source(path=str(tmp_path / "m.jsonl"), format="messages", field="talk")])
    assert dialogue == messages == [Document(tuple(turns))]
    assert messages[0].text.startswith("User: hi\nthere\nAssistant: ")


def test_where_and_limit_choose_records(tmp_path: Path) -> None:
    records = [{"text": f"t{i}", "split": "ab"[i % 2], "n": i} for i in range(8)]
    path = write_jsonl(tmp_path / "t.jsonl", records)
    found = read_documents([Source(path=str(path), where={"split": "b"}, limit=2)])
    assert [d.text for d in found] == ["t1", "t3"]
    assert [d.text for d in read_documents([Source(path=str(path), where={"n": "5"})])] == ["t5"]


def test_the_holdout_is_disjoint_and_the_same_again(prepared: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": f"document number {i}"} for i in range(20)])
    for out in ("a", "b"):
        prepare(settings(path, holdout=5, seed=3), tmp_path / out)
    held, rest = Corpus(tmp_path / "a", "valid"), Corpus(tmp_path / "a", "train")
    assert (len(held), len(rest)) == (5, 15)
    texts = [text_of(tmp_path / "a", c[i]) for c in (held, rest) for i in range(len(c))]
    assert len(set(texts)) == 20
    for file in ("train.bin", "valid.bin", "train.npy", "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert len(Corpus(prepared, "test")) == 5


def test_the_chat_template_writes_what_training_reads(prepared: Path) -> None:
    from redraft.hub.tokenizer import Tokenizer as ChatTokenizer

    path = prepared / "tokenizer.json"
    document = Document((("user", "a table <|eos|>"), ("assistant", "yes")))
    ids = encode_document(Tokenizer.from_file(str(path)), document)
    messages = [{"role": r, "content": t} for r, t in document.parts]
    rendered = ChatTokenizer.load(prepared).render(messages, add_generation_prompt=False)
    assert rendered.tolist() == ids[:-1]


@pytest.mark.parametrize(
    ("records", "source", "told"),
    [
        ([{"text": "  "}, {"text": ""}], {}, "no text"),
        ([], {}, "no text"),
        ([{"text": "x"}], {"where": {"a": "b"}}, "no text"),
        ([{"body": "x"}], {}, "line 1: no field 'text'"),
        (["x"], {}, "line 1: no field 'text'"),
        ([{"text": 3}], {}, "must be text, not int"),
        ([{"text": "hello"}], {"format": "dialogue"}, "must begin with"),
        ([{"text": "hello"}], {"format": "messages"}, "list of messages"),
        ([{"text": [{"role": "user"}]}], {"format": "messages"}, "list of messages"),
        ([{"text": [{"role": "robot", "content": "x"}]}], {"format": "messages"}, "system"),
        ([{"text": [{"role": "user", "content": None}]}], {"format": "messages"}, "list of messages"),
    ],
)
def test_bad_records_are_refused(tmp_path: Path, records: Any, source: dict[str, Any], told: str) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", records)
    with pytest.raises(RequestError) as caught:
        prepare(settings(path, **source), tmp_path / "out")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    packed = gzip.compress(json.dumps({"text": "x" * 1000}).encode())
    broken = bytearray(packed)
    broken[15] ^= 0xFF
    files = {
        "cut.jsonl.gz": packed[:-9],
        "broken.jsonl.gz": bytes(broken),
        "cut.jsonl.xz": lzma.compress(b'{"text": "x"}')[:-20],
        "latin.jsonl": '{"text": "é"}'.encode("latin-1"),
        "not.jsonl": b"{text}",
        "half.jsonl": b'{"text": "\\ud800"}',
        "table.csv": b"a,b",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name in [*files, "absent.jsonl"]:
        with pytest.raises(RequestError) as caught:
            read_documents([Source(path=str(tmp_path / name))])
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_holdout_of_everything_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": t} for t in dialogues(3)])
    with pytest.raises(RequestError, match="holdout 3 leaves nothing of 3"):
        prepare(settings(path, holdout=3), tmp_path / "out")


def test_damaged_corpora_are_refused(tmp_path: Path) -> None:
    def written() -> Path:
        write_corpus(tmp_path, "train", [[1, 2, 3], [4, 5]], [0, 1], 9, 300)
        return tmp_path

    corpus = Corpus(written(), "train")
    assert [corpus[i].tolist() for i in range(2)] == [[1, 2, 3], [4, 5]]
    assert corpus.starts.tolist() == [0, 1]
    with pytest.raises(RequestError, match="holds no valid data; run redraft prepare"):
        Corpus(tmp_path, "valid")
    for name, damage in {
        "train.bin": lambda b: b[:-1],
        "train.npy": lambda b: b[:-30],
        "train.json": lambda b: b[:-4],
    }.items():
        path = written() / name
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(RequestError, match="run redraft prepare again"):
            Corpus(tmp_path, "train")
    write_corpus(tmp_path, "valid", [[1, 2]], [0], 2, 300)
    written()
    (tmp_path / "train.npy").write_bytes((tmp_path / "valid.npy").read_bytes())
    with pytest.raises(RequestError, match="run redraft prepare again"):
        Corpus(tmp_path, "train")


def test_large_vocabularies_get_wide_tokens(tmp_path: Path) -> None:
    write_corpus(tmp_path, "train", [[70_000, 1]], [0], 2, 70_001)
    assert Corpus(tmp_path, "train")[0].tolist() == [70_000, 1]


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "some text"}])
    with pytest.raises(RequestError, match="can't be made"):
        prepare(settings(path), tmp_path / "file" / "out")
