"""Recipes: one YAML file a training run. Every key is checked; a typing slip names the key it meant."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from redraft.errors import RequestError

Share = Annotated[float, Field(ge=0, le=1)]


Kind = TypeVar("Kind", bound=BaseModel)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Section):
    """Text to learn from: a .txt, .jsonl, .jsonl.gz or .jsonl.xz file, or a wheel, whose records are its Python files
    (field "text") or the functions in them (field "function"). A * in a path stands for all files that match.

    format: text (a record is a document, and so is a whole .txt file), dialogue (lines "User: …" and
    "Assistant: …"), messages (a list of {role, content}) or question (what a user says, to be answered). where: keep
    records whose fields equal these.
    """

    path: str
    format: Literal["text", "dialogue", "messages", "question"] = "text"
    field: str = "text"
    where: dict[str, str] = {}
    limit: int | None = Field(default=None, ge=1, description="at most this many records")


class Prepare(Section):
    """From text to a tokenizer and memory-mapped shards: `redraft prepare`.

    tokenizer: a model's name or folder whose tokenizer and chat template are used, in place of training one. exclude:
    what one will be measured on; no document that holds such a text is taken.
    """

    sources: list[Source]
    exclude: list[Source] = []
    tests: list[Source] = []
    tokenizer: str | None = None
    vocab_size: int = Field(default=4096, ge=300, le=65536)
    holdout: int = Field(
        default=300, ge=0, description="documents of the sources kept out of training, chosen by id"
    )
    tokenizer_sample: int | None = Field(
        default=None, ge=1, description="documents the tokenizer learns from; all by default"
    )
    seed: int = Field(default=0, ge=0)


class Model(Section):
    """Sizes of the network; see denoiser.DenoiserConfig."""

    hidden_size: int = Field(default=192, ge=8)
    intermediate_size: int = Field(default=512, ge=8)
    num_hidden_layers: int = Field(default=6, ge=1)
    num_attention_heads: int = Field(default=3, ge=1)
    num_key_value_heads: int = Field(default=3, ge=1)
    head_dim: int = Field(default=64, ge=2)
    max_position_embeddings: int = Field(default=1024, ge=8)
    rope_theta: float = Field(default=10000.0, gt=0)
    qk_norm: bool = True
    self_conditioning: bool = False
    layout: Literal["causal_context", "block_causal", "full"] = "causal_context"


class Corruption(Section):
    """The forward process; see redraft.corruption."""

    kind: Literal["absorbing", "uniform", "hybrid"] = "hybrid"
    schedule: Literal["linear", "cosine", "loglinear"] = "linear"
    uniform_share: Share = Field(
        default=0.1, description="hybrid: the largest share of slots replaced by random tokens"
    )


class Canvas(Section):
    """How training canvases are laid over the text.

    lengths: canvas lengths, drawn for each batch by `length_weights`. gap_share: canvases with gaps between locked
    text, padded with nulls (filling). insert_share: canvases with a null after every `insert_every` tokens
    (editing). pin_share: plain canvases with a few locked tokens. draft_share: canvases corrupted wholly (t = 1),
    the state that generation starts from. copies: noisy copies of each canvas, 2 being complementary (t and 1 - t).
    """

    lengths: list[Annotated[int, Field(ge=1)]] = [8, 16, 32]
    length_weights: list[Annotated[float, Field(ge=0)]] = [1.0, 2.0, 1.0]
    copies: Literal[1, 2] = 2
    gap_share: Share = 0.2
    insert_share: Share = 0.1
    insert_every: int = Field(default=8, ge=1)
    pin_share: Share = 0.1
    draft_share: Share = 0.1


class Objective(Section):
    """loss = canvas_weight * canvas loss + ar_weight * AR loss.

    weighting: flat cross-entropy over corrupted slots, or the NELBO's own weights cut at `max_weight`.
    right_weight: weight of visible slots that hold the right token, so that doubt is calibrated.
    draft_decay: slots over which the weight of a draft's slots falls to 1/e, the canvas's sum kept: a drafted token
    counts only if all before it were right (DFlash).
    """

    canvas_weight: float = Field(default=1.0, ge=0)
    ar_weight: float = Field(default=1.0, ge=0)
    weighting: Literal["flat", "elbo"] = "flat"
    max_weight: float = Field(default=4.0, gt=0)
    right_weight: float = Field(default=0.2, ge=0)
    draft_decay: float | None = Field(default=None, gt=0)


class Optimizer(Section):
    """Muon on the matrices of the layers, AdamW on the rest; warm-up, stable, decay."""

    learning_rate: float = Field(
        default=0.02, gt=0, description="Muon's, on matrices scaled to unit update RMS"
    )
    adam_learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    warmup: Share = 0.03
    decay: Share = Field(default=0.3, description="share of the run in which the rate falls linearly to 0")
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.997, ge=0, lt=1)


class CanvasShares(Section):
    """Shares of `canvas` that one corpus of the mixture has otherwise; see Canvas. Of edits none count: their canvases
    are given."""

    gap_share: Share | None = None
    insert_share: Share | None = None
    pin_share: Share | None = None
    draft_share: Share | None = None


class Mixture(Section):
    """One prepared corpus in the training mix. ar: whether the AR loss is taken on it. draft: its canvases hide behind
    the draft token in place of the mask: they are learnt apart, and what the mask tells stays calibrated. edits: a
    corpus made by an `edits` section, whose canvases start from text to be changed. canvas: shares of its own."""

    path: str
    weight: float = Field(default=1.0, gt=0)
    ar: bool = True
    draft: bool = False
    edits: bool = False
    canvas: CanvasShares = CanvasShares()

    def canvas_of(self, shared: Canvas) -> Canvas:
        """The recipe's canvas settings with this corpus's own shares."""
        return shared.model_copy(update=self.canvas.model_dump(exclude_none=True))


class Train(Section):
    """The run itself: `redraft train`."""

    steps: int = Field(default=2000, ge=1)
    batch_rows: int = Field(default=16, ge=1)
    row_length: int = Field(default=256, ge=8)
    micro_batches: int = Field(default=1, ge=1)
    minutes: float | None = Field(
        default=None, gt=0, description="wall-clock budget: the schedule follows time, not steps"
    )
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False
    log_every: int = Field(default=10, ge=1)
    evaluate_every: int = Field(default=500, ge=1)
    evaluate_rows: int = Field(default=64, ge=1)
    save_every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)
    sample_prompts: list[str] = ["I need a table for two in San Jose."]


class Distill(Section):
    """Sequence-level distillation: the canvas learns the AR self's own low-temperature continuations.

    out: the corpus of continuations, made from the recipe's `init` and `data` before training unless it is there;
    the mixture names it. prompt_lengths: beginnings of documents that are continued, in tokens.
    """

    out: str
    prompts: int = Field(default=8192, ge=1)
    prompt_lengths: list[Annotated[int, Field(ge=1)]] = [16, 48, 80, 112, 144]
    tokens: int = Field(default=96, ge=1)
    temperature: float = Field(default=0.4, ge=0)
    batch: int = Field(default=256, ge=1)


class Edits(Section):
    """Texts to edit: canvases that start from damaged text, or from text that an instruction changes.

    out: the corpus, made from `data` before training unless it is there; the mixture names it with `edits: true`.
    documents: dialogues under windows of text with errors to find; untouched: share of windows without any; plain:
    share of these documents without role tokens, as ordinary text. instructions: documents of an instruction, a text
    and what the one makes of the other. longest: tokens of a document, at most. Canvas lengths and the distance of
    null slots are those of `canvas`.
    """

    out: str
    documents: int = Field(default=12000, ge=0)
    instructions: int = Field(default=12000, ge=0)
    longest: int = Field(default=256, ge=32)
    untouched: Share = 0.4
    plain: Share = 0.3


class Recipe(Section):
    """A whole recipe. data: folder made by prepare. init: a model folder or a run to start from, in place of
    random weights."""

    name: str
    data: str
    prepare: Prepare | None = None
    mixture: list[Mixture] = []
    init: str | None = None
    model: Model = Model()
    corruption: Corruption = Corruption()
    canvas: Canvas = Canvas()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    distill: Distill | None = None
    edits: Edits | None = None

    def corpora(self) -> list[Mixture]:
        return self.mixture or [Mixture(path=self.data)]


def load(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Reads and checks a recipe of `redraft train`; see `read`."""
    return read(Recipe, path, overrides)


