"""bench speed: diffusion and verified decoding against AR, on the same weights, engine and prompts, in turns.

Every prompt is written by every mode before the next prompt, the order turning each time, so that a machine that
slows down slows all of them. The AR baseline is the fastest AR loop there is (`fastest_ar`): one row a step, greedy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.engine.backend import Backend, Pass
from redraft.evaluation.peers import PEER_PROMPTS, Peers
from redraft.evaluation.quality import Quality, judge
from redraft.evaluation.text import bootstrap_ratio
from redraft.evaluation.writing import (
    DIFFUSION,
    GREEDY,
    VERIFIED,
    Bench,
    Progress,
    Way,
    Written,
    fastest_ar,
    machine,
)

MODES = ("ar", "diffusion", "verified")
CANVASES = (4, 8, 16, 32)
BURST = 5  # evaluations of one shape timed in a row


@dataclass(frozen=True)
class Speed:
    """What to measure: tokens a prompt, repeats of each prompt (the fastest counts), the diffusion point.

    peers_folder: the model's folder, for outside programs to read it; None leaves them out."""

    tokens: int = 128
    repeats: int = 2
    diffusion: Way = DIFFUSION
    verified: Way = VERIFIED
    seed: int = 0
    peers_folder: Path | None = None


def speed(
    model: Model, prompts: Sequence[np.ndarray], settings: Speed, progress: Progress = lambda text: None
) -> dict[str, Any]:
    """The object of `redraft bench speed --json`.

    modes.*: tokens_per_second (prompt encoding left out), step_ms (wall time an evaluation), network_step_ms (of it in
    the network), tokens_per_forward (commits counted), ar_nll (nats a token), distinct_3, tokens; ratio: of tokens a
    second to AR's; bound: TPF ÷ (canvas step ÷ AR step) by the network's time alone, what the model allows if
    everything outside the network were free. costs: the network's time for AR and canvas steps of several lengths.
    """
    ways = {"ar": GREEDY, "diffusion": settings.diffusion, "verified": settings.verified}
    ar_backend, bare = fastest_ar(model, ways["ar"].request(model, prompts[0], settings.tokens))
    benches = {mode: Bench(model, ar_backend if mode == "ar" else None) for mode in ways}
    runs: dict[str, list[Written]] = {mode: [] for mode in ways}
    for mode, bench in benches.items():  # the first call of a backend plans, allocates, compiles
        bench.write(ways[mode].request(model, prompts[0], settings.tokens))
    with ExitStack() as stack:
        peers = Peers(settings.peers_folder, prompts[0], settings.tokens, stack, progress)
        for number, prompt in enumerate(prompts):
            progress(f"prompt {number + 1} of {len(prompts)}")
            best: dict[str, Written] = {}
            for repeat in range(settings.repeats):
                for mode in _turned(MODES, number + repeat):
                    run = benches[mode].write(
                        ways[mode].request(model, prompt, settings.tokens, settings.seed)
                    )
                    if mode not in best or run.seconds < best[mode].seconds:
                        best[mode] = run
                if number < PEER_PROMPTS:
                    peers.write(number, prompt)
            for mode, run in best.items():
                runs[mode].append(run)
    progress("judging the text")
    qualities = dict(
        zip(ways, judge(model.backend, prompts, [[r.tokens for r in runs[m]] for m in ways]), strict=True)
    )
    modes = {mode: summary(runs[mode], qualities[mode]) for mode in MODES}
    out = machine(model) | {
        "prompts": len(prompts),
        "tokens_per_prompt": settings.tokens,
        "ar_unpadded": bare,
        "settings": {mode: way.told(model) for mode, way in ways.items()},
        "modes": modes,
        "ratio": {m: modes[m]["tokens_per_second"] / modes["ar"]["tokens_per_second"] for m in MODES[1:]},
        "ratio_interval": {m: _interval(runs[m], runs["ar"]) for m in MODES[1:]},
        "bound": {m: bound(modes[m], modes["ar"]) for m in MODES[1:]},
        "same_as_ar": _share_same(runs["verified"], runs["ar"]),
    }
    progress("timing single evaluations")
    out["costs"] = costs(model, ar_backend, prompts[0])
    if settings.peers_folder is not None:
        out["peers"] = peers.told([run.seconds for run in runs["ar"]])
    return out


def summary(runs: Sequence[Written], quality: Quality) -> dict[str, Any]:
    """One mode's numbers over all its prompts."""
    seconds, nfe = sum(r.seconds for r in runs), sum(r.nfe for r in runs)
    tokens = sum(len(r.tokens) for r in runs)
    network, sampling = sum(r.network for r in runs), sum(r.sampling for r in runs)
    evaluations = max(1, nfe)
    return {
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "step_ms": 1000 * seconds / evaluations,
        "network_step_ms": 1000 * network / evaluations,
        "tokens_per_forward": tokens / evaluations,
        "ar_nll": quality.ar_nll,
        "distinct_3": quality.distinct_3,
        "entropy": quality.entropy,
        "tokens": tokens,
        "nfe": nfe,
        "prefill_ms": 1000 * median(r.prefill for r in runs),
        "split": {
            "network": network / seconds if seconds else 0.0,
            "sampling": sampling / seconds if seconds else 0.0,
            "python": max(0.0, 1 - (network + sampling) / seconds) if seconds else 0.0,
        },
    }


