"""How an adapter's heads do on held-out text, and the fit of the confidence head to what is accepted there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from redraft.training.adaptation_batch import AdaptBatch
from redraft.training.adaptation_objective import AdaptationObjective, Pairs

BINS = 10  # of equal width, of the calibration error
RIDGE = 1.0  # on the distance from scale 1 and shift 0, so that a few examples can't tear a fit away


@dataclass(frozen=True)
class Live:
    """Drafts as they are written live, each slot behind the one drafted before it. runs: int64 [canvases], accepted in
    a row. Of each slot whose predecessors all were accepted: place int64, right bool (it is accepted as well), odds
    float32 (the confidence head's, raw; zeros without one), [m] each."""

    runs: np.ndarray
    place: np.ndarray
    right: np.ndarray
    odds: np.ndarray


@torch.no_grad()
def live(objective: AdaptationObjective, batch: AdaptBatch) -> Live:
    """Greedy drafts of canvases that show nothing. Slot 0 is the AR self's own; what is to be accepted after a token is
    taken as given."""
    null = objective.model.config.null_token_id
    assert null is not None
    pairs = objective.pairs(batch)
    theirs = torch.cat([pairs.row[:0], *(objective.favoured(part) for part in pairs.portions())])
    canvases = batch.document.size
    before = pairs.slot.new_full((canvases,), -1)
    alive = torch.ones(canvases, dtype=torch.bool, device=before.device)
    runs = torch.zeros_like(before)
    place, right, odds = [], [], []
    for slot in range(1, batch.shown.shape[2]):
        at = ((pairs.slot == slot) & (pairs.taught > 0)).nonzero()[:, 0]
        if not len(at):
            continue
        part, number = _picked(pairs, at), pairs.number[at]
        known = before[number]
        hidden = objective.moved(part, torch.where(known >= 0, known, part.previous))
        drafted = objective.model.logits(hidden).argmax(-1)
        before[number] = torch.where(torch.eq(drafted, null), known, drafted)  # a null is dropped
        reached, same = alive[number], drafted == theirs[at]
        alive[number] = reached & same
        runs[number] += (reached & same).long()
        place.append(part.slot[reached])
        right.append(same[reached])
        sure = hidden.new_zeros(len(at), dtype=torch.float32)
        if objective.heads.confidence:
            sure = objective.heads.raw_confidence(hidden, part.slot)
        odds.append(sure[reached])
    used = torch.from_numpy(batch.document.reshape(-1) >= 0)
    none = torch.zeros(0)
    return Live(
        runs.cpu()[used].numpy(), *(torch.cat(x or [none]).cpu().numpy() for x in (place, right, odds))
    )


def _picked(pairs: Pairs, at: torch.Tensor) -> Pairs:
    slots = {f.name: getattr(pairs, f.name)[at] for f in fields(pairs)[:-1]}
    return Pairs(**slots, clean=pairs.clean)


def measure(
    objective: AdaptationObjective, batches: Sequence[AdaptBatch]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What to tell, and the confidence head's scale and shift by their names in `Heads`.

    valid_accepted_live: drafts accepted in a row, live. With a confidence head by place (slot 1 first): valid_reached,
    the share of canvases in which all slots before were accepted, valid_right, the share of those that were as well,
    and valid_confidence_error, the expected calibration error of its chances, fitted on every other example and
    measured on the rest.
    """
    found = [live(objective, batch) for batch in batches]
    runs = np.concatenate([f.runs for f in found])
    told: dict[str, Any] = {"valid_accepted_live": float(runs.mean()) if len(runs) else 0.0}
    if not objective.heads.confidence:
        return told, {}
    place, right, odds = (np.concatenate([getattr(f, n) for f in found]) for n in ("place", "right", "odds"))
    places = len(objective.heads.confidence_bias)
    scale, shift = np.ones(places, np.float32), np.zeros(places, np.float32)
    told |= {"valid_reached": [], "valid_right": [], "valid_confidence_error": []}
    drawn = batches[0].shown.shape[2] if batches else places
    for slot in range(1, drawn):
        x, y = odds[place == slot], right[place == slot]
        scale[slot], shift[slot] = platt(x[::2], y[::2])
        chance = 1 / (1 + np.exp(-(scale[slot] * x[1::2] + shift[slot])))
        told["valid_reached"].append(len(x) / max(len(runs), 1))
        told["valid_right"].append(float(y.mean()) if len(y) else 0.0)
        told["valid_confidence_error"].append(calibration_error(chance, y[1::2]))
    # Slots that training doesn't show are taken for as sure as the last that it does.
    bias = objective.heads.confidence_bias.detach().float().cpu().numpy()
    scale[drawn:] = scale[drawn - 1]
    shift[drawn:] = shift[drawn - 1] + scale[drawn - 1] * (bias[drawn - 1] - bias[drawn:])
    fitted = {"confidence_scale": scale, "confidence_shift": shift}
    return told, {name: torch.from_numpy(values) for name, values in fitted.items()}


def platt(odds: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Scale and shift of log-odds that make them the likeliest for what came of them (Platt, 1999), by Newton's method
    on the likelihood with a small pull towards 1 and 0."""
    x = np.stack((odds, np.ones_like(odds)), -1).astype(np.float64)
    y, rest = right.astype(np.float64), np.array([1.0, 0.0])
    found = rest.copy()
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ found, -30, 30)))
        slope = x.T @ (p - y) + RIDGE * (found - rest)
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(2), slope)
        found -= step * min(
            1.0, 2.0 / max(np.abs(step).max(), 1e-9)
        )  # far from the best Newton leaps too far
        if np.abs(step).max() < 1e-8:
            break
    return float(found[0]), float(found[1])


def calibration_error(chance: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: |mean chance - share right| over BINS bins of equal width, weighted by their counts
    (Guo et al., 2017). 0 without examples."""
    if not len(chance):
        return 0.0
    bins = np.minimum((chance * BINS).astype(int), BINS - 1)
    gaps = [abs(float((chance[bins == b] - right[bins == b]).sum())) for b in np.unique(bins)]
    return sum(gaps) / len(chance)
