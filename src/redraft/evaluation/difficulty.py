"""Does the work follow the difficulty? Evaluations a token on the hardest and on the easiest tenth of replies.

Two ways of writing are counted, verified decoding and plain canvases that settle by the model's own confidence, each
by three measures:

- the given reply: evaluations that it takes to write this very reply. A decoder whose outcome is the reply has kept of
  each draft what the reply says there and replaced the rest, so that is run here: difficulty and work are those of
  one and the same text.
- own text, by the reply: the way writes what it likes behind the reply's prompt. How hard the reply is says little of
  that text, so little is to be seen here.
- own text, by itself: the same counts, ranked by the AR negative log-likelihood of what was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.engine import Engine, Request
from redraft.engine.backend import Pass
from redraft.evaluation.prompts import Reply
from redraft.evaluation.text import bootstrap, bootstrap_ratio, continuation_nll
from redraft.evaluation.writing import Way, finish
from redraft.sampling.accept import RULES, Look
from redraft.sampling.grammar import Allow

MEASURES = {  # what is written, and by what it is ranked
    "given reply": "the very reply, by its own AR NLL",
    "own text, by the reply": "own text behind its prompt, by the reply's AR NLL",
    "own text, by itself": "own text behind its prompt, by its own AR NLL",
}


@dataclass(frozen=True)
class Counts:
    """One way of writing on each reply: evaluations a token for the given reply and for own text, and that text's AR
    negative log-likelihood, nats a token. All float64 [replies]."""

    given: np.ndarray
    own: np.ndarray
    own_nll: np.ndarray


def difficulty(
    model: Model, replies: Sequence[Reply], length: int, ways: dict[str, Way], batch: int, seed: int
) -> dict[str, Any]:
    """`replies`, `length` and `rows`, one for each way and measure: see `tenths`. Every text has `length` tokens.

    ways: of decode verified, or of diffusion without a check, by their names. Difficulty is the AR negative
    log-likelihood of the text's `length` tokens, nats a token.
    """
    prompts, texts = [r.prompt for r in replies], [r.text[:length] for r in replies]
    nll = np.array([n.mean() for n in continuation_nll(model.backend, prompts, texts, batch)])
    rows = []
    for name, found in count(model, replies, length, ways, batch, seed).items():
        ranked = ((nll, found.given), (nll, found.own), (found.own_nll, found.own))
        for measure, (hard, cost) in zip(MEASURES, ranked, strict=True):
            rows.append({"way": name, "measure": measure} | tenths(hard, cost))
    return {"replies": len(replies), "length": length, "rows": rows}


def tenths(nll: np.ndarray, cost: np.ndarray) -> dict[str, Any]:
    """Evaluations a token (`cost`) by tenths of `nll`, both float64 [n]: of the hardest and the easiest tenth, with
    95 % intervals; their ratio, with one; and the means of all tenths from easy to hard."""
    order = np.argsort(nll, kind="stable")
    size = max(1, len(order) // 10)
    parts = {"easiest": order[:size], "hardest": order[-size:]}
    out: dict[str, Any] = {
        name: {
            "replies": len(chosen),
            "ar_nll": float(nll[chosen].mean()),
            "nfe_per_token": float(cost[chosen].mean()),
            "interval": bootstrap(cost[chosen]),
        }
        for name, chosen in parts.items()
    }
    hard, easy = cost[parts["hardest"]], cost[parts["easiest"]]
    return out | {
        "ratio": float(hard.mean() / easy.mean()),
        "ratio_interval": bootstrap_ratio(hard, easy, paired=False),
        "tenths": [float(cost[part].mean()) for part in np.array_split(order, min(10, len(order)))],
    }


def count(
    model: Model, replies: Sequence[Reply], length: int, ways: dict[str, Way], batch: int, seed: int
) -> dict[str, Counts]:
    """Runs every way on every reply, all of a prompt's answers one after the other, so that it is read once."""
    engine = Engine(model.backend, model.tokenizer.token_bytes, max_batch=1, prefix_contexts=1)
    vocab = model.config.vocab_size
    given: dict[str, list[float]] = {name: [] for name in ways}
    own: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    for reply in replies:
        text = reply.text[:length]
        for name, way in ways.items():
            request = replace(way.request(model, reply.prompt, length, seed), watched=False)
            written, nfe = _write(engine, request)
            texts[name].append(written)
            own[name].append(nfe / length)
            if request.drafts:
                nfe = _write(engine, replace(request, allow=only(text, vocab)))[1]
            else:
                nfe = spelled(model, reply.prompt, text, request)
            given[name].append(nfe / length)
    prompts = [r.prompt for r in replies]
    nll = {name: continuation_nll(model.backend, prompts, texts[name], batch) for name in ways}
    return {
        name: Counts(np.array(given[name]), np.array(own[name]), np.array([n.mean() for n in nll[name]]))
        for name in ways
    }


def _write(engine: Engine, request: Request) -> tuple[np.ndarray, int]:
    """Tokens and evaluations of one answer."""
    ticket = engine.submit(request)
    finish(engine, [ticket])
    assert ticket.writer is not None
    return np.array(ticket.writer.output.tokens, dtype=np.int64), ticket.writer.nfe


def only(text: np.ndarray, vocab: int) -> Allow:
    """A grammar of one text. The AR self can choose nothing else, while canvases, which a verified request drafts
    freely, propose what they would propose behind it; so the drafts that agree with the text are kept, and the first
    that doesn't is replaced by its token."""

    def allow(before: list[int]) -> np.ndarray:
        mask = np.zeros(vocab, dtype=bool)
        mask[text[min(len(before), len(text) - 1)]] = True
        return mask

    return allow


def spelled(model: Model, prompt: np.ndarray, text: np.ndarray, request: Request) -> int:
    """Evaluations of a canvas as long as `text` whose slots can only settle as its tokens: each when the request's rule
    would accept it with the probability that the model gives this token. It is the course of a canvas that draws its
    tokens, given that it draws these, so open slots hold the calibrated mask, which the model must have."""
    config, rule, settings = model.config, RULES[request.sampler.accept], request.sampler
    noise = config.mask_token_id
    assert noise is not None
    never = [*config.noise_token_ids, *(t for t, bias in settings.logit_bias if bias < -1e3)]
    context = model.backend.new_context(len(prompt) + len(text))
    open_ = np.ones(len(text), dtype=bool)
    steps = 0
    while open_.any():
        encode = prompt if steps == 0 else prompt[:0]
        rows = np.flatnonzero(open_)
        canvas = np.where(open_, noise, text)
        (result,) = model.backend.forward([Pass(context, encode, canvas=canvas, canvas_rows=rows)])
        assert result.canvas is not None
        chances = _chances(result.canvas, never)
        probability, entropy = np.zeros(len(text)), np.zeros(len(text))
        probability[rows] = chances[np.arange(len(rows)), text[rows]]
        entropy[rows] = -(chances * np.log(np.maximum(chances, 1e-300))).sum(axis=-1)
        open_ = open_ & ~rule(Look(settings, steps, len(text), open_, probability, entropy))
        steps += 1
    return steps


def _chances(logits: np.ndarray, never: Sequence[int]) -> np.ndarray:
    """float64 [k, V]: softmax with the tokens `never` left out."""
    wide = logits.astype(np.float64)
    wide[:, list(never)] = -np.inf
    weight = np.exp(wide - wide.max(axis=-1, keepdims=True))
    out: np.ndarray = weight / weight.sum(axis=-1, keepdims=True)
    return out
