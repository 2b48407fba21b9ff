"""eval acceptance: how many drafted tokens the AR self confirms, by place and domain, and what that is worth in time.

Drafts are counted where they are made, in decode "verified" on text of the model's own. For the counts every canvas
is proposed whole (layout "strided"), so that a late place is no selection of sure ones; for the speed drafts are cut as
the model does by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.engine import Engine, Request
from redraft.engine.writers.verified import Verified
from redraft.errors import RequestError
from redraft.evaluation.domains import Domain
from redraft.evaluation.intervals import wilson
from redraft.evaluation.quality import Quality, judge
from redraft.evaluation.speed import summary
from redraft.evaluation.text import bootstrap_ratio
from redraft.evaluation.writing import Bench, Progress, Written, fastest_ar, finish, machine

MODES = ("ar", "verified", "diffusion")
BATCH = 8  # answers at once where no time is taken


@dataclass
class Places:
    """Drafted tokens by place in their proposal, the first at index 0. reached: those before which all were right;
    right: of these, the ones that the AR self chose too. rounds: proposals, empty ones left out."""

    rounds: int = 0
    reached: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)

    def add(self, drafted: int, accepted: int) -> None:
        """A proposal of `drafted` tokens of which the first `accepted` stand."""
        if not drafted:
            return
        self.rounds += 1
        for counts, places in ((self.reached, min(accepted + 1, drafted)), (self.right, accepted)):
            counts.extend([0] * (places - len(counts)))
            for place in range(places):
                counts[place] += 1
        self.right.extend([0] * (len(self.reached) - len(self.right)))

    def told(self) -> list[dict[str, Any]]:
        """By place: share of those reached that were right, its 95 % Wilson interval, and how many were reached."""
        return [
            {
                "place": place,
                "reached": reached,
                "right": right,
                "share": right / reached,
                "interval": list(wilson(right, reached)),
            }
            for place, (reached, right) in enumerate(zip(self.reached, self.right, strict=True), 1)
        ]

    @property
    def accepted_in_a_row(self) -> float:
        """Mean over proposals."""
        return sum(self.right) / self.rounds if self.rounds else 0.0


@dataclass(frozen=True)
class Acceptance:
    """tokens: of an answer at most; it ends where the model ends it."""

    tokens: int = 96
    seed: int = 0


def acceptance(
    model: Model, domains: Sequence[Domain], settings: Acceptance, progress: Progress = lambda text: None
) -> dict[str, Any]:
    """The object of `redraft eval acceptance --json`.

    domains.*: places (see Places.told), accepted_in_a_row, strided_tokens_per_forward; modes.ar|verified|diffusion as
    in bench speed (greedy; ar by its fastest loop); ratio of tokens a second to AR's with an interval over prompts;
    same_as_ar: share of prompts on which verified gave AR's token ids; judged: prompts whose text is long enough to be
    judged, over equally many tokens. overall: the same over all domains. Raises RequestError for a model without an AR
    self or a mask.
    """
    if model.config.layout != "causal_context" or model.config.mask_token_id is None:
        raise RequestError(
            f"{model.name} has no AR self and canvas beside one another: nothing is drafted and verified"
        )
    first = _request(model, domains[0].prompts[0], "ar", settings)
    ar_backend, bare = fastest_ar(model, first)
    benches = {mode: Bench(model, ar_backend if mode == "ar" else None) for mode in MODES}
    for mode, bench in benches.items():  # the first call of a backend plans, allocates, compiles
        bench.write(_request(model, domains[0].prompts[0], mode, settings))
    told, every, all_places = {}, _nothing(), Places()
    for domain in domains:
        places = Places()
        runs = _nothing()
        for number, prompt in enumerate(domain.prompts):
            progress(f"{domain.name}: prompt {number + 1} of {len(domain.prompts)}")
            for mode in _turned(number):
                runs[mode].append(benches[mode].write(_request(model, prompt, mode, settings)))
        progress(f"{domain.name}: drafts by place")
        strided = _strided(model, domain.prompts, settings, places, all_places)
        told[domain.name] = (
            {"source": domain.source, "prompts": len(domain.prompts)}
            | _places(places, strided)
            | _modes(model, domain.prompts, runs, settings)
        )
        for mode in MODES:
            every[mode] += runs[mode]
        every["strided"] += strided
    prompts = [p for domain in domains for p in domain.prompts]
    overall = {"prompts": len(prompts)} | _places(all_places, every.pop("strided"))
    return machine(model) | {
        "tokens_at_most": settings.tokens,
        "seed": settings.seed,
        "ar_unpadded": bare,
        "canvas": _request(model, prompts[0], "verified", settings).sampler.canvas_length,
        "domains": told,
        "overall": overall | _modes(model, prompts, every, settings),
    }


def _nothing() -> dict[str, list[Any]]:
    return {mode: [] for mode in (*MODES, "strided")}


def _turned(by: int) -> list[str]:
    """The modes, another first each time: a machine that slows down slows all of them."""
    by %= len(MODES)
    return [*MODES[by:], *MODES[:by]]


def _request(model: Model, prompt: np.ndarray, mode: str, settings: Acceptance) -> Request:
    made = model.request(prompt, max_tokens=settings.tokens, temperature=0.0, decode=mode, seed=settings.seed)
    return replace(made, watched=False)


def _strided(
    model: Model, prompts: Sequence[np.ndarray], settings: Acceptance, *counts: Places
) -> list[tuple[int, int]]:
    """Tokens and evaluations of each answer with every canvas proposed whole; its proposals are added to `counts`."""
    engine = Engine(model.backend, model.tokenizer.token_bytes, BATCH, prefix_contexts=0)
    requests = [replace(_request(model, p, "verified", settings), draft_layout="strided") for p in prompts]
    tickets = [engine.submit(request) for request in requests]
    watched: set[int] = set()
    while engine.has_work:
        engine.step()
        for ticket in tickets:
            writer = ticket.writer
            if isinstance(writer, Verified) and ticket.number not in watched:
                watched.add(ticket.number)
                # On the writer itself: the engine stays as it is.
                setattr(writer, "_verify", _counted(writer, counts))  # noqa: B010
    finish(engine, tickets)
    return [(len(t.writer.output.tokens), t.writer.nfe) for t in tickets if t.writer is not None]


def _counted(writer: Verified, counts: Sequence[Places]) -> Callable[[np.ndarray], Any]:
    """The writer's verdict on a proposal, counted."""
    verify = writer._verify

    def counted(logits: np.ndarray) -> Any:
        drafted, before = len(writer._proposal), writer.context.length
        event = verify(logits)
        for places in counts:
            places.add(drafted, drafted - (before - writer.context.length))  # what was wrong is forgotten
        return event

    return counted


