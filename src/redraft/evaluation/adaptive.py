"""bench adaptive: does the work follow the difficulty, and does correcting errors pay at equal work?

Three measurements on held-out dialogues: evaluations a token on the hardest and the easiest tenth of replies;
generation with and without error correction at equal budgets of evaluations; and real text of which 5 % has been
swapped for wrong tokens, to be mended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.engine import Engine, Request, Step
from redraft.errors import RequestError
from redraft.evaluation.prompts import LONGEST, Dialogues, Reply, pick_prompts
from redraft.evaluation.quality import judge
from redraft.evaluation.text import bootstrap, bootstrap_ratio, continuation_nll
from redraft.evaluation.writing import DIFFUSION, Progress, Way, finish, machine, write_all

BUDGETS = (4, 8, 16)  # evaluations a canvas
EDIT_THRESHOLDS = (0.5, 0.7, 0.9)
SWAPPED = 0.05


@dataclass(frozen=True)
class Adaptive:
    """replies: how many are ranked by difficulty. length: tokens written on each, the same for all; a canvas's slots.
    prompts, tokens: for error correction on and off. canvases: how many are damaged and mended."""

    replies: int = 400
    length: int = 16
    prompts: int = 24
    tokens: int = 64
    canvases: int = 120
    batch: int = 8
    diffusion: Way = DIFFUSION
    seed: int = 0


def adaptive(
    model: Model, dialogues: Dialogues, settings: Adaptive, progress: Progress = lambda text: None
) -> dict[str, Any]:
    """The object of `redraft bench adaptive --json`. Raises RequestError when there are too few dialogues."""
    progress("ranking replies by difficulty")
    found = difficulty(model, dialogues, settings)
    progress("error correction at equal budgets")
    context = model.config.max_position_embeddings
    prompts = pick_prompts(dialogues, settings.prompts, settings.tokens, settings.seed, context)
    corrected = correction(model, prompts, settings)
    progress("mending damaged canvases")
    return machine(model) | {
        "settings": settings.diffusion.told(model),
        "difficulty": found,
        "correction": corrected,
        "mending": mending(model, dialogues, settings),
    }


def long_replies(model: Model, dialogues: Dialogues, length: int, count: int, seed: int) -> list[Reply]:
    """`count` replies (or as many as there are) of at least `length` tokens behind a prompt of usual length.

    Raises RequestError when there is none."""
    longest = min(LONGEST, model.config.max_position_embeddings - 2 * length)
    fitting = [r for r in dialogues.all() if len(r.text) >= length and 0 < len(r.prompt) <= longest]
    if not fitting:
        raise RequestError(f"no reply in {dialogues.source} has {length} tokens: give a smaller --canvas")
    order = np.random.default_rng(seed).permutation(len(fitting))
    return [fitting[i] for i in order[:count]]


def difficulty(model: Model, dialogues: Dialogues, settings: Adaptive) -> dict[str, Any]:
    """Evaluations a token, writing `length` tokens in place of each reply of the hardest and the easiest tenth.

    A reply's difficulty is the AR negative log-likelihood, a token, of its first `length` tokens.
    """
    replies = long_replies(model, dialogues, settings.length, settings.replies, settings.seed)
    texts = [r.text[: settings.length] for r in replies]
    nll = continuation_nll(model.backend, [r.prompt for r in replies], texts, settings.batch)
    hard = np.array([n.mean() for n in nll])
    tenth = max(1, len(replies) // 10)
    order = np.argsort(hard, kind="stable")
    parts = {"easiest": order[:tenth], "hardest": order[-tenth:]}
    cost: dict[str, np.ndarray] = {}
    out: dict[str, Any] = {"replies": len(replies), "length": settings.length}
    for name, chosen in parts.items():
        way = replace(settings.diffusion, canvas=settings.diffusion.canvas or settings.length)
        requests = [way.request(model, replies[i].prompt, settings.length, settings.seed) for i in chosen]
        tickets = write_all(model, requests, settings.batch)
        per_token = [t.writer.nfe / max(1, len(t.writer.output.tokens)) for t in tickets if t.writer]
        cost[name] = np.array(per_token)
        out[name] = {
            "replies": len(chosen),
            "ar_nll": float(hard[chosen].mean()),
            "nfe_per_token": float(cost[name].mean()),
            "interval": bootstrap(cost[name]),
        }
    out["ratio"] = out["hardest"]["nfe_per_token"] / out["easiest"]["nfe_per_token"]
    out["ratio_interval"] = bootstrap_ratio(cost["hardest"], cost["easiest"], paired=False)
    return out


def corrections(budget: int, masks: bool = True) -> dict[str, dict[str, Any]]:
    """Sampler settings that spend `budget` evaluations a canvas: all of them on filling, or a quarter on looking
    again (token editing), or with remasking all along (ReMDM; needs a mask token)."""
    plain = {"accept": "quota", "max_steps": budget, "steps": budget, "edit_threshold": None}
    filling = max(1, budget - budget // 4)
    out = {
        "off": plain,
        "editing": plain | {"steps": filling, "edit_threshold": 0.5, "edit_steps": budget - filling},
    }
    return out | {"remasking": plain | {"remask": "conf"}} if masks else out


def correction(model: Model, prompts: Sequence[np.ndarray], settings: Adaptive) -> list[dict[str, Any]]:
    """Error correction on against off at each budget: AR NLL and distinct-3 of what was written, the evaluations that
    it really took, and the paired difference in AR NLL to `off` (negative: better) with its bootstrap interval."""
    out = []
    for budget in BUDGETS:
        samplers = corrections(budget, masks=model.config.mask_token_id is not None)
        names, written, nfe = list(samplers), [], []
        for sampler in samplers.values():
            way = replace(settings.diffusion, canvas=settings.length, sampler=sampler)
            requests = [way.request(model, p, settings.tokens, settings.seed) for p in prompts]
            tickets = write_all(model, requests, settings.batch)
            written.append([tuple(t.writer.output.tokens) for t in tickets if t.writer])
            nfe.append(sum(t.writer.nfe for t in tickets if t.writer))
        qualities = dict(zip(names, judge(model.backend, prompts, written, settings.batch), strict=True))
        told: dict[str, Any] = {"nfe_per_canvas": budget, "tokens": qualities["off"].tokens}
        for name, texts, count in zip(names, written, nfe, strict=True):
            q = qualities[name]
            difference = q.by_prompt - qualities["off"].by_prompt
            told[name] = q.to_json() | {"nfe_per_token": count / max(1, sum(map(len, texts)))}
            if name != "off":
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


def mending(model: Model, dialogues: Dialogues, settings: Adaptive) -> dict[str, Any]:
    """Real canvases with SWAPPED of their settled tokens wrong, denoised with token editing at several thresholds:
    the share of wrong tokens put right, changed to something else, and left; of right tokens changed; and AR NLL a
    token of the text as it was, damaged, and mended."""
    replies = long_replies(model, dialogues, settings.length, settings.canvases, settings.seed + 1)
    config = model.config
    never = (*config.special_slot_ids, *config.eos_token_ids)
    cases = damage(replies, settings.length, SWAPPED, never, config.vocab_size, settings.seed)
    prompts = [c.prompt for c in cases]
    wrong, right = np.array([c.wrong for c in cases]), np.array([c.right for c in cases])

    def judged(texts: list[Any]) -> float:
        """Null-free texts of different lengths: nats a token."""
        nll = continuation_nll(model.backend, prompts, texts, settings.batch)
        return float(sum(n.sum() for n in nll) / max(1, sum(map(len, nll))))

    out: dict[str, Any] = {
        "canvases": len(cases),
        "length": settings.length,
        "swapped": int(wrong.sum()),
        "tokens": int(wrong.size),
        "ar_nll_before": judged([c.right for c in cases]),
        "ar_nll_damaged": judged([c.tokens for c in cases]),
        "thresholds": [],
    }
    for threshold in EDIT_THRESHOLDS:
        after, nfe = _mended(model, [_mend(model, c, threshold, settings) for c in cases], settings.batch)
        damaged = np.array([c.tokens for c in cases])
        count = max(1, int(wrong.sum()))
        out["thresholds"].append(
            {
                "edit_threshold": threshold,
                "repaired": float((wrong & (after == right)).sum() / count),
                "otherwise": float((wrong & (after != right) & (after != damaged)).sum() / count),
                "spoiled": float((~wrong & (after != right)).sum() / max(1, int((~wrong).sum()))),
                "ar_nll": judged([a[~np.isin(a, config.special_slot_ids)] for a in after]),
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


def _mend(model: Model, case: Damaged, threshold: float, settings: Adaptive) -> Request:
    """One canvas that holds the damaged text as settled tokens."""
    way = Way(
        "diffusion",
        check=0.0,
        canvas=len(case.tokens),
        temperature=0.0,
        sampler={"edit_threshold": threshold, "max_steps": 8},
    )
    made = way.request(model, case.prompt, len(case.tokens), settings.seed)
    return replace(made, initial=tuple(int(t) for t in case.tokens), max_canvases=1)


def lines(told: dict[str, Any]) -> list[str]:
    """The report for a person."""
    d = told["difficulty"]
    low, high = d["ratio_interval"]
    out = [
        f"{told['model']} on {told['backend']}, {told['device']}",
        f"evaluations a token over {d['length']} tokens: hardest tenth of {d['replies']} replies "
        f"{d['hardest']['nfe_per_token']:.3f} (AR nll {d['hardest']['ar_nll']:.2f}), easiest "
        f"{d['easiest']['nfe_per_token']:.3f} ({d['easiest']['ar_nll']:.2f}); "
        f"ratio {d['ratio']:.2f} [{low:.2f}, {high:.2f}]",
        "error correction at equal budgets: AR nll (distinct-3), difference to off with 95 % interval",
    ]
    for row in told["correction"]:
        cells = [f"off {row['off']['ar_nll']:.3f} ({row['off']['distinct_3']:.3f})"]
        for name, r in ((n, row[n]) for n in ("editing", "remasking") if n in row):
            low, high = r["interval"]
            cells.append(
                f"{name} {r['ar_nll']:.3f} ({r['distinct_3']:.3f}) {r['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
            )
        out.append(f"  {row['nfe_per_canvas']:>2} a canvas: " + "; ".join(cells))
    m = told["mending"]
    out.append(
        f"mending {m['swapped']} wrong of {m['tokens']} tokens: AR nll {m['ar_nll_before']:.3f} before, "
        f"{m['ar_nll_damaged']:.3f} damaged"
    )
    for row in m["thresholds"]:
        out.append(
            f"  editing above {row['edit_threshold']:g}: {100 * row['repaired']:.0f} % repaired, "
            f"{100 * row['otherwise']:.0f} % changed otherwise, {100 * row['spoiled']:.1f} % of right ones spoiled, "
            f"AR nll {row['ar_nll']:.3f}, {row['nfe_per_canvas']:.1f} evaluations"
        )
    return out
