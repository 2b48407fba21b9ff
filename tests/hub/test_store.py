"""Models by name and path; whatever is wrong with one is found before it's loaded, and told in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from redraft.errors import RedraftError, RequestError
from redraft.files import manifest, write_atomically
from redraft.hub import store
from tests.hub.conftest import write_model


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the user's store, and the shipped models are one of ours."""
    shipped = tmp_path / "package"
    write_model(shipped / "redraft-tiny")
    monkeypatch.setattr(store, "shipped_root", lambda: shipped)
    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_models_are_found_by_name_and_by_path(own_store: Path, tmp_path: Path) -> None:
    write_model(own_store / "mine")
    write_model(own_store / "redraft-tiny")  # doesn't hide the shipped one
    (own_store / "no-model").mkdir()
    assert [(m.name, m.origin) for m in store.models()] == [("redraft-tiny", "shipped"), ("mine", "local")]
    assert store.resolve("mine").path == own_store / "mine"
    elsewhere = write_model(tmp_path / "elsewhere")
    assert store.resolve(elsewhere) == store.ModelFolder("elsewhere", elsewhere, "path")
    assert store.resolve(str(elsewhere) + "/").name == "elsewhere"


def test_the_store_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("REDRAFT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store.home() == tmp_path / "cache" / "redraft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.home() == tmp_path / ".cache" / "redraft"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("redraft-tinny", "unknown model 'redraft-tinny', did you mean redraft-tiny.*models list"),
        ("zzz", r"unknown model 'zzz' \(`redraft models list`"),
        ("./nowhere", "there is no folder ./nowhere"),
        ("  ", "name is empty"),
    ],
)
def test_an_unknown_model_names_the_nearest_and_how_to_list(name: str, line: str) -> None:
    with pytest.raises(RequestError, match=line):
        store.resolve(name)


def test_a_file_is_not_a_model(model_folder: Path) -> None:
    with pytest.raises(RequestError, match="is a file: give the model's folder"):
        store.resolve(model_folder / "model.safetensors")


def drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def remote_code(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling.Evil"})


def remote_tokenizer(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": "tokenization.Evil"})


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def alter_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def add_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ 1 }}")


def break_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": {"../config.json": {"size": 1, "sha256": ""}}}')


def wild_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../weights.safetensors"}}')


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (drop_config, "has no config.json: not a model directory"),
        (break_config, "config.json can't be read as JSON"),
        (list_config, "config.json must hold a JSON object"),
        (pickle_only, r"has no model.safetensors \(pytorch_model.bin is a pickle, which redraft never opens"),
        (remote_code, r"config.json asks to run code of its own \(auto_map\)"),
        (remote_tokenizer, r"tokenizer_config.json asks to run code of its own \(auto_map\)"),
        (truncate_weights, r"model.safetensors has \d+ bytes where \d+ are due: fetch the model again"),
        (alter_weights, r"model.safetensors was altered \(its sha256 isn't the manifest's\)"),
        (drop_tokenizer, "tokenizer.json is missing"),
        (add_template, "chat_template.jinja isn't in the manifest"),
        (break_manifest, "isn't a manifest"),
        (wild_index, "which lies outside the folder"),
    ],
)
def test_a_bad_folder_gets_one_line(model_folder: Path, harm: Callable[[Path], None], line: str) -> None:
    store.resolve(model_folder)
    harm(model_folder)
    with pytest.raises(RequestError, match=line) as caught:
        store.resolve(model_folder)
    assert "\n" not in str(caught.value)


def test_without_a_manifest_nothing_is_compared(model_folder: Path) -> None:
    alter_weights(model_folder)
    (model_folder / "manifest.json").unlink()
    store.resolve(model_folder)
    assert store.describe(store.find(model_folder))["verified"] is False


def test_shards_are_those_of_the_index(model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "one.safetensors")
    shutil.copy(model_folder / "one.safetensors", model_folder / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (model_folder / "manifest.json").write_text(json.dumps(manifest(model_folder)))
    store.resolve(model_folder)
    assert store.weight_files(model_folder) == ["one.safetensors", "two.safetensors"]
    assert store.parameters(model_folder) == 20
    (model_folder / "two.safetensors").unlink()
    with pytest.raises(RequestError, match=r"has no two\.safetensors"):
        store.check(model_folder)


def test_a_description_counts_and_verifies(model_folder: Path) -> None:
    told = store.describe(store.find(model_folder))
    assert (told["parameters"], told["verified"], told["licence"]) == (10, True, "cc-by-sa-4.0")
    assert told["bytes"] == sum(p.stat().st_size for p in model_folder.iterdir())
    alter_weights(model_folder)
    assert "was altered" in store.describe(store.find(model_folder))["verified"]
    (model_folder / "model.safetensors").write_bytes(b"\xff" * 20)
    assert store.parameters(model_folder) is None


def test_only_models_of_the_store_can_be_removed(own_store: Path, model_folder: Path) -> None:
    write_model(own_store / "mine")
    assert store.remove("mine") == own_store / "mine"
    assert list(own_store.iterdir()) == []
    with pytest.raises(RequestError, match="part of redraft"):
        store.remove("redraft-tiny")
    with pytest.raises(RequestError, match="folder of yours"):
        store.remove(str(model_folder))
    assert (model_folder / "config.json").exists()
    with pytest.raises(RequestError, match="unknown model"):
        store.remove("mine")


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(RedraftError, match="could not be written"):
        write_atomically(tmp_path / "absent" / "file", b"x")
    with pytest.raises(RedraftError, match="could not be written"):
        write_atomically(path / "below-a-file", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RedraftError, match="could not be written"):
        write_atomically(tmp_path / "folder", b"x")
    assert sorted(p.name for p in tmp_path.glob(".*")) == []
