"""redraft under lm-eval: its numbers are the engine's, and a task from a local file runs to its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="in the extra `eval`")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from redraft.api import Model
from redraft.engine.likelihood import likelihood
from redraft.errors import RequestError
from redraft.evaluation.harness import RedraftLM


def instance(kind: Any, *arguments: Any) -> Instance:
    return Instance(kind, {}, arguments, 0)


@pytest.fixture(scope="module")
def exact(model: Model) -> RedraftLM:
    return RedraftLM(model)


def test_it_is_registered_by_its_name() -> None:
    assert get_model("redraft") is RedraftLM


def test_likelihood_of_a_continuation_is_the_engines(model: Model, exact: RedraftLM) -> None:
    whole = model.tokenizer.encode("Where to go today?")
    given = len(model.tokenizer.encode("Where to"))
    want = likelihood(model.backend, whole, given=given)
    # A space at the context's end is scored with what follows it, as it is tokenized.
    for context, continuation in (("Where to", " go today?"), ("Where to ", "go today?")):
        ((found, greedy),) = exact.loglikelihood([instance("loglikelihood", context, continuation)])
        assert found == pytest.approx(-want.ar_nll, abs=1e-5)
        assert greedy is want.ar_greedy
    ((first, _),) = exact.loglikelihood([instance("loglikelihood", "", "Where to")])
    ((rest, _),) = exact.loglikelihood([instance("loglikelihood", "Where to", " go")])
    (rolling,) = exact.loglikelihood_rolling([instance("loglikelihood_rolling", "Where to go")])
    ((alone, _),) = exact.loglikelihood([instance("loglikelihood", "", "Where to go")])
    assert rolling == pytest.approx(alone, abs=1e-5)
    assert first < 0
    assert rest < 0


def test_the_bound_comes_with_its_error(model: Model) -> None:
    few = RedraftLM(model, likelihood="nelbo", strata=2, replicates=2)
    many = RedraftLM(model, likelihood="nelbo", strata=8, replicates=16)
    asked = [instance("loglikelihood", "Where to", " go today, please?")]
    ((a, greedy),), ((b, _),) = few.loglikelihood(asked), many.loglikelihood(asked)
    assert greedy is False
    assert len(few.standard_errors) == len(many.standard_errors) == 1
    assert many.standard_errors[0] < few.standard_errors[0]
    assert abs(a - b) < 5 * np.hypot(few.standard_errors[0], many.standard_errors[0])
    assert many.get_model_info()["nelbo_se_max"] == many.standard_errors[0]


def test_long_texts_are_cut_on_the_left_or_into_windows(model: Model, exact: RedraftLM) -> None:
    longest = model.config.max_position_embeddings
    text = "what time is it now? " * 100
    tokens = model.tokenizer.encode(text)
    assert len(tokens) > longest
    ((found, _),) = exact.loglikelihood([instance("loglikelihood", text, "yes")])
    assert np.isfinite(found)
    (whole,) = exact.loglikelihood_rolling([instance("loglikelihood_rolling", text)])
    (part,) = exact.loglikelihood_rolling([instance("loglikelihood_rolling", text[:60])])
    assert whole < part < 0
    with pytest.raises(RequestError, match="take another task"):
        exact.loglikelihood([instance("loglikelihood", "So:", " " + text)])


def test_generation_is_the_engines(model: Model) -> None:
    lm = RedraftLM(model, decode="ar")
    told = {"until": ["\n\n", ""], "max_gen_toks": 12}
    (text,) = lm.generate_until([instance("generate_until", "Where to", told)])
    want = model.generate("Where to", decode="ar", temperature=0.0, max_tokens=12, stop=["\n\n"], seed=0)
    assert text == want.text
    sampled = told | {"do_sample": True, "temperature": 1.0}
    (other,) = lm.generate_until([instance("generate_until", "Where to", sampled)])
    assert other != text


def test_a_chat_template_keeps_its_special_tokens(model: Model, exact: RedraftLM) -> None:
    messages = [{"role": "user", "content": "Say <|eos|> to me."}]
    text = exact.apply_chat_template(messages)
    assert exact._encode(text) == model.tokenizer.render(messages).tolist()
    context, continuation = exact._pair(text, " Fine")
    assert context == model.tokenizer.render(messages).tolist()
    assert continuation == model.tokenizer.encode(" Fine").tolist()


def test_bad_requests(model: Model) -> None:
    with pytest.raises(RequestError, match="likelihood must be one of"):
        RedraftLM(model, likelihood="exact")
    with pytest.raises(RequestError):
        RedraftLM("there-is-no-such-model")


def test_a_task_from_a_local_file(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiple choice by likelihood and generation by exact match, through lm-eval itself, with no network."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    docs = [
        {"question": "Sky?", "choices": ["blue", "loud"], "gold": 0},
        {"question": "2+2?", "choices": ["5", "4"], "gold": 1},
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs))
    common = (
        "dataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path / 'docs.jsonl'}\n"
        "test_split: test\ndoc_to_text: 'Q: {{question}} A:'\n"
    )
    (tmp_path / "choose.yaml").write_text(
        f"task: local_choose\noutput_type: multiple_choice\n{common}"
        "doc_to_choice: choices\ndoc_to_target: gold\nmetric_list:\n  - metric: acc\n"
    )
    (tmp_path / "write.yaml").write_text(
        f"task: local_write\noutput_type: generate_until\n{common}"
        "doc_to_target: '{{choices[gold]}}'\ngeneration_kwargs:\n  until: ['\\n']\n  max_gen_toks: 8\n"
        "metric_list:\n  - metric: exact_match\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    lm = RedraftLM(model, likelihood="nelbo", strata=2, replicates=2)
    told = simple_evaluate(lm, tasks=["local_choose", "local_write"], task_manager=manager, bootstrap_iters=0)
    assert told is not None
    assert told["results"]["local_choose"]["acc,none"] in (0.0, 0.5, 1.0)
    assert told["results"]["local_write"]["exact_match,none"] in (0.0, 0.5, 1.0)
    assert len(lm.standard_errors) == 4
    assert told["config"]["nelbo_se_mean"] > 0
