"""decode "verified": the canvas proposes, the encode role decides (DESIGN decision 5).

Every pass encodes the last chosen token and a proposal for those that follow, and its AR logits say what AR
would have chosen after each. What agrees is committed, then AR's own token at the first disagreement; so a
pass brings at least one token, and the token ids are those of decode "ar" whatever was proposed. The next
proposal comes from a canvas denoised in the same pass: one behind all of this proposal, which stands only if all
of it was right, and others behind its first tokens, one for each number of them that is likely to be accepted.
(Speculative decoding, Leviathan 2023; the canvas as drafter: I-DLM, and with branches TiDAR.)

In layout "auto" it's the place in the text that counts: what any canvas behind right tokens said of a place is proposed
there, whichever slot that was (leftovers.py). So a proposal's rest outlives its first mistake, and a canvas in front of
what is accepted isn't lost. A model with heads (sampling.heads) tells each slot the token before it, also one that has
replaced a mistake, and how likely its own is to be accepted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np

from redraft.engine.backend import Pass, PassResult
from redraft.engine.events import Commit, Step
from redraft.engine.writers.base import Event, Writer
from redraft.engine.writers.drafting import UNFORESEEN, Prices, starts
from redraft.engine.writers.leftovers import Leftovers
from redraft.sampling import Canvas, SamplerSettings, advance, begin, choose, wanted
from redraft.sampling.heads import draft
from redraft.sampling.reading import read

READ_AT_ONCE = 5  # slots of a draft
BEFORE = 8  # tokens that an answer is begun with when its cost is reckoned, and drafted ones for its luck
COST, LUCK = 0.8, 0.7  # AR steps that each of these took, and their share that was right
FORGET = 0.98  # of the luck so far at each drafted token
TRY_AGAIN = 8  # evaluations without a canvas after which one is tried where drafts don't pay


class Verified(Writer):
    encode_prompt = "last"
    canvas: Canvas | None = None  # one that needs more steps
    _proposal: tuple[int, ...] = ()
    _sure: tuple[float, ...] = ()  # chances that a token of the proposal is right if those before it are
    _bare = 0  # evaluations since the last with a canvas
    _chances: np.ndarray  # of each slot of the canvas what the confidence head last said
    _drafts: dict[int, Canvas]  # canvases under way, by how many tokens of the proposal they stand behind
    _left = Leftovers()
    _spent = BEFORE * COST  # AR steps that the answer has taken
    # Of the last drafted tokens before which all was right (older ones count less): how many, and how many were right.
    _tried, _kept = float(BEFORE), BEFORE * LUCK

    @cached_property
    def _at_once(self) -> bool:
        """Whether a canvas need not be kept: its first reading is the proposal, and nobody watches it."""
        return self.request.draft_steps == 1 and not self.request.watched

    @cached_property
    def _keeps(self) -> bool:
        """Whether proposals go by places. The other layouts propose what one canvas says, as they are defined; and
        where a canvas costs its rows alone (without an adapter) a new one brings more than leftovers: redraft-tiny.
        """
        auto = self.request.draft_layout == "auto" and self.request.draft_steps == 1
        return auto and self.request.canvas_cost > 0

    @cached_property
    def _ahead(self) -> bool:
        """Whether a canvas goes without its last row, which with a shift predicts none of its slots."""
        return self.config.shift and self.request.draft_steps == 1

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

    def reading_ends(self, p: Pass) -> Pass:
        """A first draft comes beside the prompt's last tokens."""
        self._drafts = self._begin(self.limit - self.context.length - len(p.encode))
        return self._with_drafts(p)

    def after_prompt(self, result: PassResult) -> list[Event]:
        return self._after_encoding(result)

    def next_pass(self) -> Pass:
        """Encodes the chosen token and the proposal, or nothing while a canvas still needs steps."""
        if self.canvas is not None:
            nothing = np.zeros(0, dtype=np.int64)
            self._reckon(0, len(self.canvas.tokens) - 1, canvas=True)
            return Pass(self.context, nothing, canvas=self.canvas.tokens, canvas_rows=wanted(self.canvas))
        pending = self.pending()
        room = self.limit - self.context.length - len(pending)
        self._proposal = self._proposal[:room]
        encode = np.concatenate((pending, np.array(self._proposal, dtype=np.int64)))
        self._drafts = self._begin(room - len(self._proposal))
        self._bare = 0 if self._drafts else self._bare + 1
        made = self._with_drafts(Pass(self.context, encode, "all"))
        self._reckon(len(encode) - 1, made.slots, canvas=bool(self._drafts))
        return made

    def _with_drafts(self, p: Pass) -> Pass:
        """With the canvases under way, which stand behind so many of the proposal's tokens that it encodes last."""
        canvases = list(self._drafts.values())
        if not canvases:
            return p
        ahead, slots = self._ahead, len(canvases[0].tokens)
        before, proposed = len(p.encode) - len(self._proposal), len(self._proposal)
        alone = len(canvases) == 1 and proposed in self._drafts
        return replace(
            p,
            canvas=np.concatenate([c.tokens[: slots - ahead] for c in canvases]),
            canvas_rows=np.concatenate([wanted(c) + i * slots for i, c in enumerate(canvases)]),
            branches=None if alone else tuple(before + accepted for accepted in self._drafts),
            ahead=ahead,
        )

    def _begin(self, room: int) -> dict[int, Canvas]:
        """Canvases behind the proposal's beginnings; none where there's no use or no room (rows) for one."""
        left = self.output.rules.limit - len(self.output.tokens)
        longest = min(self.request.sampler.canvas_length, room, left)
        behind = [accepted for accepted in self._worth_drafting(longest) if accepted + 2 <= left]
        if not behind or longest < 2:
            return {}
        slots = min(longest, left - behind[0])
        settings = self.resized(self._draft_settings, slots)
        return {accepted: self._canvas(accepted, settings) for accepted in behind[-(room // slots) :]}

    def _canvas(self, accepted: int, settings: SamplerSettings) -> Canvas:
        """A canvas behind the first `accepted` tokens of the proposal, or with -1 in the place of the text's last."""
        request = self.request
        before = [*self.output.tokens, *self._proposal]
        position = len(self.output.tokens) + accepted
        chosen = before[:position] if settings.penalises else ()
        canvas = begin(
            settings, self.vocabulary, request.key, position, chosen=chosen, watched=request.watched
        )
        if request.draft_steps > 1 and not self.config.shift:
            return canvas
        # Nobody asks what the first would have been.
        return canvas.after(settled=_first(settings.canvas_length))

    def after_pass(self, result: PassResult) -> list[Event]:
        if len(result.encode):
            return self._after_encoding(result)
        assert self.canvas is not None
        assert result.canvas is not None
        return self._draft(self.canvas, result.canvas)

    def _after_encoding(self, result: PassResult) -> list[Event]:
        """What AR chose, and the next proposal or the canvas that it will come from."""
        (drafts, self._drafts), logits = (self._drafts, {}), result.canvas
        verdict = self._verify(result.encode)
        accepted = len(verdict.tokens) - 1
        if self.done:
            return [verdict]
        if self._keeps:
            self._left = self._left.after(len(self.output.tokens), accepted, drafts, logits)
            return [verdict, *self._draft_from_left()]
        if accepted not in drafts:
            return [verdict]
        assert logits is not None
        self.canvas = drafts[accepted]
        number, each = list(drafts).index(accepted), len(logits) // len(drafts)
        return [verdict, *self._draft(self.canvas, logits[number * each : (number + 1) * each])]

    def _draft_from_left(self) -> list[Event]:
        """What is known of the places that follow, read as one canvas behind AR's own token, which is its first."""
        position = len(self.output.tokens)
        logits = self._left.of(position, self.output.rules.limit - position)
        if logits is None:
            return []
        settings = self.resized(self._draft_settings, len(logits) + 1)
        return self._draft(self._canvas(-1, settings), logits)

    def _draft(self, canvas: Canvas, logits: np.ndarray) -> list[Event]:
        """A step of the canvas behind what has been accepted; once it is finished it makes the next proposal."""
        tokens, chances = self._heed_heads(canvas, logits)
        if self._at_once and tokens is not None and chances is not None:
            shown = canvas.shown.copy()
            shown[canvas.wanted] = tokens  # all that a reading would say
            self._propose(zip(shown[1:].tolist(), chances[1:].tolist(), strict=True))
            return []
        if self._at_once:
            slots = _read_in_order(canvas, logits)
            if chances is not None:
                slots = ((token, own) for (token, _), own in zip(slots, chances[1:].tolist(), strict=True))
            self._propose(slots)
            return []
        self.canvas = canvas = advance(canvas, logits)
        events: list[Event] = [self._draft_event(canvas)] if self.request.watched else []
        if canvas.finished:
            sure = canvas.probability if chances is None else chances
            self._propose(zip(canvas.shown[1:].tolist(), sure[1:].tolist(), strict=True))
        return events

    def _heed_heads(self, canvas: Canvas, logits: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Corrects the logits in place. The tokens of the slots that were read, and the chances that drafts are
        accepted, float32 [C]; each None without a head for it. In the place of the first slot stands the last token of
        the text, which AR has chosen meanwhile."""
        if self.heads is None:
            return None, None
        tokens, chances = draft(self.heads, canvas, logits, self.text[-1])
        if chances is None:
            return tokens, None
        if canvas.step == 0:
            self._chances = np.ones(len(canvas.tokens), np.float32)
        self._chances[canvas.wanted] = chances
        return tokens, self._chances

    def _propose(self, slots: Iterable[tuple[int, float]]) -> None:
        """The canvas's tokens after its first slot, whose place has gone to a token that AR chose meanwhile,
        up to an end of answer (there's nothing to encode behind it). In layout "auto" a token must be worth its
        row: all up to it are right with a chance that makes up for row_cost; and leftovers all in all be worth more
        than none. With each token comes its chance if all before it are right, by the confidence head or else the
        canvas's own probabilities.
        """
        self.canvas = None
        tokens: list[int] = []
        chances: list[float] = []
        chance, least, likely = 1.0, 0.0, 0.0
        old = self._keeps and len(self.output.tokens) not in self._left.newest
        if self.request.draft_layout == "auto":
            least = self.request.row_cost / self._prices.token
        for token, own in slots:
            if token in self._special:
                continue
            if old and not tokens:
                own *= UNFORESEEN
            chance *= own
            if token in self.vocabulary.eos_ids or chance < least:
                break
            tokens.append(token)
            chances.append(own)
            likely += chance
        if old and self._prices.worth(likely, len(tokens)) <= 0:
            tokens, chances = [], []
        self._proposal, self._sure = tuple(tokens), tuple(chances)

    def _worth_drafting(self, slots: int) -> list[int]:
        """Behind how many tokens of the proposal to denoise a canvas in the pass that verifies it."""
        layout, most = self.request.draft_layout, len(self._proposal)
        rows = slots - self._ahead
        if layout == "auto" and not self.request.canvas_cost:
            # Without an adapter: what was fastest on redraft-tiny, and little to compute.
            cost = self._prices.slot * rows
            return [most] if math.prod(self._sure[:most]) >= cost / (1 + cost) else []
        if layout == "auto":
            chosen = starts(self._sure[:most], slots - 1, rows, self._kept / self._tried, self._prices)
            return chosen or ([0] if not most and self._bare >= TRY_AGAIN else [])
        if not most or layout == "strided":
            return [most]
        return list(range(most + 1)) if layout == "branches" else []

    def _reckon(self, rows: int, slots: int, canvas: bool) -> None:
        """Adds up what a pass costs with so many clean rows and canvas rows besides its first."""
        prices = self._prices
        self._spent += 1 + prices.row * rows + prices.slot * slots + prices.canvas * canvas

    @property
    def _prices(self) -> Prices:
        row, slot, canvas = self.request.row_cost, self.request.slot_cost, self.request.canvas_cost
        token = self._spent / (len(self.output.tokens) + BEFORE) if canvas else 1.0
        return Prices(min(1.0, token), row, row if slot is None else slot, canvas)

    def _draft_event(self, canvas: Canvas) -> Step:
        """The canvas without its first slot, whose token AR has chosen already."""
        return self.step_event(canvas, 1)

    def _verify(self, logits: np.ndarray) -> Commit:
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
        for right in range(min(len(chosen), len(self._proposal))):
            self._tried = FORGET * self._tried + 1
            self._kept = FORGET * self._kept + (right < len(chosen) - 1)
        if wrong:
            self.context.truncate(self.context.length - wrong)
        self._proposal = ()
        event = self.commit(chosen)
        self.canvases += 1
        return event


def _read_in_order(canvas: Canvas, logits: np.ndarray) -> Iterator[tuple[int, float]]:
    """What each slot after the first would hold, and how probable that is; logits [C - 1, V]. Read a few at a time: who
    proposes them seldom asks for the last, and exponentials over the vocabulary are most of what a draft costs outside
    the network."""
    for at in range(0, len(logits), READ_AT_ONCE):
        some = logits[at : at + READ_AT_ONCE]
        slots = slice(at + 1, at + 1 + len(some))
        live = np.zeros(len(canvas.tokens), dtype=bool)
        live[slots] = True
        reading = read(canvas.after(live=live), some)
        yield from zip(reading.choice[slots].tolist(), reading.probability[slots].tolist(), strict=True)


@lru_cache(maxsize=64)
def _first(slots: int) -> np.ndarray:
    """bool [slots]: the first one alone."""
    first = np.arange(slots) == 0
    first.flags.writeable = False
    return first
