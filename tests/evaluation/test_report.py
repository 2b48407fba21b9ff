"""Numbers between marks, the model card, and the one command that measures and writes everything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from redraft.errors import RequestError
from redraft.evaluation import card, numbers, report
from redraft.evaluation.effort import tuned
from redraft.evaluation.prompts import to_messages
from redraft.files import manifest
from redraft.training.data import Document
from tests.evaluation.conftest import prepared

RESULTS: dict[str, Any] = {
    "model": "a-model",
    "ratio": {"diffusion": 1.4159},
    "list": [10, 20],
    "training": [
        {"stage": "base", "steps": 900, "seconds": 3000.0, "tokens": 1_500_000, "machine": "two cores"}
    ],
}


def test_values_and_blocks_are_renewed_and_the_rest_stays() -> None:
    text = (
        "It is <!-- numbers:ratio.diffusion|.2f -->9<!-- /numbers --> × AR, <!-- numbers:list.1 --><!-- /numbers -->.\n"
        "<!-- numbers:training -->\nold\n<!-- /numbers -->\nEnd <!-- a comment -->\n"
    )
    assert numbers.rewrite(text, RESULTS) == (
        "It is <!-- numbers:ratio.diffusion|.2f -->1.42<!-- /numbers --> × AR, "
        "<!-- numbers:list.1 -->20<!-- /numbers -->.\n"
        "<!-- numbers:training -->\n"
        "| stage | steps | minutes | million tokens | machine |\n| --- | ---: | ---: | ---: | ---: |\n"
        "| base | 900 | 50 | 1.50 | two cores |\n"
        "<!-- /numbers -->\nEnd <!-- a comment -->\n"
    )


def test_rewriting_twice_changes_nothing_more() -> None:
    text = "<!-- numbers:training --><!-- /numbers --> <!-- numbers:model --><!-- /numbers -->"
    once = numbers.rewrite(text, RESULTS)
    assert numbers.rewrite(once, RESULTS) == once


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- numbers:model -->", "has no <!-- /numbers --> after it"),
        ("<!-- /numbers -->", "has no beginning"),
        (
            "<!-- numbers:model --><!-- numbers:model --><!-- /numbers -->",
            "has no <!-- /numbers --> after it",
        ),
        ("<!-- numbers:ratio.verified --><!-- /numbers -->", "hold no numbers:ratio.verified"),
        ("<!-- numbers:list.2 --><!-- /numbers -->", "hold no numbers:list.2"),
        ("<!-- numbers:model|.2f --><!-- /numbers -->", "no value that can be written as .2f"),
        ("<!-- numbers:speed --><!-- /numbers -->", "measure it first"),
    ],
)
def test_marks_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        numbers.rewrite(text, RESULTS)


def test_a_file_is_written_only_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("<!-- numbers:model -->?<!-- /numbers -->")
    assert numbers.rewrite_file(path, RESULTS) is True
    assert path.read_text() == "<!-- numbers:model -->a-model<!-- /numbers -->"
    assert numbers.rewrite_file(path, RESULTS) is False
    path.write_text("<!-- numbers:nothing --><!-- /numbers -->")
    with pytest.raises(RequestError, match="a.md: the results hold no numbers:nothing"):
        numbers.rewrite_file(path, RESULTS)


def test_front_matter_is_yaml_of_the_hub() -> None:
    text = card.front_matter(card.About())
    front = yaml.safe_load(text.strip("-"))
    assert front["license"] == "cc-by-sa-4.0"
    assert front["library_name"] == "redraft"
    assert front["pipeline_tag"] == "text-generation"
    assert front["datasets"] == ["schema_guided_dstc8"]
    assert front["language"] == ["en"]


def test_a_card_says_what_was_measured_and_nothing_else() -> None:
    text = card.card(RESULTS, card.About())
    assert "google-research-datasets/dstc8-schema-guided-dialogue" in text
    assert "| base | 900 | 50 | 1.50 | two cores |" in text
    assert "## Likelihood" not in text
    assert "## Speed" not in text


def test_model_text_is_no_markup() -> None:
    sample = {"prompt": "a | b", "reply": "<b>*x*</b>\n# y", "ar_nll": 1.234}
    told = {"prompts": 4, "source": "here", "seed": 0, "best": [sample], "worst": [sample]}
    text = card.card(RESULTS | {"samples": told}, card.About())
    assert "> a \\| b\n>\n> **→ \\<b\\>\\*x\\*\\</b\\> \\# y** (1.23 nats a token)" in text


def test_rows_of_numbers_stand_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text('{"threshold": 0.5}')
    report.tune(tmp_path, lambda raw: raw | {"rows": {"a": [1.5, -2e-05], "b": []}, "names": ["x", "y"]})
    assert json.loads(path.read_text()) == {
        "threshold": 0.5,
        "rows": {"a": [1.5, -2e-05], "b": []},
        "names": ["x", "y"],
    }
    assert any(
        line.split() == ['"a":', "[", "1.5,", "-2e-05", "],"] for line in path.read_text().splitlines()
    )


def test_cost_of_a_run_from_its_metrics(tmp_path: Path) -> None:
    records = [
        {"step": 10, "seconds": 10.0, "tokens_per_second": 100.0},
        {"step": 10, "seconds": 10.5, "valid_ar": 2.0, "valid_nelbo": 3.0},
        {"step": 20, "seconds": 30.0, "tokens_per_second": 50.0},
        {"step": 20, "seconds": 25.0, "tokens_per_second": 70.0},  # resumed from an earlier checkpoint
        {"step": 30, "seconds": 35.0, "tokens_per_second": 70.0},
    ]
    run = tmp_path / "base"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert report.training_cost(run, "two cores") == {
        "stage": "base",
        "steps": 30,
        "seconds": 35.0,
        "tokens": 1000 + 1000 + 700,
        "machine": "two cores",
        "valid_ar": 2.0,
        "valid_nelbo": 3.0,
    }
    with pytest.raises(RequestError, match="can't be read"):
        report.training_cost(tmp_path / "none", "here")


def sample_file() -> Path:
    return Path(card.__file__).parent / "data" / "dialogues.jsonl"


@pytest.fixture(scope="module")
def measured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole command once, on a copy of the model, with a document whose numbers it renews."""
    out = tmp_path_factory.mktemp("report")
    shutil.copytree(folder, out / "model")
    transcripts = (
        json.loads(line)["text"].splitlines()[:4] for line in sample_file().read_text().splitlines()
    )
    turns = [[(m["role"], m["content"]) for m in to_messages("\n".join(lines))] for lines in transcripts]
    data = prepared(out / "data", [Document(tuple(parts)) for parts in turns[:12]])
    run = out / "base"
    run.mkdir()
    (run / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "seconds": 60.0, "tokens_per_second": 10.0}) + "\n"
    )
    blocks = [name for name in numbers.BLOCKS if name not in ("latency", "instructions")]
    (out / "doc.md").write_text("".join(f"<!-- numbers:{name} --><!-- /numbers -->\n" for name in blocks))
    # The cold start of "latency" would start another process; the model of this test takes no instructions.
    only = [p for p in report.PARTS if p != "latency"]
    common = [str(out / "results.json"), "--docs", str(out / "doc.md"), "--plots", str(out)]
    measure = [
        "--model",
        str(out / "model"),
        "--backend",
        "torch",
        "--name",
        "redraft-tiny",
        "--data",
        str(data),
    ]
    few = [
        "--tune",
        "--before",
        str(folder),
        "--runs",
        str(run),
        "--quick",
        "--machine",
        "two cores",
        "--only",
        *only,
    ]
    assert report.main([*common, *measure, *few, "--card", str(out / "model")]) == 0
    return out


