"""What filling and editing share: the model as they see it, what they ask of the engine, and what they hear back.

Both are generators that yield an Ask and are sent its Answer (an empty one to what they Show), so that whoever drives
them (api.Model) chooses how requests run and who watches their events.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.editing.pieces import Pieces
from redraft.engine import Commit, GivenCanvas, Request, Step
from redraft.engine.review import Review
from redraft.errors import RequestError
from redraft.sampling import NoiseKey, SamplerSettings

# Tokens of the text behind an opening that ride locked on its canvas; what lies beyond is not seen.
SEEN = 16
LONGEST_TOKEN = 32  # characters: as many times the tokens wanted are tokenized of a long text, and no more

T = TypeVar("T")


@dataclass(frozen=True)
class Settled:
    """How a canvas ended: its last step, and what came of it."""

    step: Step
    commit: Commit

    @property
    def tokens(self) -> np.ndarray:
        """int64 [C]."""
        return self.step.tokens

    @property
    def probability(self) -> np.ndarray:
        """float32 [C]: of each token when it was accepted, 1 for given ones that were never doubted."""
        return self.step.probability


@dataclass(frozen=True)
class Ask:
    """A request, and the text around what it writes as far as it is known by now (for whoever watches)."""

    request: Request
    before: str
    after: str


@dataclass(frozen=True)
class Answer:
    """canvases: those of the request that were finished, in their order; fewer when it was interrupted."""

    canvases: tuple[Settled, ...]


@dataclass(frozen=True)
class Show:
    """Of the trials that were made one is chosen: how it ended is to be seen again, as what `ask` has come to."""

    ask: Ask
    settled: Settled


Steps = Generator[Ask | Show, Answer, T]


@dataclass(frozen=True)
class Editor:
    """A model for editing. sampler: how canvases are denoised, but for their length; steps: network evaluations a
    canvas at most, None for as many as slots. context: clean tokens that are read before any text, such as a
    conversation. Raises RequestError for a model that can't fill or edit."""

    config: DenoiserConfig
    pieces: Pieces
    sampler: SamplerSettings
    seed: int = 0
    context: tuple[int, ...] = ()
    steps: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise RequestError(f"seed must be a whole number, not {self.seed!r}")
        if self.config.mask_token_id is None:
            raise RequestError(
                "this model only writes from left to right (it has no mask token): it can't edit"
            )
        if self.config.null_token_id is None:
            raise RequestError(
                "this model has no null token for what may become shorter: it can't fill or edit"
            )

    @property
    def null(self) -> int:
        assert self.config.null_token_id is not None
        return self.config.null_token_id

    @property
    def limit(self) -> int:
        """Tokens that context and canvas may take together."""
        return self.config.max_position_embeddings

    def key(self, sample: int) -> NoiseKey:
        """The noise of one of this edit's requests."""
        return NoiseKey(self.seed, sample)

    def near(self, text: str) -> tuple[list[int], bool]:
        """Tokens of the text before a canvas, as far as they can matter, and whether that is all of it."""
        tail = text[-LONGEST_TOKEN * self.limit :]
        return self.pieces.encode(tail), len(tail) == len(text)

    def prompt(self, tokens: Sequence[int], whole: bool, room: int) -> list[int]:
        """What is read before a canvas, `room` tokens at most: the context and all of `tokens`, or their last part
        where they are too long. A whole text without context begins as a transcript does, where the model knows
        transcripts. Raises RequestError when the context alone leaves no room."""
        if room <= len(self.context) + 1:
            raise RequestError(
                f"the context takes {len(self.context)} of {self.limit} tokens, which leaves no room to write: "
                "shorten it, or max_tokens"
            )
        head = list(self.context)
        user = self.pieces.tokenizer.special_ids.get("<|user|>")
        if not head and whole and len(tokens) < room and user is not None:
            head = [user]
        room -= len(head)
        return head + list(tokens[max(0, len(tokens) - room) :])

    def after(self, text: str, most: int = SEEN) -> list[int]:
        """The first tokens of a text."""
        return self.pieces.encode(text[: LONGEST_TOKEN * (most + 1)])[:most]

    def request(
        self,
        prompt: Sequence[int],
        canvases: Sequence[GivenCanvas],
        sample: int,
        open_end: bool = False,
        nulls: bool = True,
        review: Review | None = None,
        **sampler: Any,
    ) -> Request:
        """sampler: settings other than the editor's. open_end: whether the answer may end itself (EOS). nulls: whether
        a slot may stay empty. review: see Request."""
        free = ((self.null,) if nulls else ()) + (self.config.eos_token_ids if open_end else ())
        banned = tuple(token for token in self.pieces.silent if token not in free)
        longest = max(len(canvas.initial) for canvas in canvases)
        changes: dict[str, Any] = {"max_steps": self.steps or longest, "canvas_length": longest} | sampler
        return Request(
            prompt=tuple(prompt) or self.config.eos_token_ids[:1],
            decode="edit",
            sampler=replace(self.sampler, **changes),
            max_tokens=max(1, sum(canvas.commit for canvas in canvases)),
            ignore_eos=not open_end,
            seed=self.seed,
            sample=sample,
            canvases=tuple(canvases),
            banned=banned,
            sharp=False,
            review=review,
        )
