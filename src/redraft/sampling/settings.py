"""What a request may choose about sampling, and what the sampler must know of the vocabulary."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from redraft.corruption import CORRUPTIONS, SCHEDULES
from redraft.errors import RequestError
from redraft.sampling import accept as confidence_rules
from redraft.sampling import reverse as process_rules
from redraft.sampling.revise import REMASK_SCHEDULES

RENOISE = ("mask", "uniform")
BELIEFS = ("leave_one_out", "full")


def _require(true: bool, message: str) -> None:
    if not true:
        raise RequestError(message)


def _number(name: str, value: float, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """low ≤ value ≤ high and finite (low < value with `above`); NaN fails like everything else."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    ok = usable and (low < value if above else low <= value) and value <= high
    bound = f"above {low:g}" if above else f"at least {low:g}"
    limit = "" if high == math.inf else f" and at most {high:g}"
    _require(ok, f"{name} must be a number {bound}{limit}, not {value!r}")


def _count(name: str, value: int, low: int) -> None:
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= low
    _require(ok, f"{name} must be a whole number of at least {low}, not {value!r}")


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    _require(value in known, f"{name} {value!r} is unknown; one of {', '.join(known)}")


@dataclass(frozen=True)
class WarpSettings:
    """How logits are bent before a token is drawn, in every decode mode (`warp`). Raises RequestError.

    temperature: 0 takes the argmax. top_k: 0 keeps all. top_p: 1 keeps all. logit_bias: (token, bias) pairs.
    repetition_penalty divides positive logits of tokens already chosen and multiplies negative ones (CTRL,
    Keskar 2019); frequency_penalty is subtracted once an occurrence, presence_penalty once a token.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0)
        _count("top_k", self.top_k, 0)
        _number("top_p", self.top_p, 0.0, 1.0, above=True)
        _number("repetition_penalty", self.repetition_penalty, 0.0, above=True)
        _number("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        _number("presence_penalty", self.presence_penalty, -100.0, 100.0)
        object.__setattr__(self, "logit_bias", tuple((t, b) for t, b in self.logit_bias))
        for token, bias in self.logit_bias:
            _count("logit_bias token", token, 0)
            _number("logit_bias", bias, -1e6, 1e6)

    @property
    def penalises(self) -> bool:
        return bool(self.repetition_penalty != 1.0 or self.frequency_penalty or self.presence_penalty)


@dataclass(frozen=True)
class SamplerSettings(WarpSettings):
    """One canvas's way from noise to text. Raises RequestError with one line when a value makes no sense.

    max_steps: network evaluations a canvas may cost; the last one settles everything. steps: over how many
    the rules with a timetable (quota, ancestral, and threshold's least number) spread a canvas; None:
    max_steps, and for threshold at least one slot a step. accept: a name in accept.RULES or reverse.RULES.
    threshold: probability above which a slot settles. entropy_bound: nats. renoise: what open slots hold for
    the next step. temperature_end: temperature of the last step, reached linearly from `temperature`
    (DiffusionGemma); None: constant.

    edit_threshold: a settled token is overwritten when the argmax differs and its probability exceeds this
    (LLaDA2.1 T2T); edit_spread: with it the settled tokens right beside it whose argmax differs too, since the
    tokens of one word go wrong together; edit_steps: evaluations it may go on after all slots have settled.
    remask: ReMDM's schedule for taking settled tokens back, with remask_eta. doubt: a settled token goes back to noise
    as soon as the model, which sees it among all others, gives it a probability below this; the slot is then filled by
    what stands around it, and the rules with a timetable make up for it. edit_steps hold here too.

    corruption, uniform_share, schedule: the forward process that ancestral and ReMDM run backwards, names in
    the registries of redraft.corruption; start: its time at step 0, below 1 to begin with text that is half
    destroyed. belief: what the logits stand for at a slot that shows a token: p(x_0 | everything but this
    slot), as training by the NELBO teaches ("leave_one_out"), or p(x_0 | everything), as cross-entropy does
    ("full"). They agree at masks.

    length_first: the first step decides how long the text is, by which slots are rather null than not; later steps
    write no null. One by one, the surest first, nulls would shorten a text of which the model is sure of little else.

    stable_steps, confident_entropy: the canvas is also done when its argmax has not changed for that many
    steps and the mean entropy is below that many nats; None: 0.005 where acceptance does not stick, otherwise
    never.
    """

    canvas_length: int = 16
    max_steps: int = 32
    steps: int | None = None
    accept: str = "threshold"
    threshold: float = 0.9
    entropy_bound: float = 0.1
    renoise: str = "mask"
    temperature_end: float | None = None
    edit_threshold: float | None = None
    edit_spread: bool = False
    edit_steps: int = 16
    length_first: bool = False
    remask: str | None = None
    remask_eta: float = 0.02
    doubt: float | None = None
    corruption: str = "absorbing"
    uniform_share: float = 0.1
    schedule: str = "linear"
    start: float = 1.0
    belief: str = "leave_one_out"
    stable_steps: int = 1
    confident_entropy: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _count("canvas_length", self.canvas_length, 1)
        _count("max_steps", self.max_steps, 1)
        if self.steps is not None:
            _count("steps", self.steps, 1)
        _number("threshold", self.threshold, 0.0, 1.0)
        _number("entropy_bound", self.entropy_bound, 0.0)
        _choice("renoise", self.renoise, RENOISE)
        _choice("corruption", self.corruption, tuple(CORRUPTIONS))
        _choice("belief", self.belief, BELIEFS)
        _number("uniform_share", self.uniform_share, 0.0, 0.99)
        _number("start", self.start, 0.0, 1.0, above=True)
        _count("edit_steps", self.edit_steps, 0)
        _count("stable_steps", self.stable_steps, 0)
        _number("remask_eta", self.remask_eta, 0.0, 1.0)
        if self.temperature_end is not None:
            _number("temperature_end", self.temperature_end, 0.0, above=True)
            _number("temperature, with temperature_end,", self.temperature, 0.0, above=True)
        if self.confident_entropy is not None:
            _number("confident_entropy", self.confident_entropy, 0.0)
        self._check_rules()

    def _check_rules(self) -> None:
        _choice("accept", self.accept, (*confidence_rules.RULES, *process_rules.RULES))
        _choice("schedule", self.schedule, tuple(SCHEDULES))
        if self.edit_threshold is not None:
            _number("edit_threshold", self.edit_threshold, 0.0, 1.0)
            _require(
                self.sticky,
                f"edit_threshold needs tokens that settle; {self.accept} settles none before its end",
            )
        if self.doubt is not None:
            _number("doubt", self.doubt, 0.0, 1.0)
            alone = self.edit_threshold is None and self.remask is None
            _require(alone, "doubt, edit_threshold and remask are three ways to correct errors: choose one")
            _require(
                self.sticky and self.open_noise == "mask" and self.accept in confidence_rules.RULES,
                "doubt takes settled tokens back to masks: use renoise mask and a rule of confidence",
            )
        if self.remask is not None:
            _choice("remask", self.remask, tuple(REMASK_SCHEDULES))
            _require(
                self.sticky and self.open_noise == "mask" and self.accept != "first_hitting",
                "remask takes settled tokens back to masks: use renoise mask and a rule with a timetable",
            )
        if self.accept == "first_hitting":
            _require(
                self.corruption == "absorbing",
                "first_hitting unmasks one slot at a time: corruption must be absorbing",
            )

    @property
    def timetable(self) -> int:
        """Steps of the rules that spread a canvas over a given number, never more than the budget."""
        return self.max_steps if self.steps is None else min(self.steps, self.max_steps)

    @property
    def sticky(self) -> bool:
        """Whether an accepted token stays (until it is edited or remasked)."""
        if self.accept == "ancestral":
            return self.corruption == "absorbing"
        return not (self.accept == "entropy_bound" and self.renoise == "uniform")

    @property
    def open_noise(self) -> str:
        """What open slots hold: the corruption's noise for the rules that run it backwards, else
        `renoise`."""
        if self.accept in process_rules.RULES:
            return "uniform" if self.corruption == "uniform" else "mask"
        return self.renoise

    @property
    def looks_back(self) -> bool:
        """Whether each step also reads what has settled, and may change it."""
        return self.edit_threshold is not None or self.doubt is not None

    @property
    def final(self) -> bool:
        """Whether what has settled stays as it is."""
        return self.sticky and not self.looks_back and self.remask is None

    @property
    def follows_grammars(self) -> bool:
        """Whether what comes after can be judged by what has settled."""
        return self.final and self.accept in confidence_rules.RULES

    @property
    def needs_entropy(self) -> bool:
        """Whether the entropy of a slot decides anything; otherwise it is there to be looked at."""
        stops = self.confident_entropy is not None or not self.sticky
        return stops or self.accept == "entropy_bound"

    def temperature_at(self, step: int) -> float:
        """Temperature of 0-based `step`; linear in the steps that remain (facts of DiffusionGemma's
        sampler)."""
        if self.temperature_end is None:
            return self.temperature
        remaining = max(self.max_steps - step, 0) / self.max_steps
        return self.temperature_end + (self.temperature - self.temperature_end) * remaining


@dataclass(frozen=True)
class SlotVocabulary:
    """vocab_size tokens; mask_id fills open slots, null_id is an empty slot, eos_ids end an answer, banned
    may never be chosen (the mask never is). never: what no slot may end as; never_text: nor, with the null, a token of
    AR. Raises RequestError for an id outside the vocabulary."""

    vocab_size: int
    mask_id: int | None = None
    null_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    banned: tuple[int, ...] = ()
    never: tuple[int, ...] = field(init=False, repr=False)
    never_text: tuple[int, ...] = field(init=False, repr=False)
    eos: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _count("vocab_size", self.vocab_size, 2)
        object.__setattr__(self, "eos_ids", tuple(self.eos_ids))
        mask = () if self.mask_id is None else (self.mask_id,)
        never = tuple(dict.fromkeys((*mask, *self.banned)))
        object.__setattr__(self, "banned", tuple(self.banned))
        object.__setattr__(self, "never", never)
        null = () if self.null_id is None else (self.null_id,)
        object.__setattr__(self, "never_text", (*never, *null))
        object.__setattr__(self, "eos", frozenset(self.eos_ids))
        for token in (*never, *null, *self.eos_ids):
            inside = isinstance(token, int) and 0 <= token < self.vocab_size
            _require(inside, f"token {token!r} lies outside the vocabulary of {self.vocab_size}")
        _require(self.mask_id is None or self.mask_id != self.null_id, "mask_id and null_id must differ")
        _require(len(never) < self.vocab_size, "every token is banned: nothing could be written")