def read(kind: type[Kind], path: str | Path, overrides: list[str] | None = None) -> Kind:
    """A recipe of that kind. overrides: "a.b=value" strings, the value read as YAML.

    Raises RequestError with one line for a missing file, bad YAML, an unknown key (naming the nearest) or a bad value.
    """
    raw = read_yaml(path)
    for override in overrides or []:
        _apply(raw, override)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise RequestError(f"recipe {path}: {_explain(error, kind)}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A recipe's file as it stands. Raises RequestError unless it is a mapping in YAML."""
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"recipe {path} can't be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise RequestError(f"recipe {path} must be a mapping of sections, like recipes/tiny.yaml")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RequestError(f"--set takes key=value, like train.steps=100; got {override!r}")
    *parents, last = key.split(".")
    node: Any = raw
    for name in parents:
        if isinstance(node, list) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        elif isinstance(node, dict):
            if node.get(name) is None:
                node[name] = {}
            node = node[name]
        else:
            raise RequestError(f"--set {key}: {name!r} is not a section")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RequestError(f"--set {key}: {value!r} is not a YAML value") from None
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = parsed
    elif isinstance(node, dict):
        node[last] = parsed
    else:
        raise RequestError(f"--set {key}: {last!r} can't be set there")


def _section_at(location: tuple[int | str, ...], kind: type[BaseModel]) -> type[BaseModel] | None:
    """The section of such a recipe that holds the key at `location`."""
    section: type[BaseModel] | None = kind
    for name in location[:-1]:
        if isinstance(name, int) or section is None:
            continue
        field = section.model_fields.get(name)
        section = next(iter(_sections_in(field.annotation)), None) if field else None
    return section


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for part in getattr(annotation, "__args__", ()) for s in _sections_in(part)]


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    # A slip in a required key is also a missing key: the slip is what to tell.
    first = min(error.errors(), key=lambda e: e["type"] not in ("extra_forbidden", "invalid_key"))
    where = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        section = _section_at(first["loc"], kind)
        known = list(section.model_fields) if section else []
        near = difflib.get_close_matches(str(first["loc"][-1]), known, 1, 0.4)
        return f"unknown key {where}" + (
            f" (did you mean {near[0]}?)" if near else f"; one of {', '.join(known)}"
        )
    return f"{where}: {first['msg'].lower()}"
