"""What a run starts from, checked against one another: recipe, prepared data, tokenizer, network, corruption."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from redraft import corruption
from redraft.denoiser import checkpoint
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.transformer import Denoiser
from redraft.errors import RequestError
from redraft.hub.runs import newest
from redraft.training.adaptation_recipe import AdaptRecipe
from redraft.training.data import Corpus
from redraft.training.packing import Rows
from redraft.training.pairs import EditCorpus
from redraft.training.recipe import Recipe
from redraft.training.tokenizer import DRAFT, EOS, MASK, NULL, USER


def check_sizes(recipe: Recipe, processes: int) -> None:
    """Raises RequestError for sizes that don't go together."""
    train, canvas = recipe.train, recipe.canvas
    if train.batch_rows < processes * train.micro_batches:
        raise RequestError("train.batch_rows must be at least micro_batches times the number of processes")
    if len(canvas.lengths) != len(canvas.length_weights) or not canvas.lengths:
        raise RequestError("canvas.lengths and canvas.length_weights must have the same number of entries")
    if sum(canvas.length_weights) <= 0:
        raise RequestError("canvas.length_weights must hold a weight above 0")
    if max(canvas.lengths) > train.row_length:
        raise RequestError("canvas.lengths must not exceed train.row_length")
    if recipe.init is None and train.row_length > recipe.model.max_position_embeddings:
        raise RequestError("train.row_length exceeds model.max_position_embeddings")
    if recipe.objective.weighting == "elbo" and any(part.draft for part in recipe.corpora()):
        raise RequestError("a mixture with draft has no bound to weight by; objective.weighting must be flat")
    if any(part.edits for part in recipe.corpora()):
        if recipe.objective.weighting == "elbo":
            raise RequestError(
                "a mixture with edits has no bound to weight by; objective.weighting must be flat"
            )
        if recipe.model.layout != "causal_context":
            raise RequestError("edits start anywhere in a text: model.layout must be causal_context")
    if recipe.edits and recipe.edits.longest > train.row_length:
        raise RequestError("edits.longest must not exceed train.row_length: an instruction is never cut")
    if recipe.model.self_conditioning:
        raise RequestError("model.self_conditioning is for loading others' checkpoints; training needs false")


def training_rows(recipe: Recipe | AdaptRecipe) -> Rows:
    """The recipe's mixture; RequestError for a corpus that isn't there or has another tokenizer than the run."""
    mixture, data = recipe.corpora(), Path(recipe.data)
    for part in mixture:
        own = Path(part.path) / "tokenizer.json"
        if own.exists() and own.read_bytes() != (data / "tokenizer.json").read_bytes():
            raise RequestError(
                f"{part.path} was prepared with another tokenizer than {data}; prepare it anew"
            )
    lengths = recipe.canvas.lengths if isinstance(recipe, Recipe) else []
    if not lengths and any(m.edits for m in mixture):
        raise RequestError("edits are a mixture's of redraft train; redraft adapt lays its own canvases")
    corpora = [EditCorpus(m.path, "train", lengths) if m.edits else Corpus(m.path, "train") for m in mixture]
    return Rows(corpora, [m.weight for m in mixture], recipe.train.row_length, recipe.train.seed)


def held_out_documents(recipe: Recipe, config: DenoiserConfig) -> list[np.ndarray]:
    """The first documents of the holdout, cut to whole canvases within the model's context."""
    most = config.max_position_embeddings // config.canvas_length * config.canvas_length
    held = Corpus(recipe.data, "valid")
    return [held[i][:most] for i in range(min(recipe.train.evaluate_rows, len(held)))]


def denoiser_config(recipe: Recipe, tokenizer: Tokenizer) -> DenoiserConfig:
    """The recipe's sizes with the special tokens of the prepared tokenizer."""
    ids = {name: tokenizer.token_to_id(name) for name in (EOS, USER, MASK, NULL, DRAFT)}
    for name in (EOS, MASK, NULL):
        if ids[name] is None:
            raise RequestError(f"the tokenizer in {recipe.data} has no {name}; make it with redraft prepare")
    stops = [i for i in (ids[EOS], ids[USER]) if i is not None]
    lengths, weights = recipe.canvas.lengths, recipe.canvas.length_weights
    return DenoiserConfig(
        vocab_size=tokenizer.get_vocab_size(),
        canvas_length=lengths[int(np.argmax(weights))],
        mask_token_id=ids[MASK],
        null_token_id=ids[NULL],
        draft_token_id=ids[DRAFT] if any(part.draft for part in recipe.corpora()) else None,
        eos_token_ids=tuple(stops),
        **recipe.model.model_dump(),
    )


def forward_process(recipe: Recipe, config: DenoiserConfig) -> corruption.Process:
    settings = recipe.corruption
    return corruption.process(
        settings.kind,
        schedule=settings.schedule,
        vocab_size=config.vocab_size,
        mask_id=config.mask_token_id,
        uniform_share=settings.uniform_share,
    )


def network(recipe: Recipe, tokenizer: Tokenizer) -> Denoiser:
    """Random weights drawn from the recipe's seed, or those of `init`, in training mode on the CPU."""
    wanted = denoiser_config(recipe, tokenizer)
    drafts = any(part.draft for part in recipe.corpora())
    if drafts and wanted.draft_token_id is None:
        raise RequestError(f"a mixture with draft needs {DRAFT} in the tokenizer; prepare the data anew")
    if recipe.init is None:
        model = Denoiser(wanted)
        model.reset_parameters(torch.Generator().manual_seed(recipe.train.seed))
        return model
    model = checkpoint.load(newest(recipe.init)).train()
    have = model.config
    same = all(getattr(have, n) == getattr(wanted, n) for n in ("mask_token_id", "null_token_id"))
    if have.vocab_size < wanted.vocab_size or not same:
        raise RequestError(
            f"{recipe.init} has other tokens than {recipe.data}: prepare with its own tokenizer"
        )
    if have.shift or have.self_conditioning:
        raise RequestError(f"{recipe.init} has shift or self-conditioning, which this training doesn't teach")
    if drafts and have.draft_token_id is None:
        _open_drafts(model, wanted.draft_token_id)
    if recipe.train.row_length > have.max_position_embeddings:
        raise RequestError(f"train.row_length exceeds the {have.max_position_embeddings} of {recipe.init}")
    return model


def _open_drafts(model: Denoiser, draft: int | None) -> None:
    """Before a model is first distilled its draft token means what its mask means."""
    model.config = model.model.config = dataclasses.replace(model.config, draft_token_id=draft)
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding[draft] = embedding[model.config.mask_token_id]
