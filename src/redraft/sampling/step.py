"""One step of a canvas: from the logits of one network evaluation to the next canvas."""

from __future__ import annotations

import numpy as np

from redraft.sampling import accept, length, reverse, revise
from redraft.sampling.canvas import Canvas, live_slots, noise_for
from redraft.sampling.grammar import Allow, first_allowed, in_order
from redraft.sampling.reading import Reading, read
from redraft.sampling.state import SlotState

_UNSETTLED = np.array([SlotState.DRAFT, SlotState.SETTLED], dtype=np.uint8)  # by whether a slot is settled
_NON_STICKY_ENTROPY = 0.005  # nats a slot, DiffusionGemma's own stop


def advance(
    canvas: Canvas, logits: np.ndarray, allowed: np.ndarray | None = None, allow: Allow | None = None
) -> Canvas:
    """The canvas after one denoising step; a finished canvas stays as it is.

    logits: float32 [C, V], or [k, V] with the rows that `wanted(canvas)` names. allowed: permitted tokens, bool [V] or
    [C, V]. allow: a grammar instead, from the tokens of the canvas before a slot to those that may stand in it
    (grammar.py), for settings that `follows_grammars`. Raises RedraftError for logits of a wrong shape or that are not
    finite numbers.
    """
    if canvas.finished:
        return canvas
    settings = canvas.settings
    if allow is not None:
        allowed = first_allowed(canvas, allow)
    if canvas.by_length and canvas.step > 0:
        allowed = length.without_null(canvas, allowed)
    reading = read(canvas, logits, allowed)
    best, unchanged = reading.best, 0
    if settings.looks_back:  # settled slots were read too
        best = np.where(canvas.settled, canvas.tokens, best)
    if settings.needs_entropy and canvas.step > 0 and np.array_equal(best, canvas.shown):
        unchanged = canvas.unchanged + 1
    last = canvas.step + 1 >= settings.max_steps or _converged(canvas, reading, unchanged)

    if not canvas.any_open:  # only error correction goes on
        kept = revise.undoubted(canvas, reading, last)
        move = reverse.Move(canvas.tokens, kept, canvas.clock, canvas.time, last)
    elif settings.accept in reverse.RULES:
        move = reverse.RULES[settings.accept](canvas, reading, last)
    else:
        move = _accept(canvas, reading, last, allow)
    edited = revise.edits(canvas, reading)
    if (
        last and edited is not None
    ):  # taking the end of the answer away would open slots that no step is left for
        edited &= ~np.isin(canvas.tokens, canvas.vocabulary.eos_ids)
    if not settings.sticky and not move.done:
        return _drift(canvas, reading, move, best, unchanged)
    return _settle(canvas, reading, move, edited, best, unchanged)


def _accept(canvas: Canvas, reading: Reading, last: bool, allow: Allow | None) -> reverse.Move:
    """One step of a confidence rule, with ReMDM's remasking on the rule's timetable."""
    settings = canvas.settings
    sticky = settings.sticky
    kept = revise.undoubted(canvas, reading, last)
    back = 0 if kept is canvas.settled else int(canvas.settled.sum() - kept.sum())
    look = accept.Look(
        settings, canvas.step, canvas.opened, canvas.open, reading.probability, reading.entropy, back
    )
    accepted = accept.RULES[settings.accept](look)
    time = reverse.grid_time(settings, canvas.step + 1)
    if last:
        accepted, time = canvas.open if sticky else ~canvas.locked, 0.0
    elif settings.remask is not None:
        survival = reverse.process_of(canvas).kernel.shares
        before = float(survival(reverse.grid_time(settings, canvas.step)).alpha)
        given = canvas.settled & ~canvas.locked
        share = revise.remask_share(settings, given, canvas.probability, before, float(survival(time).alpha))
        kept = kept & ~revise.taken_back(canvas, given, share, canvas.step)
    if allow is not None:
        accepted = in_order(canvas, accepted, reading.choice, allow)
    if canvas.by_length and canvas.step == 0 and not last:
        return length.decide(canvas, reading, accepted)
    # where acceptance does not stick, the argmax is written at the end, never a token sampled on the way
    source = reading.choice if sticky or not last else reading.best
    tokens = np.where(accepted, source, canvas.tokens)
    settled = kept | accepted if sticky or last else accepted | canvas.locked
    return reverse.Move(tokens, settled, canvas.clock + 1, time, last)