def _places(places: Places, strided: Sequence[tuple[int, int]]) -> dict[str, Any]:
    tokens, nfe = (sum(each) for each in zip(*strided, strict=True))
    return {
        "places": places.told(),
        "proposals": places.rounds,
        "accepted_in_a_row": places.accepted_in_a_row,
        "strided_tokens_per_forward": tokens / max(1, nfe),
    }


def _modes(
    model: Model, prompts: Sequence[np.ndarray], runs: dict[str, list[Written]], settings: Acceptance
) -> dict[str, Any]:
    """Speed and quality of each mode over these prompts."""
    long = [
        i for i in range(len(prompts)) if min(len(runs[m][i].tokens) for m in MODES) * 2 >= settings.tokens
    ]
    judged = long or [i for i in range(len(prompts)) if all(runs[m][i].tokens for m in MODES)]
    texts = [[runs[mode][i].tokens for i in judged] for mode in MODES]
    nothing = [Quality(0.0, np.zeros(0), 0.0, 0.0, 0.0, 0)] * len(MODES)
    qualities = judge(model.backend, [prompts[i] for i in judged], texts, BATCH) if judged else nothing
    same = [
        verified.tokens == ar.tokens or verified.tokens == _padded(model, prompt, settings)
        for verified, ar, prompt in zip(runs["verified"], runs["ar"], prompts, strict=True)
    ]
    modes = {
        mode: summary(runs[mode], quality) | {"repetition_4": quality.repetition_4}
        for mode, quality in zip(MODES, qualities, strict=True)
    }
    ar = modes["ar"]["tokens_per_second"]
    return {
        "modes": modes,
        "ratio": {mode: modes[mode]["tokens_per_second"] / ar if ar else 0.0 for mode in MODES[1:]},
        "ratio_interval": {mode: _interval(runs[mode], runs["ar"]) for mode in MODES[1:]},
        "same_as_ar": sum(same) / len(same),
        "judged": len(judged),
        "judged_tokens": min((len(t) for texts_of in texts for t in texts_of), default=0),
    }


