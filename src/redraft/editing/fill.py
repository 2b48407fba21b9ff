"""Filling (infilling): text for gaps of unknown length, seen from both sides; how one gap is filled is in gap.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redraft.editing.editor import SEEN, Editor, Steps
from redraft.editing.gap import Gap, Limits
from redraft.errors import RequestError
from redraft.hub.tokenizer import check_text

Pins = Mapping[int, str]


@dataclass(frozen=True)
class Filled:
    """texts: of the gaps, in their order. token_ids: what their canvases came to, seams included. read: most
    tokens that were read before a gap. complete: no gap was cut at its most slots."""

    texts: tuple[str, ...]
    token_ids: tuple[int, ...]
    read: int
    complete: bool


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
        gap = Gap(editor, text, tuple(parts[number + 1 :]), fixed[number], limits, number)
        yield from gap.write()
        texts.append(gap.made.text)
        ids += gap.made.ids
        read, complete = max(read, gap.read), complete and gap.made.whole
        text += gap.made.text + parts[number + 1]
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