def test_one_command_measures_and_writes_all(measured: Path) -> None:
    results = json.loads((measured / "results.json").read_text())
    assert results.keys() >= {
        "likelihood",
        "samples",
        "speed",
        "batch",
        "frontier",
        "adaptive",
        "backends",
        "frontier_before",
    }
    assert results["likelihood"].keys() == {"valid", "test"}
    assert results["speed"]["model"] == "redraft-tiny"
    document = (measured / "doc.md").read_text()
    assert f"| diffusion | {results['speed']['modes']['diffusion']['tokens_per_second']:.0f} |" in document
    assert document.count("redraft-tiny") >= 5
    assert {p.name for p in measured.glob("*.svg")} == {
        f"{n}.svg" for n in ("speed", "batch", "frontier", "adaptive", "edit", "backends")
    }


def test_the_model_has_the_levels_that_the_frontier_found(measured: Path) -> None:
    results = json.loads((measured / "results.json").read_text())
    generation = json.loads((measured / "model" / "generation_config.json").read_text())
    assert generation == tuned(generation, results["frontier"])
    assert generation["step_costs"].keys() == {"4", "8", "16", "32"}
    level = generation["effort"]["medium"]
    assert results["speed"]["settings"]["diffusion"]["canvas"] == level["canvas_length"]


def test_the_card_lies_in_the_models_folder_and_in_its_manifest(measured: Path) -> None:
    text = (measured / "model" / "README.md").read_text()
    results = json.loads((measured / "results.json").read_text())
    assert text.startswith("---\nlibrary_name: redraft\n")
    assert "Before → after:" in text
    for sample in results["samples"]["best"] + results["samples"]["worst"]:
        assert f"({sample['ar_nll']:.2f} nats a token)" in text
    assert json.loads((measured / "model" / "manifest.json").read_text()) == manifest(measured / "model")


def test_samples_are_the_ends_of_the_ranking(measured: Path) -> None:
    samples = json.loads((measured / "results.json").read_text())["samples"]
    best, worst = ([s["ar_nll"] for s in samples[key]] for key in ("best", "worst"))
    assert best == sorted(best)
    assert worst == sorted(worst, reverse=True)
    assert best[-1] <= worst[-1]


def test_writing_again_needs_no_model_and_changes_nothing(measured: Path) -> None:
    before = {p.name: p.read_bytes() for p in (measured / "doc.md", measured / "results.json")}
    assert report.main([str(measured / "results.json"), "--docs", str(measured / "doc.md")]) == 0
    assert {p.name: p.read_bytes() for p in (measured / "doc.md", measured / "results.json")} == before


def test_without_results_there_is_nothing_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(tmp_path / "none.json")]) == 2
    assert "give --model to measure one" in capsys.readouterr().err
    (tmp_path / "broken.json").write_text("[")
    assert report.main([str(tmp_path / "broken.json")]) == 2


def test_instructions_are_told_with_what_went_wrong() -> None:
    """Each family's share, and failures as cells of a table."""
    scores = {"done_share": 0.25, "begun_share": 0.5, "local_share": 1.0, "kept_share": None}
    family = scores | {"done": 1, "texts": 4}
    told = {
        "model": "m",
        "backend": "b",
        "machine": {"cpu": "c", "cores": 2},
        "model_edits": family,
        "nothing": family,
        "families": {"case": family},
        "failures": [{"instruction": "Shout.", "before": "a | b", "edited": "a\nb", "wanted": "A | B"}],
    }
    text = numbers.value_of("instructions", {"instructions": told})
    assert "| m | 25.0 % | 50.0 % | 100.0 % | 0.0 % |" in text
    assert "case 1 of 4" in text
    assert r"| Shout. | a \| b | a b | A \| B |" in text
