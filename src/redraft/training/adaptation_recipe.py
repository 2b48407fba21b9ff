"""Recipes of `redraft adapt`: an AR base, what is trained beside it, and on which states of the canvas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from redraft.denoiser.adapter_config import TARGETS, Target
from redraft.training.recipe import Mixture, Prepare, Recipe, Section, Share, Source, load, read, read_yaml


class Base(Section):
    """The AR model to start from. name: a model's name or folder. layers: only its first ones, None: all."""

    name: str
    layers: int | None = Field(default=None, ge=1)


class AdapterSettings(Section):
    """The adapter's size and the canvas's conventions; see denoiser.adapter_config.

    rank, alpha (None: the rank): of method "adapter" alone, as are targets (projections that learn), first_layer (the
    first that does), exclude (modules that don't, as ".*layers.2[2-9].self_attn.*": a regular expression for whole
    names) and gains (norms of the canvas's own). canvas_entry: the layer at which open and empty slots enter, which
    makes drafts cheaper; None: the first. shift: canvas row i predicts slot i + 1, as the base's rows do.
    mask_token, null_token: names of tokens that no text holds; None: taken from those that the tokenizer leaves unused.

    Heads for drafts that are verified, see denoiser.heads: markov_rank (0: none; 64 is plenty) and confidence. They
    learn beside the adapter, or behind one that is done: start names a run or an adapter's folder to begin with, and
    with frozen nothing but the heads learns, which spares the way back through the network. A start may have a smaller
    rank, which grows, and reach where this adapter doesn't, which is left out.
    """

    rank: int = Field(default=64, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    targets: tuple[Target, ...] = Field(default=TARGETS, min_length=1)
    first_layer: int = Field(default=0, ge=0)
    exclude: str | None = None
    gains: bool = True
    canvas_entry: int | None = Field(default=None, ge=1)
    shift: bool = True
    mask_token: str | None = None
    null_token: str | None = None
    markov_rank: int = Field(default=0, ge=0)
    confidence: bool = False
    start: str | None = None
    frozen: bool = False


class Answers(Section):
    """A corpus of what the AR self answers to prompts, made by the engine before training unless it is there.

    out: its folder; it is trained on unless the mixture says otherwise, and its holdout is what drafts are measured on.
    sources, exclude: where prompts come from and what they must not hold (see training.answers), by default those of
    `prepare`. longest, tokens: of a
    prompt and of an answer, at most. temperatures: prompts take turns; 0 is greedy. batch: answers written at once.
    """

    out: str
    sources: list[Source] = Field(default=[])
    exclude: list[Source] = Field(default=[])
    prompts: int = Field(default=4096, ge=1)
    longest: int = Field(default=256, ge=1)
    tokens: int = Field(default=256, ge=2)
    temperatures: list[Annotated[float, Field(ge=0)]] = Field(default=[0.0], min_length=1)
    batch: int = Field(default=64, ge=1)
    holdout: int = Field(default=64, ge=0)


class States(Section):
    """What the canvases of training show. length: slots of a canvas; slots: of one in training, where drafts are to be
    shorter than what a canvas can hold; per_row: canvases over a row of clean text.

    Shares of canvases, which together make 1: draft (all masks: what a draft starts from), prefix (the first slots
    visible, their number truncated geometric), revealed (any slot may be visible, early ones more often) and hole (a
    gap of unknown length before text that is locked: filling). apart: steps hold drafts alone, or none of them, which
    then have all `length` slots (and are so many fewer). Where open slots enter late (adapter.canvas_entry) most steps
    then pass the last layers only.
    """

    length: int = Field(default=16, ge=2)
    slots: int | None = Field(default=None, ge=2)
    per_row: int = Field(default=16, ge=1)
    draft: Share = 0.55
    prefix: Share = 0.12
    revealed: Share = 0.13
    hole: Share = 0.2
    apart: bool = False

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """In the order of adaptation_canvases.KINDS."""
        return self.draft, self.prefix, self.revealed, self.hole

    @property
    def drawn(self) -> int:
        """Slots of a canvas in training."""
        return self.slots or self.length

    def size(self, drafts: bool) -> tuple[int, int]:
        """Canvases over a row of a step, of drafts alone or not, and their slots."""
        if drafts or not self.apart:
            return self.per_row, self.drawn
        return max(1, self.per_row * self.drawn // self.length), self.length


class Losses(Section):
    """Weights. On slots that only text to their left is visible to: ce * cross-entropy to the text, and one divergence
    to what the AR self predicts there: kl * KL(AR self || canvas) for the first `kl_share` of the run, then
    acceptance * (1 - overlap), the chance that a draft is rejected. Slot k after the visible prefix weighs
    exp(-k / decay). On the others, which see further text than the AR self does: fill * cross-entropy.

    Off by default: hidden * (1 - cosine) of final hidden states to the AR self's, which falls to 0 over the first half
    of the run; for the last share `on_policy` of the run the divergence by where a live draft would fail (up to there
    KL(AR self || canvas), behind it KL(canvas || AR self) * 0.8^k; Draft-OPD, arXiv 2605.29343); sharpen * entropy
    where the likeliest token is the AR self's, for the last `sharpen_share` of the run (CAP, LLaDA2.0), which makes
    canvases surer and their doubt less true.
    """

    ce: float = Field(default=0.1, ge=0)
    kl: float = Field(default=1.0, ge=0)
    acceptance: float = Field(default=0.9, ge=0)
    kl_share: Share = 0.15
    decay: float = Field(default=7.0, gt=0)
    fill: float = Field(default=0.5, ge=0)
    hidden: float = Field(default=0.0, ge=0)
    on_policy: Share = 0.0
    sharpen: float = Field(default=0.0, ge=0)
    sharpen_share: Share = 0.1
    ar: float = Field(default=1.0, ge=0)
    keep: float = Field(default=0.0, ge=0)

    def at(self, progress: float) -> dict[str, float]:
        """Factors of the losses' sums (see adaptation_objective.Sums) at this point of the run, 0..1."""
        divergence = "rejected" if progress >= self.kl_share else "kl"
        if progress >= 1 - self.on_policy and self.on_policy:
            divergence = "live"
        strength = self.acceptance if divergence == "rejected" else self.kl
        sharp = self.sharpen if progress >= 1 - self.sharpen_share else 0.0
        return {
            "ce": self.ce,
            divergence: strength,
            "aligned": self.hidden * max(0.0, 1 - 2 * progress),
            "entropy": sharp,
            "fill": self.fill,
            "doubt": 1.0,  # of parameters of its own
            "ar": self.ar,
            "kept": self.keep,
        }


class Adam(Section):
    """AdamW without decay of weights; warm-up, stable, decay. ema: of the average that is evaluated and kept."""

    learning_rate: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: Share = 0.04
    decay: Share = 0.5
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.997, ge=0, lt=1)


class AdaptTrain(Section):
    """The run. batch_rows: rows of clean text a step. micro_rows: how many go through the network at once; None: on a
    GPU as many as a probe finds to fit, else all. minutes: wall-clock budget of the whole run, which the schedule
    follows. slice_minutes: after so many a session ends with a checkpoint, and --resume goes on. peak_tflops: the
    device's, from which model FLOPs utilization is told. bfloat16: the base's numbers and all products on a CPU too, as
    on a GPU: several times as fast on one with AVX512-BF16 or AMX, several times slower on any other.

    shard: of several processes each holds a share of the base alone (FSDP2), not all of it. recompute: layers run a
    second time for their gradients and keep nothing (gradient checkpointing). flex: attention skips what is masked
    (FlexAttention, for GPUs). portable: beside each checkpoint a copy for another machine, see training.portable.
    """

    steps: int = Field(default=2000, ge=1)
    batch_rows: int = Field(default=8, ge=1)
    row_length: int = Field(default=256, ge=8)
    micro_rows: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    slice_minutes: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    device: str = Field(default="auto", pattern="^(auto|cpu|cuda)$")
    bfloat16: bool = False
    compile: bool = False
    shard: bool = False
    recompute: bool = False
    flex: bool = False
    portable: bool = False
    peak_tflops: float | None = Field(default=None, gt=0)
    log_every: int = Field(default=10, ge=1)
    evaluate_every: int = Field(default=200, ge=1)
    evaluate_rows: int = Field(default=16, ge=1)
    save_every: int = Field(default=200, ge=1)
    keep: int = Field(default=2, ge=1)
    sample_prompts: list[str] = Field(default=["What is the capital of France?"])
    sample_tokens: int = Field(default=32, ge=1)


class AdaptRecipe(Section):
    """A whole recipe. data: a folder that `redraft prepare` made with the base's own tokenizer.

    method: "adapter" trains a gated adapter beside the base, which stays as it is; "full" trains all weights of a copy
    of the base, for canvas rows and clean rows alike. What the clean rows lose by it is held by losses.ar *
    cross-entropy of the next token, and by losses.keep * KL(base || them) where a copy of the base stays in memory.
    """

    name: str
    base: Base
    method: Literal["adapter", "full"] = "adapter"
    data: str
    prepare: Prepare | None = None
    mixture: list[Mixture] = Field(default=[])
    answers: Answers | None = None
    adapter: AdapterSettings = AdapterSettings()
    canvas: States = States()
    losses: Losses = Losses()
    optimizer: Adam = Adam()
    train: AdaptTrain = AdaptTrain()

    def corpora(self) -> list[Mixture]:
        own = self.data if self.answers is None else self.answers.out
        return self.mixture or [Mixture(path=own)]

    def barred(self) -> list[Source]:
        """What prompts of `answers` must not hold."""
        own = [] if self.answers is None else self.answers.exclude
        return own or ([] if self.prepare is None else self.prepare.exclude)

    def prompt_sources(self) -> list[Source]:
        """Where the prompts of `answers` come from."""
        own = [] if self.answers is None else self.answers.sources
        return own or ([] if self.prepare is None else self.prepare.sources)


def load_adaptation(path: str | Path, overrides: list[str] | None = None) -> AdaptRecipe:
    """Reads and checks a recipe, as `recipe.load` does. Raises RequestError with one line."""
    return read(AdaptRecipe, path, overrides)


def load_any(path: str | Path, overrides: list[str] | None = None) -> Recipe | AdaptRecipe:
    """A recipe of either kind: one that names a base adapts it. Raises RequestError with one line."""
    return load_adaptation(path, overrides) if "base" in read_yaml(path) else load(path, overrides)
