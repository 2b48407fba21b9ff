"""A recipe that is wrong is told so in one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from redraft.errors import RequestError
from redraft.training.adaptation_recipe import load_any
from redraft.training.recipe import load

GOOD = """
name: x
data: d
prepare:
  sources: [{path: a.jsonl}, {path: b.jsonl}]
train: {steps: 5}
"""


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RequestError) as caught:
        load(path, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_recipes_of_the_project_are_good() -> None:
    """All but the Sudoku example's, which has sections of its own (tests/test_sudoku.py reads it)."""
    recipes = sorted(p for p in (Path(__file__).parents[2] / "recipes").glob("*.yaml") if p.stem != "sudoku")
    assert recipes
    for path in recipes:
        load_any(path)


def test_defaults_and_values(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    recipe = load(path)
    assert recipe.train.steps == 5
    assert recipe.train.batch_rows == 16
    assert [m.path for m in recipe.corpora()] == ["d"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: x\ndata: d\ntrain: {stepz: 1}", "train.stepz (did you mean steps?)"),
        ("name: x\ndata: d\ntrian: {steps: 1}", "trian (did you mean train?)"),
        (
            "name: x\ndata: d\nprepare: {sources: [{path: a, formt: text}]}",
            "prepare.sources.0.formt (did you mean format?)",
        ),
        ("name: x\ndata: d\nmixture: [{path: a, wieght: 2}]", "(did you mean weight?)"),
        ("name: x\ndata: d\ntrain: {zzzzqqq: 1}", "one of steps, "),
        ("name: x\ndata: d\ntrain: {steps: many}", "train.steps: input should be a valid integer"),
        (
            "name: x\ndata: d\ntrain: {steps: 0}",
            "train.steps: input should be greater than or equal to 1",
        ),
        ("name: x\ndata: d\ncorruption: {kind: gaussian}", "corruption.kind: input should be 'absorbing'"),
        ("name: x\ndata: d\ntrain: 3", "train: "),
        ("data: d", "name: field required"),
        ("nam: x\ndata: d", "unknown key nam (did you mean name?)"),
        ("name: [", "is not YAML"),
        ("- 1\n- 2", "must be a mapping"),
        ("", "must be a mapping"),
        ("1: 2", "1: "),
    ],
)
def test_a_bad_recipe_is_refused(tmp_path: Path, text: str, told: str) -> None:
    assert told in refused(tmp_path, text)


def test_overrides_reach_sections_lists_and_new_keys(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    recipe = load(
        path,
        [
            "train.steps=9",
            "prepare.sources.1.path=c.jsonl",
            "canvas.lengths=[4, 8]",
            "canvas.length_weights=[1, 2]",
            "canvas.length_weights.0=3",
            "distill={out: o}",
            "distill.tokens=3",
            "optimizer.learning_rate=1e-3",
        ],
    )
    assert recipe.train.steps == 9
    assert recipe.prepare is not None
    assert [s.path for s in recipe.prepare.sources] == ["a.jsonl", "c.jsonl"]
    assert recipe.canvas.lengths == [4, 8]
    assert recipe.canvas.length_weights == [3, 2]
    assert recipe.distill is not None
    assert recipe.distill.tokens == 3
    assert recipe.optimizer.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.steps", "key=value"),
        ("=3", "key=value"),
        ("train.stps=3", "did you mean steps?"),
        ("train.steps=soon", "train.steps: "),
        ("prepare.sources.7.path=x", "is not a section"),
        ("prepare.sources.7=x", "can't be set there"),
        ("name.first=x", "can't be set there"),
        ("name.first.second=x", "is not a section"),
        ("train.steps=[", "not a YAML value"),
    ],
)
def test_a_bad_override_is_refused(tmp_path: Path, override: str, told: str) -> None:
    assert told in refused(tmp_path, GOOD, override)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(RequestError, match="can't be read"):
            load(path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(RequestError, match="not YAML"):
        load(tmp_path / "binary.yaml")