def _converged(canvas: Canvas, reading: Reading, unchanged: int) -> bool:
    """Stable and confident: the argmax has stayed for stable_steps and the mean entropy is below the
    bound."""
    settings = canvas.settings
    bound = settings.confident_entropy
    if bound is None and not settings.sticky and settings.accept not in reverse.RULES:
        bound = _NON_STICKY_ENTROPY
    if bound is None or unchanged < settings.stable_steps or not canvas.any_open:
        return False
    return float(reading.entropy[canvas.open].mean(dtype=np.float64)) < bound


def _drift(canvas: Canvas, reading: Reading, move: reverse.Move, best: np.ndarray, unchanged: int) -> Canvas:
    """After a step whose acceptance does not stick: accepted slots show their token to the network, the rest
    noise."""
    step = canvas.step + 1
    keep = move.settled if canvas.settings.accept in accept.RULES else np.ones_like(move.settled)
    noise = noise_for(canvas.settings, canvas.vocabulary, canvas.key, canvas.position, len(keep), step)
    was_kept = (canvas.state == SlotState.NEW) | (canvas.state == SlotState.SETTLED)
    changed = best != canvas.shown
    accepted = move.settled & ~canvas.locked
    state = np.select(
        [canvas.locked, was_kept & (~accepted | changed), accepted & was_kept, accepted],
        [SlotState.LOCKED, SlotState.REVISED, SlotState.SETTLED, SlotState.NEW],
        SlotState.DRAFT,
    )
    return canvas.after(
        tokens=np.where(keep, move.tokens, noise),
        shown=best,
        state=state.astype(np.uint8),
        probability=reading.peak,
        entropy=reading.entropy,
        step=step,
        clock=move.clock,
        time=move.time,
        unchanged=unchanged,
    )


def _settle(
    canvas: Canvas,
    reading: Reading,
    move: reverse.Move,
    edited: np.ndarray | None,
    best: np.ndarray,
    unchanged: int,
) -> Canvas:
    """After a step whose acceptance sticks, or the last step of any rule."""
    settings, vocabulary, step = canvas.settings, canvas.vocabulary, canvas.step + 1
    if settings.final and settings.open_noise == "mask":
        return _settle_for_good(canvas, reading, move, best)
    settled, taken = move.settled, canvas.settled & ~move.settled
    tokens, revised, probability = move.tokens, taken, reading.probability
    if edited is not None:
        edited = edited & ~taken
        tokens = np.where(edited, reading.best, tokens)
        revised = taken | edited
    noise = noise_for(settings, vocabulary, canvas.key, canvas.position, len(settled), step)
    live = live_slots(tokens, settled, canvas.locked, vocabulary)
    probability = np.where(canvas.settled, canvas.probability, probability)
    if edited is not None:
        probability[edited] = reading.peak[edited]
    state = _UNSETTLED[settled.view(np.uint8)]
    state[settled & ~canvas.settled] = SlotState.NEW
    state[revised] = SlotState.REVISED
    state[canvas.locked] = SlotState.LOCKED
    was_closed = not canvas.any_open
    extra = canvas.extra + was_closed
    resting = was_closed and not revised.any()
    done = not settings.looks_back or extra >= settings.edit_steps or resting or step >= settings.max_steps
    return canvas.after(
        tokens=np.where(settled, tokens, noise),
        shown=np.where(settled, tokens, best),
        state=state,
        probability=probability,
        entropy=reading.entropy,
        settled=settled,
        live=live,
        step=step,
        clock=move.clock,
        time=move.time,
        unchanged=unchanged,
        extra=extra,
        finished=done and bool((settled | ~live).all()),
    )


def _settle_for_good(canvas: Canvas, reading: Reading, move: reverse.Move, best: np.ndarray) -> Canvas:
    """`_settle` where nothing that has settled changes any more and open slots keep their mask: a few operations on
    arrays of a few slots, each of which takes as long as hundreds of slots would."""
    settled, tokens, live = move.settled, move.tokens, canvas.live
    state = _UNSETTLED[settled.view(np.uint8)]
    state[settled & ~canvas.settled] = SlotState.NEW
    if canvas.locked.any():
        state[canvas.locked] = SlotState.LOCKED
    if not canvas.vocabulary.eos.isdisjoint(tokens.tolist()):
        live = live_slots(tokens, settled, canvas.locked, canvas.vocabulary)
    return canvas.after(
        tokens=tokens,
        shown=np.where(settled, tokens, best),
        state=state,
        probability=reading.probability,
        entropy=reading.entropy,
        settled=settled,
        live=live,
        step=canvas.step + 1,
        clock=move.clock,
        time=move.time,
        finished=bool((settled | ~live).all()),
    )