def bound(mode: dict[str, Any], ar: dict[str, Any]) -> float:
    """TPF ÷ (this mode's step ÷ AR's step), both as the network alone takes them."""
    return float(mode["tokens_per_forward"] / (mode["network_step_ms"] / ar["network_step_ms"]))


def costs(
    model: Model, ar_backend: Backend, prompt: np.ndarray, context: int = 128, repeats: int = 30
) -> dict[str, Any]:
    """Milliseconds (median) of one AR step and of one canvas step of several lengths behind `context` tokens, and of
    a canvas step that also encodes a whole canvas (a commit fused with the next first step)."""
    limit = model.config.max_position_embeddings
    context = min(context, limit - 2 * max(CANVASES) - 1)
    if context < 1:
        return {}
    text = np.resize(prompt, context)
    calls: dict[str, Callable[[], None]] = {"ar": _call(ar_backend, text, 1, 0)}
    mask = model.config.mask_token_id
    for slots in CANVASES if mask is not None else ():
        calls[f"canvas_{slots}"] = _call(model.backend, text, 0, slots, mask or 0)
        calls[f"commit_and_canvas_{slots}"] = _call(model.backend, text, slots, slots, mask or 0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(-(-repeats // BURST)):
        for name, call in calls.items():
            call()  # a call of another shape binds its arrays anew, which decoding does seldom
            times[name] += [_timed(call) for _ in range(BURST)]
    out = {f"{name}_ms": 1000 * median(t) for name, t in times.items()}
    return out | {
        "context": context,
        "over_ar": {n: out[f"{n}_ms"] / out["ar_ms"] for n in calls if n != "ar"},
    }


def _call(backend: Backend, text: np.ndarray, encode: int, slots: int, mask: int = 0) -> Callable[[], None]:
    """One evaluation behind the text; what it encodes is forgotten again before the next."""
    context = backend.new_context(len(text) + encode + slots)
    backend.forward([Pass(context, text)])
    new = text[:encode] if encode <= len(text) else np.resize(text, encode)
    canvas = np.full(slots, mask, dtype=np.int64) if slots else None

    def call() -> None:
        context.truncate(len(text))
        backend.forward([Pass(context, new, "last" if not slots else "none", canvas=canvas)])

    return call


def _timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _turned(modes: Sequence[str], by: int) -> list[str]:
    by %= len(modes)
    return [*modes[by:], *modes[:by]]


def _interval(runs: Sequence[Written], ar: Sequence[Written]) -> tuple[float, float]:
    """95 % of the ratio of tokens a second, over prompts. Token counts are equal, so it is one of seconds."""
    return bootstrap_ratio(np.array([r.seconds for r in ar]), np.array([r.seconds for r in runs]))


def _share_same(first: Sequence[Written], second: Sequence[Written]) -> float:
    """Share of prompts with the same token ids. Below 1 only where the unpadded AR loop met a near tie."""
    return sum(a.tokens == b.tokens for a, b in zip(first, second, strict=True)) / max(1, len(first))


def lines(told: dict[str, Any]) -> list[str]:
    """The report for a person."""
    out = [
        f"{told['model']} on {told['backend']}, {told['device']}: {told['prompts']} prompts, "
        f"{told['tokens_per_prompt']} new tokens each, one at a time",
        f"{'mode':<10} {'tokens/s':>9} {'ratio':>6} {'bound':>6} {'step ms':>8} {'TPF':>5} {'AR nll':>7} "
        f"{'distinct-3':>10}   network/sampling/Python",
    ]
    for mode, m in told["modes"].items():
        ratio = f"{told['ratio'][mode]:6.2f}" if mode in told["ratio"] else f"{'':6}"
        most = f"{told['bound'][mode]:6.2f}" if mode in told["bound"] else f"{'':6}"
        parts = "/".join(f"{100 * m['split'][p]:.0f}" for p in ("network", "sampling", "python"))
        out.append(
            f"{mode:<10} {m['tokens_per_second']:9.1f} {ratio} {most} {m['step_ms']:8.2f} "
            f"{m['tokens_per_forward']:5.2f} {m['ar_nll']:7.3f} {m['distinct_3']:10.3f}   {parts} %"
        )
    out.append("bound: TPF ÷ (canvas step ÷ AR step), by the network's time alone")
    same = told["same_as_ar"]
    padding = "unpadded, which rounds otherwise" if told["ar_unpadded"] else "as it runs everywhere"
    out.append(f"AR loop: {padding}; verified gave its token ids on {100 * same:.0f} % of prompts")
    if told["costs"]:
        parts = ", ".join(f"{n.replace('_', ' ')} {v:.2f}" for n, v in told["costs"]["over_ar"].items())
        out.append(f"steps in AR steps ({told['costs']['ar_ms']:.2f} ms): {parts}")
    for name, peer in told.get("peers", {}).items():
        out.append(
            f"{name}: skipped, {peer['skipped']}"
            if "skipped" in peer
            else f"{name}: {peer['tokens_per_second']:.1f} tokens/s (AR); our AR {peer['ar_over_it']:.2f} times as many"
        )
    return out
