"""What one answer is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.adaptive import StepCosts
from redraft.engine.given import GivenCanvas
from redraft.engine.review import Review
from redraft.errors import RequestError
from redraft.sampling import NoiseKey, SamplerSettings, SlotVocabulary, begin
from redraft.sampling.grammar import Allow

DRAFT_LAYOUTS = ("auto", "strided", "branches", "separate")


@dataclass(frozen=True)
class Request:
    """One answer to `prompt` (token ids). Raises RequestError when something in it makes no sense by itself.

    decode: a name in writers.WRITERS. sampler: how a canvas is denoised; its warp settings hold in every
    mode. max_tokens: longest answer in tokens, None for as far as the context goes. stop: texts that end the
    answer and are cut from it. eos_ids: None for the model's own; ignore_eos: they are tokens like any other.
    seed, sample: name the noise, so that answers number 0, 1, … to one prompt differ.

    locked, initial: the first canvas's given slots (slot: token) and its tokens at the start, instead of
    noise. max_canvases: the answer also ends (reason "length") after so many canvases.

    canvases: for decode "edit" alone, which denoises these one after the other and ends. banned: tokens that may
    never be chosen, such as role tokens in the middle of a text.

    step_costs: the length of each canvas after the first few evaluations follows how the last ones went and what a
    step of each length costs (engine.adaptive); None: as the sampler says.

    slide: so many leading slots that have settled are committed at once and as many opened at the canvas's end, so that
    no pass is spent on a canvas's last few slots; 0: a canvas is committed whole.

    sharp: open slots hold the model's draft token, behind which it was distilled to guess what its AR self
    would write, in place of the mask, behind which it is calibrated. None: where it has one and the answer is
    to be the likeliest (temperature 0 and nothing locked, or decode "verified").

    verified: draft_steps denoising steps make a proposal. draft_layout "strided" lets one evaluation verify a
    proposal and draft the next (which counts only if all of the first is right); "branches" drafts one for every
    number of tokens that may be accepted (many rows, which a GPU hardly feels); "separate" spends two smaller
    evaluations; "auto" weighs each of these canvases by its chance, by what a row costs and by what evaluations bring,
    and where a canvas has a cost proposes what any of them has said of the places that follow.
    row_cost: the cost of one more row in an evaluation, where a single row costs 1 (0.03 to 0.1 on two cores, near 0 on
    a GPU); slot_cost: the same of a canvas row, which may pass fewer layers, None: as much; canvas_cost: what a canvas
    costs besides its rows (an adapter's nodes).

    check_ratio: diffusion's canvases are checked by the AR self, which reads them anyway when they are committed: a
    token stands where it has at least this share of the probability of AR's own choice, else AR's choice takes its
    place and what lies behind is written anew. It is "verified" with a tolerance, and uses its settings; None: what
    has settled is committed.

    allow: a grammar, from the tokens of the answer so far to those that may come next, bool [V]; called again and
    again with the same beginnings. A canvas then settles from left to right, several tokens a step.

    watched: False when nobody looks at the steps: the answer's events are its commits alone, and it comes a little
    sooner.

    review: for decode "edit": what proposes changes of the canvases and decides on them once the AR self has read the
    text as it stands; None: canvases are denoised as the sampler says.
    """

    prompt: tuple[int, ...]
    decode: str = "diffusion"
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    eos_ids: tuple[int, ...] | None = None
    ignore_eos: bool = False
    seed: int = 0
    sample: int = 0
    locked: Mapping[int, int] = field(default_factory=dict)
    initial: tuple[int, ...] | None = None
    max_canvases: int | None = None
    canvases: tuple[GivenCanvas, ...] = ()
    banned: tuple[int, ...] = ()
    slide: int = 0
    sharp: bool | None = None
    step_costs: StepCosts | None = None
    draft_steps: int = 1
    draft_layout: str = "auto"
    row_cost: float = 0.03
    slot_cost: float | None = None
    canvas_cost: float = 0.0
    check_ratio: float | None = None
    watched: bool = True
    allow: Allow | None = None
    review: Review | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", tuple(int(t) for t in self.prompt))
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        for name in ("max_tokens", "max_canvases"):
            value = getattr(self, name)
            if value is not None and not (_is_whole(value) and value >= 1):
                raise RequestError(f"{name} must be a whole number of at least 1, not {value!r}")
        for name in ("seed", "sample"):
            if not _is_whole(getattr(self, name)):
                raise RequestError(f"{name} must be a whole number, not {getattr(self, name)!r}")
        if not (_is_whole(self.slide) and self.slide >= 0):
            raise RequestError(f"slide must be a whole number of at least 0, not {self.slide!r}")
        if not (_is_whole(self.draft_steps) and self.draft_steps >= 1):
            raise RequestError(f"draft_steps must be a whole number of at least 1, not {self.draft_steps!r}")
        if self.draft_layout not in DRAFT_LAYOUTS:
            raise RequestError(
                f"draft_layout {self.draft_layout!r} is unknown; one of {', '.join(DRAFT_LAYOUTS)}"
            )
        for name in ("row_cost", "slot_cost", "canvas_cost"):
            cost = getattr(self, name)
            if name == "slot_cost" and cost is None:
                continue
            if not (isinstance(cost, int | float) and 0 <= cost < math.inf):
                raise RequestError(f"{name} must be a number of at least 0, not {cost!r}")
        if self.check_ratio is not None and not (
            isinstance(self.check_ratio, int | float) and 0 < self.check_ratio <= 1
        ):
            raise RequestError(f"check_ratio must be above 0 and at most 1, not {self.check_ratio!r}")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise RequestError("stop must be texts of at least one character")
        if not self.prompt:
            raise RequestError("the prompt is empty: give at least one token of text")

    @property
    def drafts(self) -> bool:
        """Whether canvases are proposals that the AR self confirms or replaces."""
        return self.decode == "verified" or self.check_ratio is not None

    @property
    def key(self) -> NoiseKey:
        return NoiseKey(self.seed, self.sample)

    def vocabulary(self, config: DenoiserConfig) -> SlotVocabulary:
        """The tokens a canvas may hold. Raises RequestError for an eos id outside the vocabulary."""
        eos = config.eos_token_ids if self.eos_ids is None else self.eos_ids
        mask = self._mask(config)
        return SlotVocabulary(
            vocab_size=config.vocab_size,
            mask_id=mask,
            null_id=config.null_token_id,
            eos_ids=() if self.ignore_eos else tuple(eos),
            banned=(*(t for t in config.noise_token_ids if t != mask), *self.banned),
        )

    def _mask(self, config: DenoiserConfig) -> int | None:
        """What an open slot holds."""
        likeliest = self.sampler.temperature == 0 and not self.locked and self.initial is None
        sharp = (self.drafts or likeliest) if self.sharp is None else self.sharp
        if sharp and config.draft_token_id is not None:
            return config.draft_token_id
        return config.mask_token_id

    def check(self, config: DenoiserConfig) -> None:
        """Raises RequestError when this model can't serve the request."""
        from redraft.engine.writers import WRITERS
        from redraft.engine.writers.diffusion import canvas_slots

        if self.decode not in WRITERS:
            raise RequestError(f"decode {self.decode!r} is unknown; one of {', '.join(WRITERS)}")
        if self.decode != "ar" and config.autoregressive_only:
            raise RequestError(
                f"this model only writes from left to right: use --decode ar, or adapt it first (redraft adapt); "
                f"decode {self.decode} needs a denoiser"
            )
        if self.check_ratio is not None and self.decode != "diffusion":
            raise RequestError(
                f"check_ratio is for decode diffusion; decode {self.decode} has no canvases that it could check"
            )
        ordered = self.decode == "ar" or self.drafts
        how = f"decode {self.decode}" + (" with a check" if self.check_ratio is not None else "")
        if ordered and config.layout != "causal_context":
            raise RequestError(f"{how} needs a model with causal context; this one is {config.layout}")
        if ordered and (self.locked or self.initial is not None):
            raise RequestError(f"{how} writes from left to right and can't keep given slots")
        if bool(self.canvases) != (self.decode == "edit"):
            raise RequestError("decode edit and given canvases go together: fill and edit make such requests")
        if self.review is not None and (not self.canvases or config.layout != "causal_context"):
            raise RequestError(
                "a review is for given canvases and a model with causal context: leave it out (decode edit alone)"
            )
        self._check_grammar()
        outside = [t for t in self.prompt if not 0 <= t < config.vocab_size]
        if outside:
            raise RequestError(f"the prompt holds token {outside[0]}; the vocabulary has {config.vocab_size}")
        limit = config.max_position_embeddings
        if len(self.prompt) >= limit:
            raise RequestError(
                f"the prompt has {len(self.prompt)} tokens and the context {limit}: shorten it to {limit - 1} or less"
            )
        if self.max_tokens is not None and self.max_tokens > limit:
            raise RequestError(f"max_tokens is {self.max_tokens}; the context holds {limit}")
        if self.canvases:
            self._check_canvases(config)
            return
        slots = canvas_slots(config, self.sampler.canvas_length, len(self.prompt))
        if len(self.initial or ()) > slots:
            raise RequestError(
                f"{len(self.initial or ())} tokens are given at the start; the canvas has {slots} slots"
            )
        self._begin(config, slots, self.locked, self.initial)

    def _check_canvases(self, config: DenoiserConfig) -> None:
        if config.layout == "block_causal":
            raise RequestError("this model's canvases sit on a grid of blocks: it can't fill or edit")
        if config.layout != "causal_context" and any(given.trial for given in self.canvases):
            raise RequestError("a trial is read by the AR self: this model's context isn't causal")
        if self.sampler.temperature > 0 and any(given.fills > 1 for given in self.canvases):
            raise RequestError("several fills are the likeliest ones, not draws: use temperature 0")
        end = len(self.prompt)
        for given in self.canvases:
            if end + len(given.initial) > config.max_position_embeddings:
                raise RequestError(
                    f"prompt and canvases take {end + len(given.initial)} tokens; the context holds "
                    f"{config.max_position_embeddings}"
                )
            end += 0 if given.trial else given.commit
            self._begin(config, len(given.initial), given.locked_tokens, given.initial)

    def _begin(
        self,
        config: DenoiserConfig,
        slots: int,
        locked: Mapping[int, int],
        initial: tuple[int, ...] | None,
    ) -> None:
        """Raises RequestError when a canvas can't begin so, or has nothing to do."""
        settings = replace(self.sampler, canvas_length=slots)
        if begin(settings, self.vocabulary(config), self.key, 0, locked, initial).finished:
            raise RequestError("every slot is given: there is nothing to write")

    def _check_grammar(self) -> None:
        if self.allow is None:
            return
        if self.locked or self.initial is not None or self.canvases:
            raise RequestError(
                "a grammar can't be kept around given slots: leave out allow, or locked and initial"
            )
        if self.decode == "diffusion" and not self.drafts and not self.sampler.follows_grammars:
            raise RequestError(
                "a grammar needs tokens that stay once accepted: use accept threshold, quota or entropy_bound with "
                "renoise mask, and none of edit_threshold, doubt and remask"
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
