"""What a person should see of a canvas: its slots as text with their states, and the colours of those."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redraft.cli.terminal import safe
from redraft.engine.events import SlotState, Step

if TYPE_CHECKING:
    from rich.text import Text

    from redraft.hub.tokenizer import Tokenizer

NOISE_SIGN = "░"

# Bold, dim and underline remain where colours are unwanted (NO_COLOR); settled text has the terminal's own
# colour.
STYLES = {
    SlotState.NOISE: "bright_black",
    SlotState.DRAFT: "dim",
    SlotState.NEW: "bold green",
    SlotState.REVISED: "underline magenta",
    SlotState.SETTLED: "none",
    SlotState.LOCKED: "blue",
}


@dataclass(frozen=True)
class Slot:
    """text: "" for a null or for the first tokens of a character that a later slot completes."""

    text: str
    state: SlotState


def visible_slots(
    step: Step, tokenizer: Tokenizer, stop_ids: Collection[int], before: Sequence[int] = ()
) -> list[Slot]:
    """The canvas up to the first stop token that isn't noise: what lies behind it won't be part of the answer.

    before: committed tokens of a character that the canvas completes.
    """
    states = [SlotState(int(s)) for s in step.state]
    tokens = [int(t) for t in step.tokens]
    slots = []
    texts = tokenizer.decode_slots([*before, *tokens])[len(before) :]
    for token, state, text in zip(tokens, states, texts, strict=True):
        if state is SlotState.NOISE:
            slots.append(Slot(text or NOISE_SIGN, state))
        elif token in stop_ids:
            break
        else:
            slots.append(Slot(text, state))
    return slots


def settled_text(slots: Iterable[Slot]) -> str:
    """The text of the leading slots that are accepted: what is certain before the canvas is done."""
    out = []
    for slot in slots:
        if slot.state in (SlotState.NOISE, SlotState.DRAFT):
            break
        out.append(slot.text)
    return "".join(out)


def styled(slots: Iterable[Slot]) -> Text:
    """Slots as rich text in the colours of their states, control characters made visible."""
    from rich.text import Text

    text = Text(no_wrap=False, overflow="fold")
    for slot in slots:
        shown = safe(slot.text)
        word = shown.lstrip(" ")
        # Spaces in a run of their own: SVG viewers squeeze those that a coloured run begins with.
        text.append(" " * (len(shown) - len(word)))
        text.append(word, STYLES[slot.state])
    return text
