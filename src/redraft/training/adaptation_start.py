"""What an adaptation starts from: the base, its tokens that no text holds, and data prepared with its tokenizer."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from redraft.denoiser import adapters, families
from redraft.denoiser.adapter_config import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AdapterConfig,
    Reach,
    check_pattern,
)
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.transformer import Denoiser
from redraft.engine.backend import Backend
from redraft.engine.backends.onnx_backend import OnnxBackend
from redraft.engine.backends.torch_backend import TorchBackend
from redraft.errors import RequestError
from redraft.hub.store import ModelFolder, find, resolve
from redraft.hub.tokenizer import TOKENIZER, Tokenizer
from redraft.training.adaptation_entry import begin_late
from redraft.training.adaptation_recipe import AdapterSettings, AdaptRecipe
from redraft.training.answers import digest, make_answers
from redraft.training.data import Corpus
from redraft.training.distributed import device_for
from redraft.training.packing import Rows


def check(recipe: AdaptRecipe, processes: int) -> None:
    """Raises RequestError for settings that don't go together."""
    canvas, train = recipe.canvas, recipe.train
    if canvas.draft + canvas.prefix + canvas.revealed + canvas.hole <= 0:
        raise RequestError("canvas: one of the shares draft, prefix, revealed and hole must be above 0")
    if canvas.drawn > canvas.length:
        raise RequestError("canvas.slots must not exceed canvas.length")
    if canvas.length > train.row_length:
        raise RequestError("canvas.length must not exceed train.row_length")
    if train.batch_rows < processes:
        raise RequestError(f"train.batch_rows must be at least the number of processes, {processes}")
    if train.shard and train.batch_rows % processes:
        raise RequestError(
            f"train.shard needs as many rows on each process: make train.batch_rows a multiple of {processes}"
        )
    answers = recipe.answers
    if answers and answers.longest + answers.tokens > train.row_length:
        raise RequestError(
            "answers.longest and answers.tokens together must not exceed train.row_length: they share a row"
        )
    if answers and not recipe.prompt_sources():
        raise RequestError("answers needs prompts: name sources in answers or in prepare")
    if not (recipe.losses.ce or recipe.losses.kl or recipe.losses.acceptance or recipe.losses.fill):
        raise RequestError("losses: all weights are 0, so there is nothing to learn")
    own = recipe.adapter
    check_pattern(own.exclude, "adapter.exclude")
    if recipe.method == "full" and (own.frozen or own.start or own.markov_rank or own.confidence):
        raise RequestError(
            "method full has no adapter: adapter.frozen, start, markov_rank and confidence are of method adapter"
        )
    usual = AdapterSettings()
    for name in ("targets", "first_layer", "exclude", "gains", "canvas_entry"):
        if recipe.method == "full" and getattr(own, name) != getattr(usual, name):
            raise RequestError(f"method full has no adapter: adapter.{name} is of method adapter")
    if own.frozen and not (own.markov_rank or own.confidence):
        raise RequestError(
            "adapter.frozen leaves nothing to learn without heads: set adapter.markov_rank or confidence"
        )
    if own.frozen and own.start is None:
        raise RequestError(
            "adapter.frozen needs a trained adapter to begin with: name its run in adapter.start"
        )


def check_tokenizer(recipe: AdaptRecipe, found: ModelFolder) -> None:
    """Raises RequestError for data of another tokenizer than the base's."""
    data, base = Path(recipe.data), found.path
    if not (base / TOKENIZER).exists():
        raise RequestError(f"the base {base} has no {TOKENIZER}: not a complete model directory")
    if not (data / TOKENIZER).exists():
        raise RequestError(f"{data} holds no {TOKENIZER}; run redraft prepare with the recipe first")
    if (data / TOKENIZER).read_bytes() != (base / TOKENIZER).read_bytes():
        raise RequestError(
            f"{data} was prepared with another tokenizer than the base's: set prepare.tokenizer to {recipe.base.name}"
        )


def check_amount(recipe: AdaptRecipe) -> None:
    """Raises RequestError for less data than one batch takes."""
    train = recipe.train
    held = sum(Corpus(part.path, "train").about["tokens"] for part in recipe.corpora())
    if held < train.batch_rows * train.row_length:
        raise RequestError(
            f"the data holds {held} tokens, fewer than the {train.batch_rows} rows of {train.row_length} of one batch: "
            "lower train.batch_rows"
        )


