"""Model.fill and Model.edit: what may be asked, checked, and set going."""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from redraft.denoiser.config import DenoiserConfig
from redraft.editing import spans as selecting
from redraft.editing.editor import Editor
from redraft.editing.fill import fill
from redraft.editing.gap import CANDIDATES, FILLS, Limits
from redraft.editing.hunks import Edit
from redraft.editing.lexicon import Lexicon
from redraft.editing.noisy_channel import Channel, NoisyChannel, Reader
from redraft.editing.pieces import Pieces
from redraft.editing.selection import rewrite
from redraft.editing.stream import EditStream, Filling, Started, edited, filling
from redraft.editing.windows import Windows
from redraft.engine import Request
from redraft.errors import RequestError
from redraft.hub import GenerationDefaults
from redraft.hub.tokenizer import Tokenizer, check_text
from redraft.sampling import SamplerSettings

# From which probability a token is revised, and passes a window at most.
PROOFREAD, INSTRUCT = (0.9, 2), (0.5, 4)


class Editable(ABC):
    """The part of a model that fills and edits; the rest of it says how requests run."""

    name: str
    tokenizer: Tokenizer
    defaults: GenerationDefaults
    lexicon: Lexicon | None

    @property
    @abstractmethod
    def config(self) -> DenoiserConfig: ...

    @abstractmethod
    def encode(self, prompt: Any) -> list[int]: ...

    @abstractmethod
    def _open(self, request: Request) -> Started: ...

    @abstractmethod
    def _sampler(self, values: dict[str, Any]) -> SamplerSettings: ...

    def fill(self, prefix: str | Sequence[str], suffix: str = "", **options: Any) -> Filling:
        """The text between prefix and suffix; options as for `fill_stream`."""
        return self.fill_stream(prefix, suffix, **options).result

    def fill_stream(
        self,
        prefix: str | Sequence[str],
        suffix: str = "",
        *,
        pins: Mapping[int, str] | Sequence[Mapping[int, str]] = (),
        max_tokens: int | None = None,
        slots: int | None = None,
        candidates: int | None = None,
        fills: int | None = None,
        stop: str | Sequence[str] = (),
        context: Any = None,
        seed: int | None = None,
        **sampling: Any,
    ) -> EditStream[Filling]:
        """Filling as it goes: Step and Commit events, `result` at its end. Fills that are compared show their Steps
        one after the other; then the chosen one's last comes again, and its Commit.

        prefix: the text before the gap, or for several gaps the texts around them (and no suffix). All that comes
        before a gap is read as far as the context goes (its last part, where it is longer), and the first 16 tokens
        behind it. pins: {slot: text}, words that stand from that slot of the gap on (nulls before them drop out); for
        several gaps one mapping each. max_tokens: most slots of a gap. candidates: how many lengths are tried at first
        (4), fills: in how many ways each (1; more at temperature 0 alone); the fill stays that both selves find
        likeliest, AR with the text behind it. With 1 candidate, and where no text follows, the nulls tell the length.
        slots: the shortest length that is tried (1), or where the nulls tell it how many a gap starts with (2), doubled
        while none stays empty; as many as max_tokens: the gap has just so many. stop: texts before which a gap ends.
        context: what is read before everything, such as messages. sampling: effort, temperature, top_p, top_k,
        threshold, steps as for `request`. Raises RequestError, one line, for anything that can't be.
        """
        parts = [prefix, suffix] if isinstance(prefix, str) else [*prefix, *([suffix] if suffix else [])]
        most = max_tokens
        if most is None:
            most = max(1, min(self.defaults.max_new_tokens, self.config.max_position_embeddings // 2))
        texts = (stop,) if isinstance(stop, str) else tuple(stop)
        lengths, ways = CANDIDATES if candidates is None else candidates, FILLS if fills is None else fills
        limits = Limits(most, slots, texts, lengths, ways)
        each = list(pins) if not isinstance(pins, Mapping) else [pins] if pins else []
        editor = self._editor(seed, context, sampling)
        if ways > 1 and editor.sampler.temperature > 0:
            raise RequestError(
                "several fills are the likeliest ones, not draws: use temperature 0, or 1 fill"
            )
        done = fill(editor, parts, each, limits)
        return EditStream(self.name, self._open, done, lambda filled, stream: filling(parts, filled, stream))

    def edit(
        self,
        text: str,
        instruction: str | None = None,
        spans: Iterable[tuple[int, int]] | None = None,
        **options: Any,
    ) -> Edit:
        """The text, edited in place; options as for `edit_stream`."""
        return self.edit_stream(text, instruction, spans, **options).result

    def edit_stream(
        self,
        text: str,
        instruction: str | None = None,
        spans: Iterable[tuple[int, int]] | None = None,
        *,
        lines: tuple[int, int] | None = None,
        regex: str | None = None,
        strength: float | None = None,
        threshold: float | None = None,
        steps: int | None = None,
        max_tokens: int | None = None,
        context: Any = None,
        seed: int | None = None,
        **sampling: Any,
    ) -> EditStream[Edit]:
        """An edit as it goes: Step and Commit events, `result` at its end. What lies outside the spans stays byte
        for byte.

        With an instruction the text is edited by it, within the spans if there are any. With spans alone (half-open
        offsets in code points), lines (first, last; from 1, both included) or a regex their text is written anew:
        strength is the share of their tokens that are opened (1: all), max_tokens the most slots that may be added to
        each 16 tokens (None: as many as were opened). With neither the text is proofread: what the model doubts is
        corrected, and where its defaults say how (generation_config.json: proofread) the AR self is asked as well.

        threshold: from which probability of another token a token is revised (0.9, with an instruction 0.5), or from
        which a correction that the AR self was asked about is made (the model's own); for a selection, from which a
        slot settles. steps: evaluations a window at most; given, the AR self isn't asked. context: what is read
        before everything, such as messages. sampling: effort, temperature, top_p, top_k as for `request`. Raises
        RequestError, one line, for anything that can't be.
        """
        check_text(text)
        if not text:
            raise RequestError("the text is empty: there is nothing to edit")
        if instruction is not None and not instruction.strip():
            raise RequestError("the instruction is empty: say what to change")
        chosen = selecting.chosen(text, spans, lines, regex)
        anew = bool(chosen) and instruction is None
        if strength is not None and not anew:
            raise RequestError(
                "strength is for a selection without instruction: give spans, lines or a regex"
            )
        strength = 1.0 if strength is None else strength
        whole = isinstance(max_tokens, int) and not isinstance(max_tokens, bool) and max_tokens >= 1
        if max_tokens is not None and not whole:
            raise RequestError(f"max_tokens must be a whole number of at least 1, not {max_tokens!r}")
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:
            raise RequestError(f"strength must be a number above 0 and at most 1, not {strength!r}")
        if anew:
            editor = self._editor(seed, context, sampling | {"threshold": threshold, "steps": steps})
            done = rewrite(editor, text, chosen, strength, max_tokens)
        else:
            editor = self._editor(seed, context, sampling)
            if chosen and all(start == end for start, end in chosen):
                raise RequestError("the selection is empty: an instruction needs text to change")
            windows = Windows(editor, text, chosen or [(0, len(text))], instruction)
            usual = PROOFREAD if instruction is None else INSTRUCT
            review = self._review(threshold) if instruction is None and steps is None else None
            done = windows.edit(
                usual[0] if threshold is None else threshold, usual[1] if steps is None else steps, review
            )
        return EditStream(self.name, self._open, done, lambda parts, stream: edited(text, parts, stream))

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self.tokenizer, self.config.vocab_size)

    @cached_property
    def reader(self) -> Reader:
        """What proofreading knows of the model's tokens."""
        assert self.config.null_token_id is not None
        return Reader(self._pieces, self.config.vocab_size, self.config.null_token_id, self.lexicon)

    def _review(self, threshold: float | None) -> NoisyChannel | None:
        """How proposed corrections are checked, for a model that knows how."""
        channel = Channel.of(self.defaults.proofread)
        if channel is None or self.config.layout != "causal_context":
            return None
        return NoisyChannel(
            self.reader, channel if threshold is None else dataclasses.replace(channel, threshold=threshold)
        )

    def _editor(self, seed: int | None, context: Any | None, sampling: dict[str, Any]) -> Editor:
        names = {"temperature", "top_p", "top_k", "threshold", "steps"}
        unknown = sampling.keys() - names - {"effort"}
        if unknown:
            raise TypeError(f"unexpected argument {unknown.pop()!r}")
        values = self.defaults.values() | self.defaults.settings_for(sampling.get("effort"))
        given = {("max_steps" if name == "steps" else name): sampling.get(name) for name in names}
        values |= {name: value for name, value in given.items() if value is not None}
        values |= {"canvas_length": self.config.canvas_length, "edit_threshold": None, "doubt": None}
        return Editor(
            config=self.config,
            pieces=self._pieces,
            sampler=self._sampler(values),
            seed=drawn(seed),
            context=() if context is None else tuple(self.encode(context)),
            steps=values["max_steps"],
        )


def drawn(seed: int | None) -> int:
    """The seed, or one from the system's own randomness."""
    return int.from_bytes(os.urandom(4), "little") if seed is None else seed
