"""generation_config.json: unknown keys pass, wrong ones are told in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from redraft.errors import RequestError
from redraft.hub.generation import GenerationDefaults


def test_what_a_file_says_replaces_the_defaults(tmp_path: Path) -> None:
    assert GenerationDefaults.load(tmp_path) == GenerationDefaults()
    effort = {"low": {"threshold": 0.5, "novelty": "ignored"}, "high": {"threshold": 1, "max_steps": None}}
    content = {"threshold": 0.7, "max_steps": 8, "transformers_version": "5", "effort": effort, "top_p": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    loaded = GenerationDefaults.load(tmp_path)
    assert (loaded.threshold, loaded.max_steps, loaded.canvas_length) == (0.7, 8, 16)
    assert loaded.settings_for(None) == {}
    assert loaded.settings_for("low") == effort["low"]
    with pytest.raises(
        RequestError, match=r"unknown effort 'hihg', did you mean high\? \(levels: low, high\)"
    ):
        loaded.settings_for("hihg")
    with pytest.raises(RequestError, match="no effort levels"):
        GenerationDefaults().settings_for("low")


def test_values_are_all_settings_and_no_copies() -> None:
    weights = {"threshold": 0.5, "screen": {}, "units": [], "weights": {"bias": [1.0]}}
    values = GenerationDefaults(threshold=0.4, proofread=weights).values()
    assert GenerationDefaults(**values) == GenerationDefaults(threshold=0.4, proofread=weights)
    assert values["proofread"] is weights


CHANNEL: dict[str, Any] = {"threshold": 1, "screen": {"bias": 1}, "units": [], "weights": {}}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"threshold": "0.9"}, "threshold must be a number from 0 to 1, not '0.9'"),
        ({"threshold": 1.5}, "threshold must be a number from 0 to 1, not 1.5"),
        ({"canvas_length": 0}, 'canvas_length must be a whole number from 1 up or "auto", not 0'),
        ({"canvas_length": 4.0}, "canvas_length must be a whole number"),
        ({"max_steps": True}, "max_steps must be a whole number from 1 up or null, not True"),
        ({"temperature": float("nan")}, "temperature must be a number from 0 up, not nan"),
        ({"top_p": 0}, "top_p must be a number above 0 and at most 1, not 0"),
        ({"max_new_tokens": None}, "max_new_tokens must be"),
        ({"effort": ["low"]}, "effort must map each level"),
        ({"step_costs": {"eight": 1}}, "step_costs must map canvas lengths"),
        ({"step_costs": {"8": 0}}, "step_costs must map canvas lengths"),
        (
            {"proofread": {"threshold": 0.5}},
            r"proofread must hold threshold \(from 0 to 1\), screen \(a number for each name\)",
        ),
        ({"proofread": CHANNEL | {"threshold": 2}}, "proofread must hold"),
        ({"proofread": CHANNEL | {"weights": {"bias": [True]}}}, "proofread must hold"),
        ({"proofread": CHANNEL | {"weights": {"bias": 1}}}, "proofread must hold"),
        ({"proofread": CHANNEL | {"units": "none"}}, "proofread must hold"),
        ({"proofread": CHANNEL | {"screen": {"bias": "much"}}}, "proofread must hold"),
        ({"effort": {"low": {"top_k": -1}}}, r"effort\.low\.top_k must be a whole number from 0 up, not -1"),
    ],
)
def test_wrong_values_are_told_in_one_line(tmp_path: Path, content: dict[str, Any], line: str) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(RequestError, match=line) as caught:
        GenerationDefaults.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "\ud800"])
def test_an_unreadable_file_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RequestError, match=r"generation_config\.json (can't be read|must hold)"):
        GenerationDefaults.load(tmp_path)
