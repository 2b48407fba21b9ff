"""What one answer is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.adaptive import StepCosts
from redraft.errors import RequestError
from redraft.sampling import NoiseKey, SamplerSettings, SlotVocabulary, begin

DRAFT_LAYOUTS = ("auto", "strided", "separate")


@dataclass(frozen=True)
class Request:
    """One answer to `prompt` (token ids). Raises RequestError when something in it makes no sense by itself.

    decode: a name in writers.WRITERS. sampler: how a canvas is denoised; its warp settings hold in every
    mode. max_tokens: longest answer in tokens, None for as far as the context goes. stop: texts that end the
    answer and are cut from it. eos_ids: None for the model's own; ignore_eos: they are tokens like any other.
    seed, sample: name the noise, so that answers number 0, 1, … to one prompt differ.

    locked, initial: the first canvas's given slots (slot: token) and its tokens at the start, instead of
    noise. max_canvases: the answer also ends (reason "length") after so many canvases.

    step_costs: the length of each canvas after the first few evaluations follows how the last ones went and what a
    step of each length costs (engine.adaptive); None: as the sampler says.

    slide: so many leading slots that have settled are committed at once and as many opened at the canvas's end, so that
    no pass is spent on a canvas's last few slots; 0: a canvas is committed whole.

    sharp: open slots hold the model's draft token, behind which it was distilled to guess what its AR self
    would write, in place of the mask, behind which it is calibrated. None: where it has one and the answer is
    to be the likeliest (temperature 0 and nothing locked, or decode "verified").

    verified: draft_steps denoising steps make a proposal. draft_layout "strided" lets one evaluation verify a
    proposal and draft the next (which counts only if all of the first is right); "separate" spends two
    smaller ones; "auto" weighs it each time by what a row costs. row_cost: the cost of one more row in an
    evaluation, where a single row costs 1 (0.1 on two cores, near 0 on a GPU).
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
    slide: int = 0
    sharp: bool | None = None
    step_costs: StepCosts | None = None
    draft_steps: int = 1
    draft_layout: str = "auto"
    row_cost: float = 0.1

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
        if not (isinstance(self.row_cost, int | float) and 0 <= self.row_cost < math.inf):
            raise RequestError(f"row_cost must be a number of at least 0, not {self.row_cost!r}")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise RequestError("stop must be texts of at least one character")
        if not self.prompt:
            raise RequestError("the prompt is empty: give at least one token of text")

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
            banned=tuple(t for t in config.noise_token_ids if t != mask),
        )

    def _mask(self, config: DenoiserConfig) -> int | None:
        """What an open slot holds."""
        likeliest = self.sampler.temperature == 0 and not self.locked and self.initial is None
        sharp = (self.decode == "verified" or likeliest) if self.sharp is None else self.sharp
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
        if self.decode != "diffusion" and config.layout != "causal_context":
            raise RequestError(
                f"decode {self.decode} needs a model with causal context; this one is {config.layout}"
            )
        if self.decode != "diffusion" and (self.locked or self.initial is not None):
            raise RequestError(f"decode {self.decode} writes from left to right and can't keep given slots")
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
        slots = canvas_slots(config, self.sampler.canvas_length, len(self.prompt))
        if len(self.initial or ()) > slots:
            raise RequestError(
                f"{len(self.initial or ())} tokens are given at the start; the canvas has {slots} slots"
            )
        first = begin(
            replace(self.sampler, canvas_length=slots),
            self.vocabulary(config),
            self.key,
            0,
            self.locked,
            self.initial,
        )
        if first.finished:
            raise RequestError("every slot is given: there is nothing to write")


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