def free_tokens(
    tokenizer: Tokenizer, config: DenoiserConfig, mask: str | None, null: str | None
) -> tuple[int, int]:
    """Ids for the mask and the null: those of the names given, else of what the base never uses.

    That is rows of its embedding past the tokenizer's vocabulary, or else special tokens that end nothing, stand for no
    role (bos, pad, …) and don't occur in the chat template; text can't hold them. Raises RequestError for a base that
    has no two of them.
    """
    template = tokenizer.template
    taken = set(template.variables.values()) if template else set()
    unused = [
        number
        for name, number in tokenizer.special_ids.items()
        if number not in config.eos_token_ids
        and name not in taken
        and not (template and name in template.source)
    ]
    named = {n for n in (mask, null) if n is not None}
    ids = {n: tokenizer.special_id(n) for n in named}
    spare = [*range(tokenizer.vocab_size, config.vocab_size), *sorted(unused)[::-1]]
    spare = [number for number in spare if number not in ids.values()]
    wanted = [ids[n] if n is not None else (spare.pop(0) if spare else None) for n in (mask, null)]
    if None in wanted or wanted[0] == wanted[1]:
        raise RequestError(
            "the base's tokenizer has no room for a mask and a null token: it uses all of its special tokens, and its "
            "embedding ends with its vocabulary; name two tokens in adapter.mask_token and adapter.null_token"
        )
    return int(wanted[0]), int(wanted[1])  # type: ignore[arg-type]


def adapter_config(recipe: AdaptRecipe, base: ModelFolder) -> AdapterConfig:
    """The recipe's adapter on this base."""
    own = recipe.adapter
    config = families.load_config(base.path)
    mask, null = free_tokens(Tokenizer.load(base.path), config, own.mask_token, own.null_token)
    return AdapterConfig(
        base=base.name if base.origin != "path" else os.path.abspath(base.path),
        rank=own.rank,
        alpha=own.alpha or float(own.rank),
        mask_token_id=mask,
        null_token_id=null,
        canvas_length=recipe.canvas.length,
        shift=own.shift,
        layers=recipe.base.layers,
        markov_rank=own.markov_rank,
        confidence=own.confidence,
        targets=own.targets,
        first_layer=own.first_layer,
        gains=own.gains,
        canvas_entry=own.canvas_entry,
        exclude=own.exclude,
    )


def network(recipe: AdaptRecipe, base: ModelFolder, device: torch.device) -> Denoiser:
    """The base, frozen, with a float32 adapter: drawn from the recipe's seed, or its start. bfloat16 on a GPU or where
    the recipe says so."""
    settings = adapter_config(recipe, base)
    dtype = torch.bfloat16 if device.type == "cuda" or recipe.train.bfloat16 else torch.float32
    bare = adapters.cut(families.load(base.path, dtype), settings.layers)
    check_fit(recipe, bare.config)
    check_exclude(settings.reach, bare)
    model = adapters.attach(bare, settings)
    adapter = adapters.adapter_of(model).float()
    adapter.reset_parameters(model, torch.Generator().manual_seed(recipe.train.seed))
    if recipe.adapter.start is not None:
        theirs = take_over(adapter, recipe.adapter.start, recipe.adapter.frozen)
        entry = settings.canvas_entry
        if entry is not None and entry > (theirs.canvas_entry or 0):
            begin_late(adapter, adapters.load(find(recipe.adapter.start).path, base.path), entry, recipe)
    if recipe.adapter.frozen:
        adapter.slots.requires_grad_(False)
        adapter.parts.requires_grad_(False)
    return model.to(device)


def check_exclude(reach: Reach, base: Denoiser) -> None:
    """Raises RequestError for a pattern that takes nothing out of the adapter's reach: it is misspelt."""
    whole = dataclasses.replace(reach, exclude=None)
    names = [name for name, _ in base.named_modules()]
    if reach.exclude is not None and not any(whole.acts(name) and not reach.acts(name) for name in names):
        raise RequestError(
            f"adapter.exclude {reach.exclude!r} matches no module that the adapter acts on; names are like "
            f"{next(name for name in names if whole.acts(name))}"
        )


# What a start and the recipe must agree on.
CONVENTIONS = ("base", "mask_token_id", "null_token_id", "canvas_length", "shift", "layers")


