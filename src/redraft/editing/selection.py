"""Rewriting a selection: a share of its tokens is renoised and denoised between what stands before and behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from redraft.editing.editor import SEEN, Ask, Editor, Settled, Steps
from redraft.editing.hunks import Part, apply, hunks_of
from redraft.editing.pieces import Seam, left_seam, right_seam
from redraft.editing.spans import Span
from redraft.engine import OPEN, GivenCanvas
from redraft.sampling.noise import START, uniforms

WINDOW = 16  # tokens of a selection on one canvas
INSERTION = 8  # open slots of an empty selection


def rewrite(
    editor: Editor, text: str, spans: Sequence[Span], strength: float, most: int | None = None
) -> Steps[list[Part]]:
    """Rewrites the spans (in order, disjoint) one after the other; each sees what became of those before it.

    strength: the share of a span's tokens that are opened, at least one; the others stand. most: slots that may be
    added to a window which needs more than it had; None: as many as were opened, and at least INSERTION. Returns what
    became of each token.
    """
    parts: list[Part] = []
    done, at, offset = "", 0, 0  # the edited text up to `at`, which is byte `offset` of the original
    for number, (start, end) in enumerate(spans):
        done += text[at:start]
        offset += len(text[at:start].encode())
        selection = Selection(editor, done, text[start:end], text[end:], strength, most, number)
        yield from selection.rewrite()
        own = selection.parts()
        parts += [replace(p, start=p.start + offset, end=p.end + offset) for p in own]
        done += apply(text[start:end], hunks_of(text[start:end], own))
        offset += len(text[start:end].encode())
        at = end
    return parts


class Selection:
    """One span: its tokens, those at the seams included, and what became of each."""

    def __init__(
        self,
        editor: Editor,
        before: str,
        text: str,
        after: str,
        strength: float,
        most: int | None,
        sample: int,
    ) -> None:
        self._editor, self._before, self._after = editor, before, after
        self._text, self._most, self._sample = text, most, sample
        self._near, self._whole = editor.near(before)
        self._left, self._right, self._tokens = self._cut()
        behind = editor.after(after, SEEN + 1)
        self._behind = behind[1:] if self._right else behind[:SEEN]
        if self._left:
            self._near = self._near[:-1]
        self._opened = self._renoised(strength if text else 1.0)
        self._out: list[list[int]] = [[] for _ in range(max(1, len(self._tokens)))]
        self._sure = [1.0] * len(self._out)

    def _cut(self) -> tuple[Seam, Seam, list[int]]:
        """The seams and the tokens between them. There is no seam where its bytes don't begin (end) one token
        together with the selection's."""
        pieces = self._editor.pieces
        _, left = left_seam(pieces, self._near)
        _, right = right_seam(pieces, self._editor.after(self._after, 1))
        for head, tail in ((left, right), (left, Seam()), (Seam(), right)):
            try:
                text = (head.held + self._text.encode() + tail.held).decode()
            except UnicodeDecodeError:  # a seam within a character
                continue
            tokens = pieces.encode(text)
            fits = len(tokens) >= bool(head) + bool(tail) and bool(tokens)
            if fits and pieces[tokens[0]].startswith(head.held) and pieces[tokens[-1]].endswith(tail.held):
                return head, tail, tokens
        return Seam(), Seam(), pieces.encode(self._text)

    def _renoised(self, strength: float) -> list[bool]:
        """The tokens to be opened. Those of a lower strength are among those of a higher one."""
        count = len(self._tokens)
        order = np.argsort(uniforms(self._editor.key(self._sample), 0, count, 0, START), kind="stable")
        opened = set(order[: max(1, round(strength * count))].tolist())
        return [token in opened for token in range(count)]

    def rewrite(self) -> Steps[None]:
        """Window after window, each again with more slots while it ends full and known text follows."""
        count = len(self._tokens)
        for start in range(0, max(1, count), WINDOW):
            stop = min(start + WINDOW, count)
            if start < stop and not any(self._opened[start:stop]):
                self._keep(range(start, stop))
                continue
            factor = 1
            while (yield from self._attempt(range(start, stop), factor)):
                factor *= 2

    def _keep(self, tokens: range) -> None:
        for token in tokens:
            self._out[token] = [self._tokens[token]]

    def _attempt(self, tokens: range, factor: int) -> Steps[bool]:
        """Rewrites a window with `factor` times the spare slots; whether it should be tried with more."""
        editor = self._editor
        sources = self._slots(tokens, factor)
        own = [OPEN if at is None or self._opened[at] else self._tokens[at] for at, _ in sources]
        only: dict[int, tuple[int, ...]] = {}
        if self._left and tokens.start == 0:
            only[0] = self._left.only
        if self._right and tokens.stop == len(self._tokens):
            only[len(own) - 1] = self._right.only
        ahead = self._ahead(tokens.stop)
        initial = own + ahead
        locked = [False] * len(own) + [token != OPEN for token in ahead]
        canvas = GivenCanvas(tuple(initial), tuple(locked), len(own), only)
        before = [t for out in self._out[: tokens.start] for t in out]
        prompt = editor.prompt(self._near + before, self._whole, editor.limit - len(initial))
        request = editor.request(prompt, [canvas], self._sample)
        shown = self._before.encode() + editor.pieces.join(before)[len(self._left.held) :]
        answer = yield Ask(request, shown.decode("utf-8", "ignore"), self._after)
        if not answer.canvases:
            self._keep(tokens)
            return False
        self._take(sources, answer.canvases[0])
        spare = sum(at is None for at, _ in sources)
        bounded = tokens.stop == len(self._tokens) or not self._opened[tokens.stop]
        opened = [slot for slot, token in enumerate(own) if token == OPEN]
        full = not (answer.canvases[0].tokens[opened] == editor.null).any()
        most = max(INSERTION, len(opened) - spare) if self._most is None else self._most
        fits = 2 * spare <= most and len(initial) + spare <= editor.limit // 2
        return full and bounded and fits

    def _slots(self, tokens: range, factor: int) -> list[tuple[int | None, int]]:
        """(the token of the slot, None for a spare one; the token that what stands there counts to). Behind each run
        of opened tokens lie half as many spare slots, at least one; the seam behind the selection stays last."""
        if not self._tokens:
            return [(None, 0)] * (INSERTION * factor)
        slots: list[tuple[int | None, int]] = []
        at = tokens.start
        while at < tokens.stop:
            run = at
            while run < tokens.stop and self._opened[run]:
                run += 1
            if run == at:
                slots.append((at, at))
                at += 1
                continue
            last = bool(self._right) and run == len(self._tokens)
            spare = factor * (max(1, (run - at) // 2) if self._text else INSERTION)
            body = [(token, token) for token in range(at, run - last)]
            slots += [*body, *[(None, max(at, run - last - 1))] * spare, *[(run - 1, run - 1)] * last]
            at = run
        return slots

    def _ahead(self, stop: int) -> list[int]:
        """What is seen behind a window: the selection's next tokens as far as they stand, or the text behind it."""
        if stop == len(self._tokens):
            return self._behind
        ahead = range(stop, min(stop + SEEN, len(self._tokens)))
        seen = [OPEN if self._opened[at] else self._tokens[at] for at in ahead]
        while seen and seen[-1] == OPEN:
            seen.pop()
        return seen

    def _take(self, sources: list[tuple[int | None, int]], settled: Settled) -> None:
        """Notes what became of each token of a window."""
        for owner in {owner for _, owner in sources}:
            self._out[owner], self._sure[owner] = [], 1.0
        for slot, (at, owner) in enumerate(sources):
            token = int(settled.tokens[slot])
            if token != self._editor.null:
                self._out[owner].append(token)
            elif at is None:
                continue
            self._sure[owner] = min(self._sure[owner], float(settled.probability[slot]))

    def parts(self) -> list[Part]:
        """What became of each token, in bytes of the selection."""
        pieces, length = self._editor.pieces, len(self._text.encode())
        parts, at, last = [], -len(self._left.held), len(self._out) - 1
        for number, out in enumerate(self._out):
            size = len(pieces[self._tokens[number]]) if self._tokens else 0
            after = pieces.join(out)
            if number == last:
                after = after[: len(after) - len(self._right.held)]
            if number == 0:
                after = after[len(self._left.held) :]
            parts.append(Part(max(0, at), min(length, at + size), after, self._sure[number], lossy=True))
            at += size
        return parts
