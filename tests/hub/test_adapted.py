"""Models by name that are an adapter on a base: shipped, pinned, pulled with their base, and run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import redraft
from redraft.errors import RedraftError, RequestError
from redraft.files import sha256
from redraft.hub import adapted, catalogue, store
from redraft.hub.catalogue import Adapted, Base
from redraft.hub.pull import pull
from tests.hub.conftest import byte_level
from tests.training.bases import NAME, make_base

torch = pytest.importorskip("torch")


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter of random numbers on a base of the store, shipped into adapters/tiny-adapted and pinned."""
    from redraft.denoiser import adapters, families
    from redraft.denoiser.adapter_config import AdapterConfig
    from redraft.training.ship import pin, ship_adapter

    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(catalogue.BASES, NAME, Base(NAME, "someone/tiny", "apache-2.0"))
    base = families.load(make_base())
    size = byte_level().get_vocab_size()
    model = adapters.attach(base, AdapterConfig(NAME, 4, 4.0, size, size + 1, canvas_length=6))
    with torch.no_grad():
        for p in adapters.adapter_of(model).parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    made = tmp_path / "made"
    made.mkdir()
    adapters.save(adapters.adapter_of(model), model.config, made)
    out = ship_adapter(made, tmp_path / "adapters" / "tiny-adapted", {"threshold": 0.8})
    pins = tmp_path / "pins.json"
    pins.write_text("{}")
    pin(out, pins)
    (entry,) = json.loads(pins.read_text()).items()
    monkeypatch.setitem(catalogue.ADAPTED, entry[0], Adapted(entry[0], **entry[1]))
    monkeypatch.setenv(adapted.VARIABLE, str(tmp_path / "adapters"))
    return out


def test_it_is_pulled_with_its_base_and_runs_by_name(shipped: Path, tmp_path: Path) -> None:
    told: list[str] = []
    pulled = pull("tiny-adapted", told.append)
    assert (pulled.fetched, pulled.source) == (True, f"{tmp_path}/adapters/tiny-adapted")
    assert f"it goes on {NAME}" in told
    assert not (pulled.model.path / "tokenizer.json").exists()
    assert not pull("tiny-adapted").fetched
    for backend in ("torch", "onnx"):
        model = redraft.load("tiny-adapted", backend=backend)
        assert model.defaults.threshold == 0.8
        assert (model.defaults.canvas_length, model.defaults.draft_length) == (6, 6)
        options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0, "seed": 0, "ignore_eos": True}
        ar = model.generate("abc", decode="ar", **options)
        assert model.generate("abc", decode="verified", **options).token_ids == ar.token_ids
    where_it_lies = redraft.load(shipped, backend="torch")
    assert where_it_lies.generate("abc", **options).tokens == 12


def test_a_newer_one_takes_the_place_of_the_one_in_the_store(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redraft.training.ship import pin, ship_adapter

    pull("tiny-adapted")
    newer = ship_adapter(tmp_path / "made", shipped, {"threshold": 0.7})
    pins = tmp_path / "newer.json"
    pins.write_text("{}")
    pin(newer, pins)
    (entry,) = json.loads(pins.read_text()).items()
    monkeypatch.setitem(catalogue.ADAPTED, entry[0], Adapted(entry[0], **entry[1]))
    told: list[str] = []
    assert pull("tiny-adapted", told.append).fetched
    assert "is another one than this version of redraft knows: it is replaced" in told[0]
    assert redraft.load("tiny-adapted", backend="onnx").defaults.threshold == 0.7
    assert not pull("tiny-adapted").fetched


def test_first_use_of_the_name_pulls_it(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RequestError, match="tiny-adapted isn't in the store yet: redraft models pull"):
        store.find("tiny-adapted")
    model = redraft.load("tiny-adapted", backend="torch")
    assert model.name == "tiny-adapted"
    assert "checking it" in capsys.readouterr().err


def test_a_folder_of_yours_is_taken_as_it_is(shipped: Path) -> None:
    mine = shutil.copytree(shipped, shipped.parent / "mine")
    assert pull(str(mine)).model.path == store.local_root() / "mine"
    (mine / "generation_config.json").write_text("{}")
    shutil.rmtree(store.local_root() / "mine")
    with pytest.raises(RequestError, match="generation_config.json has 2 bytes where"):
        pull(str(mine))


def _cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _another(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text() + " ")


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (_cut, "adapter_model.safetensors isn't what its manifest says: not used"),
        (_another, "isn't the one that this version of redraft knows"),
        (lambda folder: (folder / "config.json").unlink(), "config.json can't be read: No such file"),
    ],
)
def test_what_is_not_as_pinned_is_not_used(shipped: Path, harm: Any, line: str) -> None:
    harm(shipped)
    with pytest.raises(RedraftError, match=line) as told:
        pull("tiny-adapted")
    assert "\n" not in str(told.value)
    assert not (store.local_root() / "tiny-adapted").exists()


def test_no_place_is_told_with_what_to_do(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(adapted.VARIABLE)
    monkeypatch.setattr(adapted, "CHECKOUT", shipped / "nowhere")
    with pytest.raises(RequestError, match="set \\$REDRAFT_ADAPTERS to the folder or the address") as told:
        pull("tiny-adapted")
    assert "\n" not in str(told.value)
    monkeypatch.setenv(adapted.VARIABLE, "http://127.0.0.1:9/adapters")
    with pytest.raises(RedraftError, match="manifest.json can't be fetched"):
        pull("tiny-adapted")


def test_it_comes_from_an_address(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import functools
    import http.server
    import threading

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *told: object) -> None: ...

    kind = functools.partial(Quiet, directory=str(shipped.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(adapted.VARIABLE, f"http://127.0.0.1:{server.server_port}/")
        pulled = pull("tiny-adapted")
        server.shutdown()
    name = "adapter_model.safetensors"
    assert sha256(pulled.model.path / name) == sha256(shipped / name)


def test_what_cannot_be_shipped(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from redraft.training import ship

    monkeypatch.setattr(ship, "LARGEST", 1 << 10)
    with pytest.raises(RequestError, match="more than the"):
        ship.ship_adapter(shipped, tmp_path / "out", {})
    monkeypatch.delitem(catalogue.BASES, NAME)
    with pytest.raises(RequestError, match="no whole base that others can fetch by name"):
        ship.ship_adapter(shipped, tmp_path / "out", {})


def test_what_the_package_pins_is_what_the_repository_holds() -> None:
    for name, entry in catalogue.ADAPTED.items():
        assert entry.base in catalogue.BASES
        folder = adapted.CHECKOUT / name
        if folder.is_dir():
            assert sha256(folder / "manifest.json") == entry.manifest
            store.check(folder)
            assert sum(p.stat().st_size for p in folder.iterdir()) <= 16 << 20