def take_over(adapter: adapters.Adapter, start: str, frozen: bool) -> AdapterConfig:
    """The numbers of a trained adapter (a run, a folder or a model's name), and of its heads if they are of the same
    make. Where it doesn't reach or has a smaller rank, ours stays as drawn, which changes nothing yet. Returns that
    adapter's settings. Raises RequestError when it has a larger rank or other conventions than the recipe, or another
    reach though `frozen`."""
    folder = find(start).path
    if not (folder / ADAPTER_CONFIG).exists():
        raise RequestError(f"adapter.start: {folder} is no adapter")
    theirs, ours = AdapterConfig.read(folder), adapter.settings
    heads = (theirs.markov_rank, theirs.confidence) == (ours.markov_rank, ours.confidence)
    for name in CONVENTIONS:
        has, due = getattr(theirs, name), getattr(ours, name)
        if has != due:
            raise RequestError(
                f"adapter.start: {folder} doesn't fit the recipe: its {name} is {has}, the recipe's {due}"
            )
    if theirs.rank > ours.rank:
        raise RequestError(
            f"adapter.start: {folder} doesn't fit the recipe: its rank is {theirs.rank}, the recipe's only {ours.rank}"
        )
    if frozen and (theirs.reach, theirs.canvas_entry) != (ours.reach, ours.canvas_entry):
        raise RequestError(
            f"adapter.frozen: {folder} must stay as it is: give its own rank, targets, first_layer, exclude, gains "
            "and canvas_entry"
        )
    adapters.grow(adapter, folder / ADAPTER_WEIGHTS, theirs, heads)
    return theirs


def check_fit(recipe: AdaptRecipe, base: DenoiserConfig) -> None:
    """Raises RequestError for rows longer than the base's context, and for an adapter that begins behind its layers."""
    for name in ("first_layer", "canvas_entry"):
        first = getattr(recipe.adapter, name) or 0
        if first >= base.num_hidden_layers:
            raise RequestError(
                f"adapter.{name} is {first}, but the base's last layer is number {base.num_hidden_layers - 1}"
            )
    if recipe.train.row_length + recipe.canvas.length > base.max_position_embeddings:
        raise RequestError(
            f"train.row_length and a canvas exceed the {base.max_position_embeddings} positions of the base"
        )


def find_base(recipe: AdaptRecipe) -> ModelFolder:
    """The base's folder, fetched if need be."""
    return resolve(recipe.base.name)


def held_out_rows(recipe: AdaptRecipe) -> Rows | None:
    """Rows of the holdout, of answers where the recipe has them; None without one."""
    valid = Corpus(recipe.data if recipe.answers is None else recipe.answers.out, "valid")
    usable = len(valid) and int(np.max(valid.lengths)) > 2
    return Rows([valid], [1.0], recipe.train.row_length, recipe.train.seed) if usable else None


def answering(recipe: AdaptRecipe, base: ModelFolder, device: torch.device) -> tuple[Backend, str]:
    """What writes the base's answers, and a name for its weights: on a CPU the engine's own graph, whose AR self live
    drafts will be judged by, several times as fast as torch; torch on a GPU, and for a base that is cut."""
    if device.type == "cpu" and recipe.base.layers is None:
        check_fit(
            recipe, families.load_config(base.path)
        )  # as network does: before the answers, not behind them
        graph = OnnxBackend.load(base.path, threads=recipe.train.threads or 0)
        return graph, digest(graph.name, graph.weights.values())
    model = network(recipe, base, device)
    held = (p for name, p in model.named_parameters() if not name.startswith("adapter."))
    return TorchBackend(model), digest(
        "torch", (p.detach().flatten()[:64].float().cpu().numpy() for p in held)
    )


def write_answers(recipe: AdaptRecipe, tell: Callable[[str], None]) -> None:
    """The corpus of the AR self's answers, or as much of it as a slice has time for."""
    assert recipe.answers is not None
    train = recipe.train
    check(recipe, int(os.environ.get("WORLD_SIZE", "1")))
    check_tokenizer(recipe, base := find_base(recipe))
    if train.threads:
        torch.set_num_threads(train.threads)
    backend, weights = answering(recipe, base, device_for(train.device))
    limit = None if train.slice_minutes is None else 60 * train.slice_minutes
    sources, data, made = recipe.prompt_sources(), Path(recipe.data), adapter_config(recipe, base)
    done = make_answers(
        backend,
        weights,
        data,
        recipe.answers,
        sources,
        seed=train.seed,
        seconds=limit,
        message=tell,
        exclude=recipe.barred(),
        banned=(made.mask_token_id, made.null_token_id),  # which the adapted model never writes
    )
    if not done:
        tell(f"{recipe.answers.out} isn't complete yet: run the same command again")
