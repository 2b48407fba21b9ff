"""decode "verified": the canvas proposes, the encode role decides (DESIGN decision 5).

Every pass encodes the last chosen token and a proposal for those that follow, and its AR logits say what AR
would have chosen after each. What agrees is committed, then AR's own token at the first disagreement; so a
pass brings at least one token, and the token ids are those of decode "ar" whatever was proposed. The next
proposal comes from a canvas behind this one, denoised in the same pass; it stands only if all of this one was
right, because otherwise it has read wrong tokens. (Speculative decoding, Leviathan 2023; the canvas as
drafter: TiDAR, I-DLM.) A model with heads (sampling.heads) tells each slot the token drafted before it, and how likely
it is to be accepted.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np

from redraft.engine.backend import Pass, PassResult
from redraft.engine.events import Step
from redraft.engine.writers.base import Event, Writer
from redraft.sampling import Canvas, SamplerSettings, advance, begin, choose, wanted
from redraft.sampling.heads import draft
from redraft.sampling.reading import read


class Verified(Writer):
    encode_prompt = "last"
    canvas: Canvas | None = None
    _proposal: tuple[int, ...] = ()
    _chance = 1.0  # that all of the proposal is right
    _sure: np.ndarray  # of each slot of the canvas what the confidence head last said

    @cached_property
    def _at_once(self) -> bool:
        """Whether a canvas need not be kept: its first reading is the proposal, and nobody watches it."""
        return self.request.draft_steps == 1 and not self.request.watched

    @cached_property
    def _special(self) -> tuple[int, ...]:
        return self.config.special_slot_ids

    @cached_property
    def _draft_settings(self) -> SamplerSettings:
        return replace(
            self.request.sampler,
            max_steps=self.request.draft_steps,
            steps=None,
            accept="threshold",
            edit_threshold=None,
            doubt=None,
            remask=None,
        )

    def after_prompt(self, result: PassResult) -> list[Event]:
        return [self._verify(result.encode)]

    def next_pass(self) -> Pass:
        """Encodes the chosen token and the proposal, or nothing while a canvas still needs steps."""
        if self.canvas is not None:
            nothing = np.zeros(0, dtype=np.int64)
            return Pass(self.context, nothing, canvas=self.canvas.tokens, canvas_rows=wanted(self.canvas))
        pending = self.pending()
        room = self.limit - self.context.length - len(pending)
        self._proposal = self._proposal[:room]
        encode = np.concatenate((pending, np.array(self._proposal, dtype=np.int64)))
        self.canvas = self._begin(room - len(self._proposal))
        if self.canvas is None:
            return Pass(self.context, encode, "all")
        rows = wanted(self.canvas)
        return Pass(self.context, encode, "all", canvas=self.canvas.tokens, canvas_rows=rows)

    def _begin(self, room: int) -> Canvas | None:
        """A canvas behind the proposal, or None where there's no use or no room for one."""
        request = self.request
        left = self.output.rules.limit - len(self.output.tokens) - len(self._proposal)
        slots = min(request.sampler.canvas_length, room, left)
        if slots < 2 or not self._worth_drafting(slots):
            return None
        settings = self.resized(self._draft_settings, slots)
        position = len(self.output.tokens) + len(self._proposal)
        chosen = [*self.output.tokens, *self._proposal] if settings.penalises else ()
        canvas = begin(
            settings, self.vocabulary, request.key, position, chosen=chosen, watched=request.watched
        )
        if request.draft_steps > 1:
            return canvas
        return canvas.after(settled=_first(slots))  # nobody asks what the first slot would have been

    def after_pass(self, result: PassResult) -> list[Event]:
        events: list[Event] = []
        if len(result.encode):
            events.append(self._verify(result.encode))
            if self.done:
                return events
        if self.canvas is not None:
            assert result.canvas is not None
            sure = self._heed_heads(self.canvas, result.canvas)
            if self._at_once:
                reading = read(self.canvas, result.canvas)
                self._proposal = self._proposed(reading.choice, reading.probability if sure is None else sure)
                self.canvas = None
                return events
            self.canvas = advance(self.canvas, result.canvas)
            if self.request.watched:
                events.append(self._draft_event(self.canvas))
            if self.canvas.finished:
                sure = self.canvas.probability if sure is None else sure
                self._proposal = self._proposed(self.canvas.shown, sure)
                self.canvas = None
        return events

    def _heed_heads(self, canvas: Canvas, logits: np.ndarray) -> np.ndarray | None:
        """Corrects the logits in place; chances that drafts are accepted, float32 [C], None without a head for them.
        In the place of the first slot stands the last token of the text, which AR has chosen meanwhile."""
        if self.heads is None:
            return None
        chances = draft(self.heads, canvas, logits, self.text[-1])
        if chances is None:
            return None
        if canvas.step == 0:
            self._sure = np.ones(len(canvas.tokens), np.float32)
        self._sure[canvas.wanted] = chances
        return self._sure

    def _proposed(self, shown: np.ndarray, sure: np.ndarray) -> tuple[int, ...]:
        """The canvas's tokens after its first slot, whose place has gone to a token that AR chose meanwhile,
        up to an end of answer (there's nothing to encode behind it), and in layout "auto" up to where a token isn't
        worth its row any more. sure: the chance of each if all before it are right."""
        tokens: list[int] = []
        chance, gain, rows = 1.0, 1.0, 1 + len(shown)
        for token, own in zip(shown[1:].tolist(), sure[1:].tolist(), strict=True):
            if token in self._special:
                continue
            chance *= own
            if token in self.vocabulary.eos_ids or not self._worth_a_row(chance, gain, rows):
                break
            tokens.append(token)
            self._chance, gain, rows = chance, gain + chance, rows + 1
        return tuple(tokens)

    def _worth_a_row(self, chance: float, gain: float, rows: int) -> bool:
        """Whether an evaluation of so many rows, which brings `gain` tokens, is to verify one more that comes with a
        chance of `chance`. Where a confidence head says so, if that makes more tokens for the time; a canvas's own
        probabilities flatter it less evenly, and are only held against what a row costs."""
        if self.request.draft_layout != "auto":
            return True
        if self._confident:
            cost = self._cost(rows)
            return chance * cost > gain * (self._cost(rows + 1) - cost)
        return chance >= self.request.row_cost

    def _cost(self, rows: int) -> float:
        """Of an evaluation of so many rows, in AR steps: as measured where that is known."""
        costs = self.request.step_costs
        return 1 + self.request.row_cost * (rows - 1) if costs is None else costs.at(rows)

    @cached_property
    def _confident(self) -> bool:
        return self.heads is not None and self.heads.confident

    def _worth_drafting(self, slots: int) -> bool:
        """Whether to denoise the next canvas in the pass that verifies this proposal. It costs `slots` rows,
        for nothing if the proposal has a mistake; later it would cost these rows and a pass."""
        layout, rows = self.request.draft_layout, self.request.row_cost * slots
        if not self._proposal or layout == "strided":
            return True
        if self._confident:
            encoded = 1 + len(self._proposal)
            rows = self._cost(encoded + slots) - self._cost(encoded)
        return layout == "auto" and self._chance >= rows / (1 + rows)

    def _draft_event(self, canvas: Canvas) -> Step:
        """The canvas without its first slot, whose token AR has chosen already."""
        return self.step_event(canvas, 1)

    def _verify(self, logits: np.ndarray) -> Event:
        """Commits what the rows of AR logits confirm; forgets the rest of the proposal and what was built on
        it."""
        sampler, vocabulary, key, held = (
            self.request.sampler,
            self.vocabulary,
            self.request.key,
            self.output.tokens,
        )
        chosen: list[int] = []
        for row, guess in zip(logits, (*self._proposal, None), strict=True):
            before = held + chosen if sampler.penalises or self.request.allow is not None else []
            token = choose(
                row,
                sampler,
                vocabulary,
                key,
                len(held) + len(chosen),
                before,
                self.allowed(before),
                guess=guess,
                ratio=self.request.check_ratio or 1.0,
            )
            chosen.append(token)
            if token != guess:
                break
        wrong = len(self._proposal) - (len(chosen) - 1)
        if wrong:
            self.context.truncate(self.context.length - wrong)
            self.canvas = None
        self._proposal = ()
        event = self.commit(chosen)
        self.canvases += 1
        return event


@lru_cache(maxsize=64)
def _first(slots: int) -> np.ndarray:
    """bool [slots]: the first one alone."""
    first = np.arange(slots) == 0
    first.flags.writeable = False
    return first
