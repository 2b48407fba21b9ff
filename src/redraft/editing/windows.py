"""Editing a text in windows: every token is shown, none is locked, and what the model doubts it revises.

A window starts from the present text with a null slot after every EVERY tokens, where words can be inserted; a token
that becomes null is deleted. Proofreading reads the edited text so far as context. An instruction is read with the
text before that: <|edit|> instruction, a newline, the text, <|assistant|>.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redraft.editing.alignment import with_nulls
from redraft.editing.editor import Answer, Ask, Editor, Steps
from redraft.editing.hunks import Part
from redraft.editing.spans import Span
from redraft.engine import GivenCanvas
from redraft.engine.review import Review
from redraft.errors import RequestError

EVERY = 8  # tokens between two null slots
WINDOW = 28  # tokens of a window: 31 slots with their nulls
STRIDE = (
    24  # of them are committed where the text goes on; the others are seen, and edited with the next window
)
OVERLAP = 32  # tokens, at most, that stretches of a text too long for the context share at either side


@dataclass(frozen=True)
class Window:
    """canvas over tokens from `start` on, of which those before `stop` are committed. sources: for each committed
    slot the token that it holds, or stands behind."""

    start: int
    stop: int
    canvas: GivenCanvas
    sources: tuple[int, ...]


class Windows:
    """One text, its tokens, and what became of each. spans: where it may change (in order, disjoint); instruction:
    None to proofread."""

    def __init__(
        self, editor: Editor, text: str, spans: Sequence[Span], instruction: str | None = None
    ) -> None:
        """Raises RequestError for an instruction that leaves no room for text."""
        self._editor, self._text = editor, text
        self._tokens, self._bytes, self._editable = _segments(editor, text, spans)
        self._out: list[list[int]] = [[token] for token in self._tokens]
        self._sure = [1.0] * len(self._tokens)
        # Proofreading mends words, not the layout: line ends stand.
        self._stands = [instruction is None and b"\n" in editor.pieces[token] for token in self._tokens]
        self._instruction: list[int] | None = None
        if instruction is not None:
            edit, self._assistant = _marks(editor)
            self._instruction = [*editor.context, edit, *editor.pieces.encode(instruction + "\n")]
        self.windows = [w for start, stop in self._editable for w in self._over(start, stop)]
        if self._instruction is not None and not self._fits(self.windows) and self._stretch() < WINDOW:
            raise RequestError(
                f"the instruction takes {len(self._instruction)} of the context's {editor.limit} tokens, which leaves "
                "no room for text: shorten it"
            )

    def _over(self, start: int, stop: int) -> list[Window]:
        """Windows over one editable run of tokens."""
        windows, at = [], start
        while at < stop:
            end = stop if stop - at <= WINDOW else at + STRIDE
            windows.append(self._window(at, end, stop))
            at = end
        return windows

    def _window(self, start: int, stop: int, free: int) -> Window:
        """Tokens up to `stop`, seen with some that follow. Those from `free` on are locked: they lie outside what may
        change."""
        end = min(start + WINDOW, len(self._tokens))
        null, numbers = self._editor.null, np.arange(start, end)
        slots = with_nulls(numbers, EVERY, -1).tolist()
        committed = slots.index(stop) if stop < end else len(slots)
        if slots[committed - 1] != -1 and stop == free:  # a place to go on at the end
            slots.insert(committed, -1)
            committed += 1
        initial = tuple(null if at < 0 else self._tokens[at] for at in slots)
        given = committed if stop == free else len(slots)
        locked = tuple(slot >= given or (at >= 0 and self._stands[at]) for slot, at in enumerate(slots))
        sources: list[int] = []
        for at in slots[:committed]:
            sources.append(at if at >= 0 else sources[-1])
        return Window(start, stop, GivenCanvas(initial, locked, committed), tuple(sources))

    def edit(self, threshold: float, passes: int, review: Review | None = None) -> Steps[list[Part]]:
        """Denoises the windows in order: a token is revised where another is likelier than `threshold`, in up to
        `passes` evaluations a window, of which a window without a revision takes one. With a review what it makes of
        each window decides instead. Returns what became of each token."""
        settings: dict[str, Any] = {
            "edit_threshold": threshold,
            "edit_spread": True,
            "edit_steps": passes,
            "max_steps": passes,
        }
        number = 0
        while number < len(self.windows):
            prompt, until = self._prompt(self.windows[number:])
            batch = self._fitting(number, len(prompt), until)
            request = self._editor.request(
                prompt, [w.canvas for w in batch], number, review=review, **settings
            )
            first = self._bytes[batch[0].start]
            before = self._editor.pieces.join([t for out in self._out[: batch[0].start] for t in out])
            after = self._text.encode()[first:]
            answer = yield Ask(request, before.decode("utf-8", "ignore"), after.decode("utf-8", "ignore"))
            self._take(batch, answer)
            number += len(batch)
        return self.parts()

    def _fitting(self, number: int, length: int, until: int) -> list[Window]:
        """Windows from `number` on that follow one another and fit the context behind `length` tokens, none of them
        starting at or after token `until`."""
        batch: list[Window] = []
        for window in self.windows[number:]:
            canvas = window.canvas
            apart = bool(batch) and batch[-1].stop != window.start
            if batch and (
                apart or window.start >= until or length + len(canvas.initial) > self._editor.limit
            ):
                break
            batch.append(window)
            length += canvas.commit
        return batch

    def _fits(self, windows: list[Window]) -> bool:
        """Whether the context holds the instruction, the whole text, its edited part and the windows to come."""
        assert self._instruction is not None
        need = sum(w.canvas.commit for w in windows) + WINDOW + WINDOW // EVERY + 1
        edited = len(self._edited(0, windows[0].start)) if windows else 0
        return len(self._instruction) + 1 + len(self._tokens) + edited + need <= self._editor.limit

    @property
    def _overlap(self) -> int:
        return min(OVERLAP, self._editor.limit // 16)

    def _stretch(self) -> int:
        """Tokens that are edited with an instruction at once where the text doesn't fit as a whole: they stand in
        the context and, with their nulls, on canvases behind it, with some tokens around."""
        assert self._instruction is not None
        room = (
            self._editor.limit
            - len(self._instruction)
            - 1
            - 3 * self._overlap
            - 2 * (WINDOW + WINDOW // EVERY)
        )
        return room * EVERY // (2 * EVERY + 1)

    def _prompt(self, windows: list[Window]) -> tuple[list[int], int]:
        """What the next windows read, and the token before which they must start."""
        editor, start, count = self._editor, windows[0].start, len(self._tokens)
        if self._instruction is None:
            need = sum(w.canvas.commit for w in windows) + WINDOW + WINDOW // EVERY
            room = max(editor.limit // 2, editor.limit - need)
            return editor.prompt(self._edited(0, start), True, room), count
        first, last, until = 0, count, count
        if not self._fits(windows):
            first, until = max(0, start - self._overlap), start + self._stretch()
            last = min(count, until + WINDOW + self._overlap)
        shown = [*self._instruction, *self._tokens[first:last], self._assistant]
        edited = self._edited(first, start)
        return shown + edited[max(0, len(edited) - 2 * self._overlap) if first else 0 :], until

    def _edited(self, start: int, stop: int) -> list[int]:
        return [token for out in self._out[start:stop] for token in out]

    def _take(self, windows: list[Window], answer: Answer) -> None:
        """Notes what became of the windows' tokens."""
        for window, settled in zip(windows, answer.canvases, strict=False):
            for token in range(window.start, window.stop):
                self._out[token] = []
            for slot, source in enumerate(window.sources):
                token = int(settled.tokens[slot])
                if token != self._editor.null:
                    self._out[source].append(token)
                if token != window.canvas.initial[slot]:
                    self._sure[source] = min(self._sure[source], float(settled.probability[slot]))

    def parts(self) -> list[Part]:
        """What became of each token, in bytes of the text."""
        return [
            Part(start, start + len(self._editor.pieces[token]), self._editor.pieces.join(out), sure)
            for start, token, out, sure in zip(self._bytes, self._tokens, self._out, self._sure, strict=True)
        ]


def _marks(editor: Editor) -> tuple[int, int]:
    """The tokens before an instruction and before the text that follows it. Raises RequestError for a model without."""
    known = editor.pieces.tokenizer.special_ids
    if "<|edit|>" not in known or "<|assistant|>" not in known:
        raise RequestError(
            "this model takes no instructions (its tokenizer has no <|edit|> token): proofread, or select a span"
        )
    return known["<|edit|>"], known["<|assistant|>"]


def _segments(
    editor: Editor, text: str, spans: Sequence[Span]
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Tokens of the text, cut at the spans' ends; the byte at which each begins; the editable runs of them."""
    tokens: list[int] = []
    editable: list[tuple[int, int]] = []
    at = 0
    for start, end in spans:
        tokens += editor.pieces.encode(text[at:start])
        inside = editor.pieces.encode(text[start:end])
        if inside:
            editable.append((len(tokens), len(tokens) + len(inside)))
        tokens += inside
        at = end
    tokens += editor.pieces.encode(text[at:])
    sizes = [len(editor.pieces[token]) for token in tokens]
    return tokens, np.cumsum([0, *sizes])[:-1].tolist(), editable
