"""One canvas's way from noise to text: begin, advance once for each network evaluation, outcome.

Pure functions on a frozen value. A canvas carries its own settings, noise key and position, so what happens
to it depends on its logits alone: the same in a batch of any size, today or tomorrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from redraft.errors import RequestError
from redraft.sampling import accept, length, reverse, revise
from redraft.sampling.grammar import Allow, first_allowed, in_order
from redraft.sampling.noise import NoiseKey, random_tokens
from redraft.sampling.reading import Reading, is_one_of, read
from redraft.sampling.settings import SamplerSettings, SlotVocabulary
from redraft.sampling.state import SlotState

_UNSETTLED = np.array([SlotState.DRAFT, SlotState.SETTLED], dtype=np.uint8)  # by whether a slot is settled
_NON_STICKY_ENTROPY = 0.005  # nats a slot, DiffusionGemma's own stop


@dataclass(frozen=True, eq=False)
class Canvas:
    """C slots between two steps; never change its arrays.

    tokens int64 [C]: the network's next input, open slots holding noise. shown int64 [C]: what a person
    should see, settled tokens and the argmax elsewhere. state uint8 [C] of SlotState. probability float32
    [C]: of the shown token when it was last read, for a settled one when it was accepted. entropy float32 [C]
    in nats. settled: accepted (given ones included). locked: never changes. live: up to the first settled end
    of the answer; what lies after it is dropped. position: output position of slot 0, which its noise depends
    on. chosen: output tokens before this canvas, for penalties. step: evaluations so far; clock and time:
    where the reverse process is; watched: whether anyone looks at the entropy, which else stays as it is where no rule
    needs it; opened: slots open at first; unchanged: for how many steps `shown` has
    stayed the same, where a rule asks for it; extra: steps begun with nothing open (token editing).
    """

    settings: SamplerSettings
    vocabulary: SlotVocabulary
    key: NoiseKey
    position: int
    chosen: tuple[int, ...]
    tokens: np.ndarray
    shown: np.ndarray
    state: np.ndarray
    probability: np.ndarray
    entropy: np.ndarray
    settled: np.ndarray
    locked: np.ndarray
    live: np.ndarray
    opened: int
    watched: bool = True
    step: int = 0
    clock: int = 0
    time: float = 1.0
    unchanged: int = 0
    extra: int = 0
    finished: bool = False

    @cached_property
    def open(self) -> np.ndarray:
        """bool [C]: slots still to be settled."""
        return self.live & ~self.settled

    @cached_property
    def any_open(self) -> bool:
        return bool(self.open.any())

    @property
    def by_length(self) -> bool:
        """Whether the first step decides how many slots stay empty; a model without nulls leaves none."""
        return self.settings.length_first and self.vocabulary.null_id is not None

    @cached_property
    def wanted(self) -> np.ndarray:
        """int64 [k]: the slots that the next step reads; see reading.wanted."""
        if self.finished:
            return np.zeros(0, dtype=np.int64)
        read = self.open if self.settings.edit_threshold is None else self.live & ~self.locked
        return read.nonzero()[0]

    def after(self, **changes: Any) -> Canvas:
        """This canvas with some fields changed. What dataclasses.replace does, at a tenth of its time, which would
        be the longest part of a step's bookkeeping."""
        made = object.__new__(Canvas)
        made.__dict__.update(self.__dict__)
        for derived in ("open", "any_open", "wanted"):
            made.__dict__.pop(derived, None)
        made.__dict__.update(changes)
        return made


def begin(
    settings: SamplerSettings,
    vocabulary: SlotVocabulary,
    key: NoiseKey,
    position: int,
    locked: Mapping[int, int] | None = None,
    initial: Sequence[int] | np.ndarray | None = None,
    chosen: Sequence[int] = (),
    watched: bool = True,
) -> Canvas:
    """A canvas of settings.canvas_length slots (or as many as `initial` has) in noise.

    locked: {slot: token}, which never change. initial: tokens to start from, -1 or the mask where a slot is
    open; they count as settled where acceptance sticks (token editing and remasking may still revise them),
    and as x_t at time settings.start for the rules that follow time. Raises RequestError for slots or tokens
    that don't exist, and for masks in a vocabulary without one.
    """
    before = tuple(int(token) for token in chosen) if settings.penalises else ()
    if not locked and initial is None and settings.open_noise == "mask" and vocabulary.mask_id is not None:
        blank = _blank(settings.canvas_length, vocabulary.mask_id, vocabulary.vocab_size)
        return Canvas(
            settings, vocabulary, key, position, before, **blank, watched=watched, time=settings.start
        )
    if settings.open_noise == "mask" and vocabulary.mask_id is None:
        raise RequestError("this model has no mask token: choose renoise uniform (or corruption uniform)")
    length = settings.canvas_length if initial is None else len(initial)
    given = np.full(length, -1, dtype=np.int64) if initial is None else np.array(initial, dtype=np.int64)
    if vocabulary.mask_id is not None:
        given[given == vocabulary.mask_id] = -1
    fixed = np.zeros(length, dtype=bool)
    for slot, token in (locked or {}).items():
        if not 0 <= slot < length:
            raise RequestError(f"slot {slot} can't be locked: the canvas has slots 0 to {length - 1}")
        if token == vocabulary.mask_id or token < 0:
            raise RequestError(f"slot {slot} can't be locked to token {token}: it stands for nothing")
        given[slot], fixed[slot] = token, True
    if length == 0 or (given >= vocabulary.vocab_size).any() or (given < -1).any():
        raise RequestError(
            f"a canvas needs at least one slot and tokens from 0 to {vocabulary.vocab_size - 1}"
        )

    known = given >= 0
    tokens = np.where(known, given, _noise(settings, vocabulary, key, position, length, 0))
    settled = known & (fixed | settings.sticky)
    state = np.select(
        [fixed, settled, known], [SlotState.LOCKED, SlotState.SETTLED, SlotState.DRAFT], SlotState.NOISE
    )
    canvas = Canvas(
        settings=settings,
        vocabulary=vocabulary,
        key=key,
        position=position,
        chosen=before,
        tokens=tokens,
        shown=tokens,
        state=state.astype(np.uint8),
        probability=settled.astype(np.float32),
        entropy=np.where(settled, 0.0, np.log(vocabulary.vocab_size)).astype(np.float32),
        settled=settled,
        locked=fixed,
        live=_live(tokens, settled, fixed, vocabulary),
        opened=int((~settled).sum()),
        watched=watched,
        time=settings.start,
    )
    editable = settings.edit_threshold is not None and settings.edit_steps > 0 and not fixed.all()
    return canvas.after(finished=not canvas.any_open and not editable)