def _padded(model: Model, prompt: np.ndarray, settings: Acceptance) -> tuple[int, ...]:
    """AR's token ids by the rows that verified has too: the fastest AR loop may differ where two logits all but tie."""
    return Bench(model).write(_request(model, prompt, "ar", settings)).tokens


def _interval(runs: Sequence[Written], ar: Sequence[Written]) -> tuple[float, float]:
    """95 % of the ratio of tokens a second, over prompts, each weighing alike."""
    speeds = [np.array([len(r.tokens) / max(r.seconds, 1e-9) for r in each]) for each in (runs, ar)]
    return bootstrap_ratio(speeds[0], speeds[1])


def draft_speeds(
    model: Model, prompts: Sequence[np.ndarray], lengths: Sequence[int], settings: Acceptance
) -> dict[int, float]:
    """Tokens a second of decode "verified" by the length of its canvases; each prompt by all lengths, then the next."""
    bench, runs = Bench(model), {length: list[Written]() for length in lengths}
    bench.write(_request(model, prompts[0], "verified", settings))
    for prompt in prompts:
        for length in lengths:
            made = _request(model, prompt, "verified", settings)
            sampler = replace(made.sampler, canvas_length=length)
            runs[length].append(bench.write(replace(made, sampler=sampler)))
    return {
        length: sum(len(r.tokens) for r in of) / max(1e-9, sum(r.seconds for r in of))
        for length, of in runs.items()
    }


def lines(told: dict[str, Any]) -> list[str]:
    """The report for a person."""
    what = f"answers of up to {told['tokens_at_most']} tokens, greedy, canvases of {told['canvas']}"
    places = "by place (given those before), %"
    out = [
        f"{told['model']} on {told['backend']}, {told['device']}: {what}",
        f"{'domain':<8} {'in a row':>8} {places:<44} {'TPF':>5} {'tokens/s':>15} {'× AR':>5} same",
    ]
    for name, d in [*told["domains"].items(), ("overall", told["overall"])]:
        places = " ".join(f"{100 * p['share']:.0f}" for p in d["places"])
        ar, verified = d["modes"]["ar"], d["modes"]["verified"]
        speed = f"{ar['tokens_per_second']:.0f} → {verified['tokens_per_second']:.0f}"
        out.append(
            f"{name:<8} {d['accepted_in_a_row']:>8.2f} {places:<44} {verified['tokens_per_forward']:>5.2f} {speed:>15} "
            f"{d['ratio']['verified']:>5.2f} {100 * d['same_as_ar']:.0f} %"
        )
    for mode in ("ar", "diffusion"):
        m = told["overall"]["modes"][mode]
        out.append(
            f"{mode}: {m['tokens_per_forward']:.2f} tokens an evaluation, AR NLL {m['ar_nll']:.3f}, entropy "
            f"{m['entropy']:.2f}, distinct-3 {m['distinct_3']:.3f}, repetition {m['repetition_4']:.3f}"
        )
    return out
