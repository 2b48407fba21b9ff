"""A canvas between two steps: how it begins, and what it says at the end (step.py has what lies between).

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
from redraft.sampling.noise import NoiseKey, random_tokens
from redraft.sampling.reading import is_one_of
from redraft.sampling.settings import SamplerSettings, SlotVocabulary
from redraft.sampling.state import SlotState


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
    stayed the same, where a rule asks for it; extra: steps begun with nothing open (error correction).
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
        read = self.live & ~self.locked if self.settings.looks_back else self.open
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
    open; they count as settled where acceptance sticks (error correction may still revise them),
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
    tokens = np.where(known, given, noise_for(settings, vocabulary, key, position, length, 0))
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
        live=live_slots(tokens, settled, fixed, vocabulary),
        opened=int((~settled).sum()),
        watched=watched,
        time=settings.start,
    )
    correctable = settings.looks_back and settings.edit_steps > 0 and not fixed.all()
    return canvas.after(finished=not canvas.any_open and not correctable)


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


def live_slots(
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


def noise_for(
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
