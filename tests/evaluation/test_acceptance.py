"""Acceptance by place and domain: counts against a loop of one's own, and what is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.api import Model
from redraft.cli.evaluate import TASKS
from redraft.engine.backend import Pass
from redraft.errors import RequestError
from redraft.evaluation import acceptance as module
from redraft.evaluation.acceptance import Acceptance, Places, acceptance, lines
from redraft.evaluation.domains import DOMAINS, Domain, load_domains
from redraft.evaluation.page import markdown, read_page

SMALL = Acceptance(tokens=12)


def small(model: Model, count: int = 2) -> list[Domain]:
    prompts = [np.array(model.encode(f"Tell me about number {i}."), dtype=np.int64) for i in range(2 * count)]
    return [Domain("code", "here", prompts[:count]), Domain("chat", "there", prompts[count:])]


def test_the_sample_has_prompts_of_every_domain(model: Model) -> None:
    found = load_domains(model, 3, 16)
    assert [d.name for d in found] == list(DOMAINS)
    assert {len(d.prompts) for d in found} == {3}
    assert [d.source.removesuffix(" (sample)") for d in found[:2]] == ["HumanEval and MBPP", "GSM8K"]
    again = load_domains(model, 3, 16)
    for one, other in zip(found, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.prompts, other.prompts, strict=True))
    with pytest.raises(RequestError, match="prompts of code that leave room for 16 tokens: ask for fewer"):
        load_domains(model, 100, 16)


def test_questions_come_from_files_of_yours(model: Model, tmp_path: Path) -> None:
    code = {"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "test": ""}
    (tmp_path / "HumanEval.jsonl").write_text(json.dumps(code) + "\n")
    mbpp = {"task_id": 11, "text": "Write f.", "code": "", "test_list": ["assert f()"]}
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(mbpp) + "\n")
    (tmp_path / "gsm8k_test.jsonl").write_text(json.dumps({"question": "2 + 2?", "answer": "#### 4"}) + "\n")
    found = load_domains(model, 1, 16, tmp_path)
    assert [d.source for d in found[:2]] == ["HumanEval and MBPP", "GSM8K"]
    assert "2 + 2?" in model.tokenizer.decode(found[1].prompts[0])
    (tmp_path / "mbpp.jsonl").unlink()
    with pytest.raises(RequestError, match="needs mbpp.jsonl"):
        load_domains(model, 1, 16, tmp_path)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).map(lambda t: (max(t), min(t))), max_size=20))
def test_places_are_counted(rounds: list[tuple[int, int]]) -> None:
    places = Places()
    for drafted, accepted in rounds:
        places.add(drafted, accepted)
    told = places.told()
    for place in range(1, 7):
        reached = sum(drafted >= place and accepted >= place - 1 for drafted, accepted in rounds)
        right = sum(accepted >= place for _, accepted in rounds)
        assert [(p["reached"], p["right"]) for p in told if p["place"] == place] == (
            [(reached, right)] if reached else []
        )
    real = [accepted for drafted, accepted in rounds if drafted]
    assert places.accepted_in_a_row == pytest.approx(np.mean(real) if real else 0)


def test_what_is_counted_is_what_a_plain_loop_finds(model: Model) -> None:
    """Strided: one evaluation verifies a proposal and drafts the next behind it."""
    prompt = small(model)[0].prompts[0]
    places = Places()
    ((tokens, nfe),) = module._strided(model, [prompt], SMALL, places)
    answer = model.generate(prompt, decode="ar", temperature=0.0, max_tokens=SMALL.tokens).token_ids
    assert tokens == len(answer)
    slots, config = model.request(prompt, decode="verified").sampler.canvas_length, model.config
    opened = config.draft_token_id if config.draft_token_id is not None else config.mask_token_id
    ends, written, proposal, due = set(config.eos_token_ids), 1, list[int](), Places()
    rounds = 0
    while written < len(answer):
        rounds += 1
        context = model.backend.new_context(256)
        model.backend.forward([Pass(context, np.array([*prompt, *answer[: written - 1]]))])
        left = SMALL.tokens - written - len(proposal)
        canvas = np.full(max(0, min(slots, left)), opened)
        encode = np.array([answer[written - 1], *proposal])
        result = model.backend.forward([Pass(context, encode, canvas=canvas if len(canvas) > 1 else None)])[0]
        right = 0
        while (
            right < len(proposal)
            and written + right < len(answer)
            and proposal[right] == answer[written + right]
        ):
            right += 1
        due.add(len(proposal), right)
        stands = right == len(proposal)
        written += right + 1
        proposal = []
        if stands and result.canvas is not None:
            logits = result.canvas.copy()
            logits[:, list(config.noise_token_ids)] = -np.inf
            for token in logits[1:].argmax(-1).tolist():
                if token in ends:
                    break
                if token not in config.special_slot_ids:
                    proposal.append(token)
    assert (places.told(), places.rounds) == (due.told(), due.rounds)
    assert due.rounds > 0
    assert nfe == rounds


def test_what_is_told(model: Model, tmp_path: Path) -> None:
    told = json.loads(json.dumps(acceptance(model, small(model), SMALL)))
    assert set(told["domains"]) == {"code", "chat"}
    parts = [*told["domains"].values(), told["overall"]]
    for part in parts:
        assert part["same_as_ar"] == 1.0
        assert part["modes"]["ar"]["tokens"] == part["modes"]["verified"]["tokens"]
        assert part["modes"]["ar"]["ar_nll"] == pytest.approx(part["modes"]["verified"]["ar_nll"])
        for place in part["places"]:
            assert place["interval"][0] <= place["share"] <= place["interval"][1]
    for key in ("reached", "right"):
        first = [part["places"][0][key] for part in parts]
        assert first[0] + first[1] == first[2]
    assert parts[0]["prompts"] + parts[1]["prompts"] == parts[2]["prompts"] == 4
    shown = "\n".join(lines(told))
    assert "overall" in shown
    path = tmp_path / "acceptance.json"
    path.write_text(json.dumps({"model": "tiny", "command": "redraft eval acceptance", "acceptance": told}))
    page = read_page([path])
    rows = {row.title: {c.label: cell.text for c, cell in row.cells.items()} for row in page.rows}
    rate = told["domains"]["chat"]["modes"]["verified"]["tokens_per_forward"]
    assert rows["chat prompts, tokens per evaluation"]["verified"] == f"{rate:.2f}"
    assert set(rows["code prompts, drafts confirmed in a row"]) == {"verified"}
    assert "on 100 % of 4 prompts" in markdown(page, [])
    assert "acceptance" in TASKS


def test_an_answer_that_differs_is_not_the_same(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    request = module._request

    def other(model: Model, prompt: np.ndarray, mode: str, settings: Acceptance) -> object:
        made = request(model, prompt, mode, settings)
        biased = dataclasses.replace(made.sampler, logit_bias=((77, 1e6),))
        return dataclasses.replace(made, sampler=biased) if mode == "verified" else made

    monkeypatch.setattr(module, "_request", other)
    assert acceptance(model, small(model), SMALL)["overall"]["same_as_ar"] == 0.0
