"""One gap: open slots between the context and the first tokens of the text behind it, which ride locked on the canvas.

Its length is found in one of two ways. By nulls: slots that end as nulls were too many; a gap without any was perhaps
too small, and is filled again with twice the slots. By comparison, where text follows: it is filled at several lengths
(at each, if asked, in several ways by a beam search over the canvas), and the AR self reads each of them together with
the text behind it; the likeliest for both selves stays. What is read begins and ends at the same places whatever the
length, so that -log p needs no correction for it. So several ways are compared for a gap of known length, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from redraft.editing.editor import SEEN, Ask, Editor, Settled, Show, Steps
from redraft.editing.pieces import Seam, left_seam, right_seam
from redraft.engine import OPEN, GivenCanvas
from redraft.errors import RequestError

FIRST_SLOTS = 2  # by nulls: more make fills too long, for the trained model thinks few of a gap's slots empty
CANDIDATES = 4
FILLS = 1  # more cost in proportion, and pay where the text is like that of training
SURE = 0.9  # a slot less sure than this has other likely tokens, and a search goes both ways
CANVAS = 2.0  # how much the canvas's own -log p counts beside the AR self's where lengths are compared
SPARE = 2  # positions that are left free behind a canvas
AHEAD = 4  # open slots that stand for a later gap on the canvas of this one


@dataclass(frozen=True)
class Limits:
    """candidates: lengths that a gap is filled at and compared, 1 to find its length by nulls. fills: how many ways to
    fill it are compared at each. first: slots that it starts with, the shortest that is compared; most: slots that it
    may come to; stop: texts before which it ends. Raises RequestError, one line, for what makes no sense."""

    most: int
    first: int | None = None
    stop: tuple[str, ...] = ()
    candidates: int = CANDIDATES
    fills: int = FILLS

    def __post_init__(self) -> None:
        first = FIRST_SLOTS if self.first is None else self.first
        counts = {"slots": first, "max_tokens": self.most, "candidates": self.candidates, "fills": self.fills}
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RequestError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.fills > 1 and self.candidates == 1:
            raise RequestError(
                "fills are compared where lengths are: ask for more than 1 candidate, or for 1 fill"
            )
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise RequestError("stop must be texts of at least one character")


@dataclass(frozen=True)
class Made:
    """What a canvas says of a gap. ids: its tokens, seams included. whole: whether it ended before it ran out of
    slots."""

    text: str = ""
    ids: tuple[int, ...] = ()
    whole: bool = False


class Gap:
    """`write` fills it; then `made` is what it came to and `read` the most tokens that were read before it."""

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
        tokens, self._whole = editor.near(before)
        self._tokens, self._left = left_seam(editor.pieces, tokens)
        self.made, self.read = Made(), 0

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
        compared = self._limits.candidates > 1 and bool(self._after[0])
        if not compared or self._editor.config.layout != "causal_context":
            yield from self._by_nulls(self._start(FIRST_SLOTS))
        elif self._start(1) == self._limits.most and self._fills == 1:  # there is nothing to compare
            yield from self._by_nulls(self._limits.most, nulls=False)
        else:
            yield from self._by_comparison()

    @property
    def _fills(self) -> int:
        """Ways to fill it at one length: the likeliest; draws are made one a length."""
        drawn = self._editor.sampler.temperature > 0 or self._editor.config.self_conditioning
        return 1 if drawn else self._limits.fills

    def _start(self, usual: int) -> int:
        """Slots to begin with: room for the pins and one word more."""
        first = usual if self._limits.first is None else self._limits.first
        return min(max(first, max(self._pins, default=-1) + 2), self._limits.most)

    def _by_nulls(self, slots: int, nulls: bool = True) -> Steps[None]:
        while True:
            canvas = self._canvas(slots)
            answer = yield self._ask([canvas], nulls)
            if not answer.canvases:
                return
            self.made = self._taken(answer.canvases[0], canvas)
            if self.made.whole or slots == self._limits.most:
                return
            slots = min(2 * slots, self._limits.most)

    def _by_comparison(self) -> Steps[None]:
        """The likeliest of several lengths, and of longer ones as long as the longest is the likeliest and full."""
        best: _Tried | None = None
        for lengths, exact in self._lengths():
            fills = self._fills if exact else 1
            ask = self._ask([replace(self._canvas(n), trial=True, fills=fills) for n in lengths], not exact)
            answer = yield ask
            tried = [_Tried(ask, settled) for settled in answer.canvases]
            best = min([best, *tried] if best else tried, key=lambda one: one.nll, default=None)
            whole = bool(tried) and tried[-1].settled.commit.finish_reason is not None
            longest = best is not None and best.canvas is ask.request.canvases[-1]
            if best is None or not whole or not longest or self._editor.null in best.ids:
                break
        if best is not None:
            made = self._taken(best.settled, best.canvas)
            slots = best.canvas.commit - bool(self._left) - bool(self._right)
            self.made = replace(made, whole=made.whole or slots < self._limits.most)
            yield Show(replace(best.ask), best.settled)

    def _lengths(self) -> Iterator[tuple[range, bool]]:
        """Numbers of slots to be compared, and whether all must hold a token: at first some that follow one another,
        then ever longer ones, of which the nulls take back what is too much."""
        most, first = self._limits.most, self._start(1)
        last = min(first + self._limits.candidates - 1, most)
        yield range(first, last + 1), True
        while last < most:
            longer = range(min(last + -(-last // 2), most), min(2 * last, most) + 1, max(1, last // 2))
            yield longer, False
            last = longer[-1]

    def _canvas(self, slots: int) -> GivenCanvas:
        left, right = self._left, self._right
        gap = [self._pins.get(slot, OPEN) for slot in range(slots)]
        initial = [OPEN] * bool(left) + gap + [OPEN] * bool(right)
        end = len(initial)
        only = ({0: left.only} if left else {}) | ({end - 1: right.only} if right else {})
        initial += self._tail
        return GivenCanvas(tuple(initial), tuple(token != OPEN for token in initial), end, only)

    def _ask(self, canvases: list[GivenCanvas], nulls: bool) -> Ask:
        """nulls: whether slots may stay empty."""
        editor, held = self._editor, self._left.held
        longest = max(len(canvas.initial) for canvas in canvases)
        prompt = editor.prompt(self._tokens, self._whole, editor.limit - longest - SPARE)
        self.read = max(self.read, len(prompt))
        settings: dict[str, Any] = {"length_first": nulls}
        if any(canvas.fills > 1 for canvas in canvases):
            settings["threshold"] = max(SURE, editor.sampler.threshold)
        request = editor.request(prompt, canvases, self._sample, self._open_end, nulls, **settings)
        return Ask(request, _without(self._before, held), "".join(self._after))

    def _taken(self, settled: Settled, canvas: GivenCanvas) -> Made:
        """Reads the gap's text off a canvas."""
        editor = self._editor
        tokens = settled.tokens[: canvas.commit].tolist()
        ended = editor.null in tokens
        if self._open_end:
            ends = [at for at, token in enumerate(tokens) if token in editor.config.eos_token_ids]
            if ends:
                ended, tokens = True, tokens[: ends[0]]
        ids = tuple(token for token in tokens if token != editor.null)
        data = editor.pieces.join(ids)
        data = data[len(self._left.held) : len(data) - len(self._right.held)]
        # A character that isn't whole, at a seam or where the canvas ended, is left out.
        text = data.decode("utf-8", "ignore")
        found = [at for at in (text.find(stop) for stop in self._limits.stop) if at >= 0]
        if found:
            text, ended = text[: min(found)], True
        return Made(text, ids, ended)


@dataclass(frozen=True)
class _Tried:
    ask: Ask
    settled: Settled

    @property
    def canvas(self) -> GivenCanvas:
        return self.ask.request.canvases[self.settled.commit.canvas]

    @property
    def ids(self) -> list[int]:
        """Of the slots that were to be written, seams included."""
        ids: list[int] = self.settled.tokens[: self.canvas.commit].tolist()
        return ids

    @property
    def nll(self) -> float:
        """In nats, by both selves: -log p of the fill and the text behind it by the AR self, and of the fill by the
        canvas, each token as it settled. The AR self alone likes what is usual and short, whatever was meant."""
        assert self.settled.commit.ar_nll is not None
        settled = self.settled.probability[: self.canvas.commit].astype(np.float64)
        return self.settled.commit.ar_nll - CANVAS * float(np.log(np.maximum(settled, 1e-9)).sum())


def _without(text: str, held: bytes) -> str:
    """`text` without the bytes at its end that the canvas shows again."""
    return text.encode()[: -len(held)].decode("utf-8", "ignore") if held else text
