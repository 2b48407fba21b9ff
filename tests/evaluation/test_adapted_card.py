"""The card of an adapted model: every number from a measurement or from the run's own records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import redraft
from redraft.errors import RequestError
from redraft.evaluation import adapted_card
from redraft.evaluation.acceptance import Acceptance, acceptance
from redraft.evaluation.domains import Domain
from redraft.files import MANIFEST
from redraft.hub import catalogue, store
from redraft.hub.catalogue import Base
from tests.hub.conftest import byte_level
from tests.training.bases import NAME, make_base

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An adapter on a tiny base, its measurement, and what its training left."""
    from redraft.denoiser import adapters, families
    from redraft.denoiser.adapter_config import AdapterConfig
    from redraft.training.ship import ship_adapter

    root = tmp_path_factory.mktemp("adapted")
    patch = pytest.MonkeyPatch()
    patch.setenv("REDRAFT_HOME", str(root / "home"))
    patch.setitem(catalogue.BASES, NAME, Base(NAME, "someone/tiny-1", "apache-2.0"))
    size = byte_level().get_vocab_size()
    settings = AdapterConfig(NAME, 4, 4.0, size, size + 1, canvas_length=6)
    model = adapters.attach(families.load(make_base()), settings)
    made = root / "made"
    made.mkdir()
    adapters.save(adapters.adapter_of(model), model.config, made)
    folder = ship_adapter(made, root / "tiny-adapted", {})
    loaded = redraft.load(folder, backend="torch")
    prompts = [np.array(loaded.encode(f"say {i}"), dtype=np.int64) for i in range(4)]
    domains = [Domain("code", "some file", prompts[:2]), Domain("chat", "another", prompts[2:])]
    told = {"model": loaded.name, "command": "redraft eval acceptance --model it"}
    told |= {"acceptance": acceptance(loaded, domains, Acceptance(tokens=10))}
    results = root / "results.json"
    results.write_text(json.dumps(told))
    yield root, folder, results, told
    patch.undo()


def run_folder(root: Path, dialogues: bool) -> Path:
    run = root / f"run-{dialogues}"
    run.mkdir()
    sources = [{"path": "data/wheels/*.whl"}, {"path": "data/docs_peps.jsonl.xz"}]
    sources += [{"path": "data/dialogues_sgd.jsonl.xz"}] if dialogues else []
    recipe = {
        "name": "toy",
        "prepare": {"sources": sources},
        "answers": {"sources": [{"path": "data/math_gsm8k.jsonl.xz"}, {"path": "mine.txt"}]},
        "canvas": {"per_row": 4, "length": 6},
        "adapter": {"markov_rank": 2},
        "train": {"row_length": 48},
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    records = [
        {"step": 0, "seconds": 0.0, "valid_accepted": 0.25, "valid_fill": 9.0},
        {"step": 5, "seconds": 60.0, "tokens_per_second": 1000.0},
        {"step": 9, "seconds": 120.0, "tokens_per_second": 3000.0},
        {"step": 9, "seconds": 120.0, "valid_accepted": 2.5, "valid_fill": 3.0, "valid_accepted_live": 2.75},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return run


def test_the_card_tells_what_was_measured(measured: Any) -> None:
    root, folder, results, told = measured
    path = adapted_card.write(results, folder, [run_folder(root, True)], "one abacus")
    text = path.read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["license"], front["base_model"]) == ("cc-by-sa-4.0", "someone/tiny-1")
    for name, d in [*told["acceptance"]["domains"].items(), ("all", told["acceptance"]["overall"])]:
        (row, speed) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert f"{d['accepted_in_a_row']:.2f}" in row
        assert f" {d['modes']['verified']['tokens_per_forward']:.2f} " in speed
        for place in d["places"]:
            assert f"{100 * place['share']:.0f} [" in row
    assert "9 steps in 2 minutes on one abacus: 0.24 million clean tokens (2000 a second)" in text
    assert "in a row: 0.25 before, 2.50 (with the Markov head 2.75) after; holes: 9.00 and 3.00" in text
    assert "| GSM8K, training split | prompts, answered by the base | MIT |" in text
    assert "| mine | prompts, answered by the base | not known |" in text
    assert "Python packages" in text
    store.check(folder)  # the manifest knows the card
    assert "README.md" in (folder / MANIFEST).read_text()


def test_without_share_alike_text_the_base_says_the_licence(measured: Any) -> None:
    root, folder, results, _ = measured
    text = adapted_card.write(results, folder, [run_folder(root, False)] * 2).read_text()
    assert yaml.safe_load(text.split("---")[1])["license"] == "apache-2.0"
    assert "CC BY-SA" not in text
    assert text.count("`toy`: 9 steps") == 2  # stages
    assert text.count("Python packages") == 1
    bare = adapted_card.write(results, folder).read_text()
    assert "## Training" not in bare
    assert not re.search(r"\bnan\b|None", bare)


def test_what_is_kept_of_a_run_tells_the_same_as_its_folder(measured: Any, tmp_path: Path) -> None:
    _, folder, results, _ = measured
    run = run_folder(tmp_path, True)
    due = adapted_card.write(results, folder, [run], "an abacus").read_text()
    kept = adapted_card.keep_run(run, "an abacus", tmp_path / "runs")
    assert kept == tmp_path / "runs" / "toy.json"
    assert adapted_card.write(results, folder, [kept]).read_text() == due
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    start = str(tmp_path / "runs" / "first" / "step-000003")
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"adapter": {"start": start, "rank": 2}}))
    told = adapted_card.keep_run(run, "an abacus", tmp_path / "runs").read_text()
    assert json.loads(told)["recipe"]["adapter"] == {"start": "first/step-000003", "rank": 2}
    assert str(tmp_path) not in told
    for text, line in (("{}", "holds no record of a run"), ("{", "can't be read")):
        kept.write_text(text)
        with pytest.raises(RequestError, match=line):
            adapted_card.write(results, folder, [kept])


def test_results_of_something_else_are_refused(measured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root, folder, results, told = measured
    other = root / "other.json"
    other.write_text(json.dumps(told | {"model": "redraft-tiny"}))
    with pytest.raises(RequestError, match="was measured on redraft-tiny, not on tiny-adapted"):
        adapted_card.write(other, folder)
    other.write_text(json.dumps({"model": "x", "likelihood": {}}))
    assert adapted_card.main([str(other), "--card", str(folder)]) == 2
    assert "is no result of redraft eval acceptance" in capsys.readouterr().err
    assert adapted_card.main([str(results), "--card", str(folder)]) == 0
    with pytest.raises(RequestError, match="metrics.jsonl can't be read"):
        adapted_card.write(results, folder, [root / "nowhere"])
