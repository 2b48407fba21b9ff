"""Filling (infilling): text for gaps of unknown length, seen from both sides.

A gap is a run of open slots between the context and the first tokens of the text behind it, which ride locked on the
canvas. Slots that end as nulls were too many; a gap without any was perhaps too small, and is filled again with twice
the slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redraft.editing.editor import SEEN, Ask, Editor, Steps
from redraft.editing.pieces import Seam, left_seam, right_seam
from redraft.engine import OPEN, GivenCanvas
from redraft.errors import RequestError
from redraft.hub.tokenizer import check_text

FIRST_SLOTS = 2  # more make fills too long: the trained model thinks few of a gap's slots empty
AHEAD = 4  # open slots that stand for a later gap on the canvas of this one
Pins = Mapping[int, str]


@dataclass(frozen=True)
class Filled:
    """texts: of the gaps, in their order. token_ids: what their canvases came to, seams included. read: most
    tokens that were read before a gap. complete: no gap was cut at its most slots."""

    texts: tuple[str, ...]
    token_ids: tuple[int, ...]
    read: int
    complete: bool


@dataclass(frozen=True)
class Limits:
    """first: slots that a gap starts with; most: slots that it may come to; stop: texts before which a gap ends."""

    first: int
    most: int
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("slots", self.first), ("max_tokens", self.most)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RequestError(f"{name} must be a whole number of at least 1, not {value!r}")
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise RequestError("stop must be texts of at least one character")


def fill(editor: Editor, parts: Sequence[str], pins: Sequence[Pins], limits: Limits) -> Steps[Filled]:
    """Fills the gaps between `parts`, one after the other; each sees the whole text before it that fits the context,
    and SEEN tokens behind it. pins: for each gap {slot: text}, words that stand from that slot of the gap on."""
    if len(parts) < 2:
        raise RequestError("there is no gap: give the text before and the text behind it")
    if limits.most + SEEN + 4 > editor.limit:
        raise RequestError(
            f"max_tokens is {limits.most}; with the text behind the gap the context holds {editor.limit - SEEN - 4}"
        )
    fixed = [_pinned(editor, gap, limits) for gap in pins] or [{} for _ in parts[1:]]
    if len(fixed) != len(parts) - 1:
        raise RequestError(f"pins are for {len(fixed)} gaps, and there are {len(parts) - 1}")
    for part in parts:
        check_text(part)
    texts: list[str] = []
    ids: list[int] = []
    text, read, complete = parts[0], 0, True
    for number in range(len(parts) - 1):
        gap = _Gap(editor, text, tuple(parts[number + 1 :]), fixed[number], limits, number)
        yield from gap.write()
        texts.append(gap.text)
        ids += gap.ids
        read, complete = max(read, gap.read), complete and gap.complete
        text += gap.text + parts[number + 1]
    return Filled(tuple(texts), tuple(ids), read, complete)


def _pinned(editor: Editor, pins: Pins, limits: Limits) -> dict[int, int]:
    """{slot: token}. Raises RequestError for pins that can't fit."""
    tokens: dict[int, int] = {}
    for slot, text in pins.items():
        if (
            isinstance(slot, bool)
            or not isinstance(slot, int)
            or slot < 0
            or not isinstance(text, str)
            or not text
        ):
            raise RequestError(f"a pin is a slot from 0 and a text, not {slot!r}: {text!r}")
        ids = editor.pieces.encode(text)
        if slot + len(ids) > limits.most:
            raise RequestError(
                f"the pin {text!r} takes slots {slot} to {slot + len(ids) - 1}; a gap has at most {limits.most}: "
                "raise max_tokens or pin it earlier"
            )
        places = range(slot, slot + len(ids))
        if any(place in tokens for place in places):
            raise RequestError(f"the pin {text!r} lies over another one: it begins in slot {slot}")
        tokens.update(zip(places, ids, strict=True))
    if len(tokens) >= limits.most:
        raise RequestError("the pins take every slot of the gap: raise max_tokens")
    return tokens


class _Gap:
    """One gap: `write` tries it with more slots until some stay empty."""

    def __init__(
        self,
        editor: Editor,
        before: str,
        after: tuple[str, ...],
        pins: dict[int, int],
        limits: Limits,
        sample: int,
    ) -> None:
        self._editor, self._before, self._after = editor, before, after
        self._pins, self._limits, self._sample = pins, limits, sample
        self._open_end = not any(after) and len(after) == 1
        self._tail, self._right = self._behind()
        self.text, self.read, self.complete = "", 0, False
        self.ids: tuple[int, ...] = ()

    def _behind(self) -> tuple[list[int], Seam]:
        """The slots behind the gap, OPEN where later gaps are, and the seam between."""
        tail: list[int] = []
        for number, part in enumerate(self._after):
            tail += [OPEN] * (AHEAD if number else 0)
            tail += self._editor.after(part)
            if len(tail) >= SEEN:
                break
        first = self._editor.after(self._after[0], 1)
        _, right = right_seam(self._editor.pieces, first)
        return tail[bool(right) : SEEN], right

    def write(self) -> Steps[None]:
        slots = min(max(self._limits.first, max(self._pins, default=-1) + 2), self._limits.most)
        while True:
            again = yield from self._attempt(slots)
            if not again:
                return
            slots = min(2 * slots, self._limits.most)

    def _attempt(self, slots: int) -> Steps[bool]:
        """Fills the gap with so many slots; whether it should be tried with more."""
        editor = self._editor
        gap = [self._pins.get(slot, OPEN) for slot in range(slots)]
        tokens, whole = editor.near(self._before)
        tokens, left = left_seam(editor.pieces, tokens)
        prompt = editor.prompt(tokens, whole, editor.limit - slots - 2 - len(self._tail))
        self.read = max(self.read, len(prompt))
        initial = [OPEN] * bool(left) + gap + [OPEN] * bool(self._right)
        end = len(initial)
        only = ({0: left.only} if left else {}) | ({end - 1: self._right.only} if self._right else {})
        initial += self._tail
        canvas = GivenCanvas(tuple(initial), tuple(token != OPEN for token in initial), end, only)
        request = editor.request(prompt, [canvas], self._sample, self._open_end, length_first=True)
        answer = yield Ask(request, _without(self._before, left.held), "".join(self._after))
        if not answer.canvases:
            return False
        return self._take(answer.canvases[0].tokens[:end].tolist(), left, slots)

    def _take(self, tokens: list[int], left: Seam, slots: int) -> bool:
        """Reads the gap's text off the canvas; whether it is full and may have more slots."""
        editor = self._editor
        ended = editor.null in tokens
        if self._open_end:
            ends = [at for at, token in enumerate(tokens) if token in editor.config.eos_token_ids]
            if ends:
                ended, tokens = True, tokens[: ends[0]]
        self.ids = tuple(token for token in tokens if token != editor.null)
        data = editor.pieces.join(self.ids)
        data = data[len(left.held) : len(data) - len(self._right.held)]
        # A character that isn't whole, at a seam or where the canvas ended, is left out.
        self.text = data.decode("utf-8", "ignore")
        found = [at for at in (self.text.find(stop) for stop in self._limits.stop) if at >= 0]
        if found:
            self.text, ended = self.text[: min(found)], True
        self.complete = ended
        return not ended and slots < self._limits.most


def _without(text: str, held: bytes) -> str:
    """`text` without the bytes at its end that the canvas shows again."""
    return text.encode()[: -len(held)].decode("utf-8", "ignore") if held else text
