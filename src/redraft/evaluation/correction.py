"""Does correcting errors pay? Generation with and without it at equal budgets of evaluations, and real text of which
some tokens have been swapped for wrong ones, to be mended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.engine import Engine, Request, Step
from redraft.evaluation.prompts import Reply
from redraft.evaluation.quality import judge
from redraft.evaluation.text import bootstrap, continuation_nll
from redraft.evaluation.writing import Way, finish, write_all

BUDGETS = (4, 8, 16)  # evaluations a canvas
DOUBT = 0.1  # 0.3 and 0.5 were tried too, on the weights of an earlier release
CHECK, DRAFTED = 0.3, 8  # check_ratio, and slots of the canvases that it checks
MENDING: dict[str, dict[str, Any]] = {  # sampler settings by what the report calls them
    **{f"doubt {bound:g}": {"doubt": bound, "edit_steps": 1} for bound in (0.3, 0.1, 0.03)},
    **{f"editing {bound:g}": {"edit_threshold": bound} for bound in (0.5, 0.7, 0.9)},
}
NOTHING = {"edit_threshold": None, "doubt": None, "remask": None}
SWAPPED = 0.05


def corrections(budget: int, masks: bool = True) -> dict[str, dict[str, Any]]:
    """Sampler settings that spend `budget` evaluations a canvas. off: all of them on filling; doubt: the same, but
    doubtful tokens go back to noise on the way; editing: a quarter on looking again and overwriting (LLaDA2.1);
    remasking: tokens are drawn to go back (ReMDM). Doubt and remasking need a mask token."""
    plain = NOTHING | {"accept": "quota", "max_steps": budget, "steps": budget}
    filling = max(1, budget - budget // 4)
    editing = plain | {"steps": filling, "edit_threshold": 0.5, "edit_steps": budget - filling}
    if not masks:
        return {"off": plain, "editing": editing}
    return {
        "off": plain,
        "doubt": plain | {"doubt": DOUBT, "edit_steps": 0},
        "editing": editing,
        "remasking": plain | {"remask": "conf"},
    }


def correction(
    model: Model, prompts: Sequence[np.ndarray], way: Way, length: int, tokens: int, batch: int, seed: int
) -> list[dict[str, Any]]:
    """Error correction on against off at each budget, on canvases of `length` slots: AR NLL and distinct-3 of what was
    written, the evaluations that it really took, and the paired difference in AR NLL to `off` (negative: better) with
    its bootstrap interval. checked, where its evaluations keep to the budget: short canvases whose tokens the AR self
    replaces where it finds them too unlikely, which spends what it needs."""

    def write(one: Way) -> tuple[list[tuple[int, ...]], float]:
        """Texts, and evaluations a token."""
        tickets = write_all(model, [one.request(model, p, tokens, seed) for p in prompts], batch)
        texts = [tuple(t.writer.output.tokens) for t in tickets if t.writer]
        return texts, sum(t.writer.nfe for t in tickets if t.writer) / max(1, sum(map(len, texts)))

    checked = write(replace(way, canvas=min(DRAFTED, length), check=CHECK, threshold=None))
    out = []
    for budget in BUDGETS:
        samplers = corrections(budget, masks=model.config.mask_token_id is not None)
        written = {
            name: write(replace(way, canvas=length, sampler=sampler)) for name, sampler in samplers.items()
        }
        if checked[1] <= budget / length:
            written["checked"] = checked
        texts = [found[0] for found in written.values()]
        qualities = dict(zip(written, judge(model.backend, prompts, texts, batch), strict=True))
        told: dict[str, Any] = {"nfe_per_canvas": budget, "tokens": qualities["off"].tokens}
        for name, q in qualities.items():
            told[name] = q.to_json() | {"nfe_per_token": written[name][1]}
            if name != "off":
                difference = q.by_prompt - qualities["off"].by_prompt
                told[name] |= {"difference": float(difference.mean()), "interval": bootstrap(difference)}
        out.append(told)
    return out


@dataclass(frozen=True, eq=False)
class Damaged:
    """One canvas of real text behind its prompt; `tokens` is `right` with some tokens swapped where `wrong`."""

    prompt: np.ndarray
    right: np.ndarray
    tokens: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        out: np.ndarray = self.right != self.tokens
        return out


def damage(
    replies: Sequence[Reply], length: int, share: float, never: Sequence[int], vocab: int, seed: int
) -> list[Damaged]:
    """The first `length` tokens of each reply, `share` of all of them (rounded) swapped for other ordinary tokens,
    drawn uniformly from those that occur in these replies, so that every one looks like text."""
    rng = np.random.default_rng(seed)
    right = np.array([r.text[:length] for r in replies], dtype=np.int64)
    tokens = right.copy().reshape(-1)
    usual = np.setdiff1d(np.unique(right), list(never))
    places = rng.permutation(len(tokens))[: round(share * len(tokens))]
    for at in places:
        others = usual[usual != tokens[at]]
        tokens[at] = rng.choice(others) if len(others) else (tokens[at] + 1) % vocab
    return [
        Damaged(r.prompt, a, b) for r, a, b in zip(replies, right, tokens.reshape(right.shape), strict=True)
    ]


def mending(model: Model, replies: Sequence[Reply], length: int, batch: int, seed: int) -> dict[str, Any]:
    """Real canvases with SWAPPED of their settled tokens wrong, corrected in each way of MENDING: the share of wrong
    tokens put right, changed to something else, and left; of right tokens changed; AR NLL a token of the text as it
    was, damaged, and mended; and, canvas by canvas, its difference to the damaged one with a 95 % interval."""
    config = model.config
    never = (*config.special_slot_ids, *config.eos_token_ids)
    cases = damage(replies, length, SWAPPED, never, config.vocab_size, seed)
    prompts = [c.prompt for c in cases]
    damaged, right = np.array([c.tokens for c in cases]), np.array([c.right for c in cases])
    wrong = damaged != right

    def judged(texts: np.ndarray) -> tuple[float, np.ndarray]:
        """Of int64 [texts, slots]: nats a token over all texts, and of each; nulls are no tokens."""
        kept = [t[~np.isin(t, config.special_slot_ids)] for t in texts]
        nll = continuation_nll(model.backend, prompts, kept, batch)
        each = np.array([n.mean() if len(n) else 0.0 for n in nll])
        return float(sum(n.sum() for n in nll) / max(1, sum(map(len, nll)))), each

    before, (after_damage, each_damaged) = judged(right)[0], judged(damaged)
    out: dict[str, Any] = {
        "canvases": len(cases),
        "length": length,
        "swapped": int(wrong.sum()),
        "tokens": int(wrong.size),
        "ar_nll_before": before,
        "ar_nll_damaged": after_damage,
        "ways": [],
    }
    masks = config.mask_token_id is not None
    for name, sampler in MENDING.items():
        if not masks and "doubt" in sampler:
            continue
        after, nfe = _mended(model, [_mend(model, c, sampler, seed) for c in cases], batch)
        nll, each = judged(after)
        count = max(1, int(wrong.sum()))
        out["ways"].append(
            {
                "name": name,
                "repaired": float((wrong & (after == right)).sum() / count),
                "otherwise": float((wrong & (after != right) & (after != damaged)).sum() / count),
                "spoiled": float((~wrong & (after != right)).sum() / max(1, int((~wrong).sum()))),
                "ar_nll": nll,
                "difference": float((each - each_damaged).mean()),
                "interval": bootstrap(each - each_damaged),
                "nfe_per_canvas": nfe / len(cases),
            }
        )
    return out


def _mended(model: Model, requests: Sequence[Request], batch: int) -> tuple[np.ndarray, int]:
    """int64 [requests, slots]: what each canvas shows after its last step, nulls where a token was deleted; and the
    evaluations of all."""
    engine = Engine(model.backend, model.tokenizer.token_bytes, max_batch=batch, prefix_contexts=0)
    tickets = [engine.submit(request) for request in requests]
    # The last of each ticket's steps stays.
    shown = {t: event.tokens for t, event in finish(engine, tickets) if isinstance(event, Step)}
    return np.array([shown[t] for t in tickets]), sum(t.writer.nfe for t in tickets if t.writer)


def _mend(model: Model, case: Damaged, sampler: dict[str, Any], seed: int) -> Request:
    """One canvas that holds the damaged text as settled tokens."""
    settings = NOTHING | {"max_steps": 8} | sampler
    way = Way("diffusion", check=0.0, canvas=len(case.tokens), temperature=0.0, sampler=settings)
    made = way.request(model, case.prompt, len(case.tokens), seed)
    return replace(made, initial=tuple(int(t) for t in case.tokens), max_canvases=1)
