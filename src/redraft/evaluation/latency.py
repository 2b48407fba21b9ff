"""bench latency: how long until there's something to see, until it stands, and until all is there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redraft.api import Model
from redraft.errors import RedraftError
from redraft.evaluation.speed import MODES
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

COLD_PROMPT = "Hi, I need a table for two in San Jose tonight."


@dataclass(frozen=True)
class Latency:
    """tokens: length of the answers. cold_starts: fresh processes of `redraft run`; model: what they load."""

    tokens: int = 256
    cold_starts: int = 5
    model: str = ""
    backend: str = "auto"
    diffusion: Way = DIFFUSION
    verified: Way = VERIFIED
    seed: int = 0


def latency(
    model: Model, prompts: Sequence[np.ndarray], settings: Latency, progress: Progress = lambda text: None
) -> dict[str, Any]:
    """The object of `redraft bench latency --json`: for each mode p50 and p95, in seconds from the request on, its
    prompt read anew, of the first draft (AR's and verified's first token), the first committed text and the whole
    answer; cold_start: from a process's start to the first draft of `redraft run`."""
    ways = {
        "ar": GREEDY,
        "diffusion": settings.diffusion,
        "verified": settings.verified,
    }
    ar_backend, bare = fastest_ar(model, ways["ar"].request(model, prompts[0], min(32, settings.tokens)))
    benches = {mode: Bench(model, ar_backend if mode == "ar" else None) for mode in MODES}
    runs: dict[str, list[Written]] = {mode: [] for mode in MODES}
    for mode in MODES:
        benches[mode].write(ways[mode].request(model, prompts[0], min(32, settings.tokens)))
    for number, prompt in enumerate(prompts):
        progress(f"prompt {number + 1} of {len(prompts)}")
        for mode in MODES:
            tokens = min(settings.tokens, model.config.max_position_embeddings - len(prompt))
            runs[mode].append(benches[mode].write(ways[mode].request(model, prompt, tokens, settings.seed)))
    starts = []
    for number in range(settings.cold_starts):
        progress(f"cold start {number + 1} of {settings.cold_starts}")
        starts.append(cold_start(settings.model, settings.backend))
    return machine(model) | {
        "prompts": len(prompts),
        "prompt_tokens": quantiles([len(p) for p in prompts]),
        "tokens_per_prompt": settings.tokens,
        "ar_unpadded": bare,
        "settings": {mode: way.told(model) for mode, way in ways.items()},
        "modes": {
            mode: {
                "first_draft": quantiles([r.first_draft for r in runs[mode]]),
                "first_commit": quantiles([r.first_commit for r in runs[mode]]),
                "answer": quantiles([r.total for r in runs[mode]]),
            }
            for mode in MODES
        },
        "cold_start": quantiles(starts) if starts else None,
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50 and p95, between neighbours where they fall between two."""
    p50, p95 = np.quantile(np.asarray(values, dtype=np.float64), [0.5, 0.95])
    return {"p50": float(p50), "p95": float(p95)}


def cold_start(model: str, backend: str = "auto", tokens: int = 16) -> float:
    """Seconds from the start of a `redraft run` process to its first draft.

    From the start to the line of JSON, less what the answer took after its first draft by its own clock. Raises
    RedraftError when the process fails.
    """
    command = [
        sys.executable,
        "-m",
        "redraft.cli.main",
        "run",
        "--json",
        "--seed",
        "0",
        "--max-tokens",
        str(tokens),
    ]
    command += ["--backend", backend, *(["--model", model] if model else []), COLD_PROMPT]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        end = time.perf_counter()
        _, complaint = process.communicate()
    if process.returncode != 0 or not line:
        raise RedraftError(f"redraft run failed: {' '.join(complaint.split()) or process.returncode}")
    told = json.loads(line)
    return end - start - told["seconds"] + (told["time_to_first_draft"] or told["seconds"])


def lines(told: dict[str, Any]) -> list[str]:
    """The report for a person."""
    out = [
        f"{told['model']} on {told['backend']}, {told['device']}: {told['prompts']} prompts of "
        f"{told['prompt_tokens']['p50']:.0f} tokens (median), answers of {told['tokens_per_prompt']}; ms, p50 / p95",
        f"{'mode':<10} {'first draft':>15} {'first text':>15} {'answer':>17}",
    ]
    for mode, m in told["modes"].items():
        cells = [
            f"{1000 * m[k]['p50']:.1f} / {1000 * m[k]['p95']:.1f}"
            for k in ("first_draft", "first_commit", "answer")
        ]
        out.append(f"{mode:<10} {cells[0]:>15} {cells[1]:>15} {cells[2]:>17}")
    if told["cold_start"]:
        out.append(
            f"cold start of redraft run, to the first draft: {told['cold_start']['p50']:.2f} s / "
            f"{told['cold_start']['p95']:.2f} s"
        )
    return out