@lru_cache(maxsize=64)
def _blank(slots: int, mask: int, vocab_size: int) -> dict[str, Any]:
    """The fields of a canvas of masks, which all canvases of that length share: nobody changes a canvas's arrays."""
    nothing = np.zeros(slots, dtype=bool)
    fields: dict[str, np.ndarray] = {
        "tokens": np.full(slots, mask, dtype=np.int64),
        "state": np.zeros(slots, dtype=np.uint8),
        "probability": np.zeros(slots, dtype=np.float32),
        "entropy": np.full(slots, np.log(vocab_size), dtype=np.float32),
        "settled": nothing,
        "live": ~nothing,
    }
    for array in fields.values():
        array.flags.writeable = False
    return fields | {"shown": fields["tokens"], "locked": nothing, "opened": slots}


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
    if settings.edit_threshold is not None:  # settled slots were read too
        best = np.where(canvas.settled, canvas.tokens, best)
    if settings.needs_entropy and canvas.step > 0 and np.array_equal(best, canvas.shown):
        unchanged = canvas.unchanged + 1
    last = canvas.step + 1 >= settings.max_steps or _converged(canvas, reading, unchanged)

    if not canvas.any_open:  # only token editing goes on
        move = reverse.Move(canvas.tokens, canvas.settled, canvas.clock, canvas.time, last)
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


def outcome(canvas: Canvas, slots: int | None = None) -> tuple[int, ...]:
    """The canvas (or its first `slots`) as output: settled tokens, the argmax where none is settled, nulls
    dropped, cut after the first end of answer (included; a locked one doesn't end it). Slots still in noise and
    masks are never output."""
    out: list[int] = []
    dropped = {canvas.vocabulary.mask_id, canvas.vocabulary.null_id}
    for token, state in zip(canvas.shown[:slots].tolist(), canvas.state[:slots].tolist(), strict=True):
        if state == SlotState.NOISE or token in dropped:
            continue
        out.append(token)
        if state != SlotState.LOCKED and token in canvas.vocabulary.eos_ids:
            break
    return tuple(out)


def _accept(canvas: Canvas, reading: Reading, last: bool, allow: Allow | None) -> reverse.Move:
    """One step of a confidence rule, with ReMDM's remasking on the rule's timetable."""
    settings = canvas.settings
    sticky = settings.sticky
    look = accept.Look(
        settings, canvas.step, canvas.opened, canvas.open, reading.probability, reading.entropy
    )
    accepted = accept.RULES[settings.accept](look)
    time = reverse.grid_time(settings, canvas.step + 1)
    kept = canvas.settled
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
    noise = _noise(canvas.settings, canvas.vocabulary, canvas.key, canvas.position, len(keep), step)
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
    if edited is None and settings.remask is None and settings.sticky and settings.open_noise == "mask":
        return _settle_for_good(canvas, reading, move, best)
    settled, taken = move.settled, canvas.settled & ~move.settled
    tokens, revised, probability = move.tokens, taken, reading.probability
    if edited is not None:
        edited = edited & ~taken
        tokens = np.where(edited, reading.best, tokens)
        revised = taken | edited
    noise = _noise(settings, vocabulary, canvas.key, canvas.position, len(settled), step)
    live = _live(tokens, settled, canvas.locked, vocabulary)
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
    done = (
        settings.edit_threshold is None
        or extra >= settings.edit_steps
        or resting
        or step >= settings.max_steps
    )
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
        live = _live(tokens, settled, canvas.locked, canvas.vocabulary)
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


def _live(
    tokens: np.ndarray, settled: np.ndarray, locked: np.ndarray, vocabulary: SlotVocabulary
) -> np.ndarray:
    """bool [C]: true up to the first settled end of answer, which a locked token never is."""
    live = np.ones(len(tokens), dtype=bool)
    ends = is_one_of(tokens, vocabulary.eos_ids)
    if ends is not None:
        found = (ends & settled & ~locked).nonzero()[0]
        if len(found):
            live[found[0] + 1 :] = False
    return live


def _noise(
    settings: SamplerSettings,
    vocabulary: SlotVocabulary,
    key: NoiseKey,
    position: int,
    length: int,
    step: int,
) -> np.ndarray | int:
    """What open slots hold next: one token for all of them, or int64 [length]."""
    if settings.open_noise == "mask" and vocabulary.mask_id is not None:
        return vocabulary.mask_id
    return random_tokens(key, position, length, step, vocabulary.vocab_size, vocabulary.mask_id)
