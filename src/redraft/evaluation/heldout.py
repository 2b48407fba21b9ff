"""eval likelihood: how likely a model finds dialogues that it was not trained on.

AR nats are exact. The diffusion bound is a Monte Carlo estimate, given with its standard error; it bounds the same
text's negative log-likelihood from above, so the two may be compared within one model, and bounds of models with
different canvases or tokenizers only with care.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from redraft.errors import RequestError
from redraft.evaluation.writing import Progress
from redraft.hub.tokenizer import Tokenizer

GROUP = 200  # documents between two signs of life; alike in length, they fill batches better


@dataclass(frozen=True)
class HeldOutSettings:
    """documents: how many, drawn by seed; None for all. copies: corrupted copies of each canvas, an even number."""

    split: str = "valid"
    documents: int | None = None
    copies: int = 4
    canvas: int | None = None
    batch: int = 4
    seed: int = 0


def likelihood(
    folder: Path, data: Path, settings: HeldOutSettings, progress: Progress = lambda text: None
) -> dict[str, Any]:
    """Nats a token and bits a byte of a split of a prepared folder, by the model in `folder`, on torch.

    ar: the encode role, of every token but each document's first. nelbo: the denoise role, over canvases from each
    document's beginning, nulls included; nelbo_se: Monte Carlo standard error. Raises RequestError without torch, for
    another tokenizer's data, for a split without documents, and for a model without mask or null token.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        raise RequestError("eval likelihood needs torch: pip install 'redraft[train]'") from None
    from redraft.denoiser import families
    from redraft.training.data import Corpus
    from redraft.training.validate import held_out

    model = families.load(folder)
    config = model.config
    if config.mask_token_id is None or config.null_token_id is None:
        raise RequestError("eval likelihood needs a model with mask and null tokens")
    if settings.copies < 2 or settings.copies % 2:
        raise RequestError("--copies must be an even number: two halves give the standard error")
    tokenizer = Tokenizer.load(folder)
    corpus = Corpus(data, settings.split)
    documents, byte_count = chosen(corpus, tokenizer, settings)
    longest = max(map(len, documents))
    if longest > config.max_position_embeddings:
        raise RequestError(
            f"a document has {longest} tokens and the context {config.max_position_embeddings}"
        )
    canvas = settings.canvas or config.canvas_length
    parts = []
    for at in range(0, len(documents), GROUP):
        progress(f"{settings.split}: {at} of {len(documents)} documents")
        group = documents[at : at + GROUP]
        parts.append(
            held_out(_objective(model), group, canvas, settings.copies, settings.batch, settings.seed + at)
        )
    nelbo = sum(p.nelbo for p in parts)
    # None where the encode role isn't causal and so gives no likelihood.
    ar = sum(p.ar_nll or 0.0 for p in parts) if parts[0].ar_nll is not None else None
    error = sum(p.nelbo_se**2 for p in parts) ** 0.5
    tokens = sum(p.ar_tokens for p in parts)
    return {
        "split": settings.split,
        "documents": len(documents),
        "of_documents": len(corpus),
        "tokens": tokens,
        "bytes": byte_count,
        "canvas": canvas,
        "copies": settings.copies,
        "ar_nats_per_token": None if ar is None else ar / tokens,
        "ar_bits_per_byte": None if ar is None else ar / log(2) / byte_count,
        "nelbo_nats_per_token": nelbo / tokens,
        "nelbo_nats_per_token_se": error / tokens,
        "nelbo_bits_per_byte": nelbo / log(2) / byte_count,
        "nelbo_bits_per_byte_se": error / log(2) / byte_count,
    }


def _objective(model: Any) -> Any:
    """held_out reads the network through the training objective, whose loss weights it doesn't use."""
    from redraft.corruption import process
    from redraft.training.objective import JointObjective
    from redraft.training.recipe import Objective

    absorbing = process("absorbing", model.config.vocab_size, model.config.mask_token_id)
    return JointObjective(model, absorbing, Objective())


def chosen(corpus: Any, tokenizer: Tokenizer, settings: HeldOutSettings) -> tuple[list[np.ndarray], int]:
    """The documents and their bytes as transcripts: the whole split's as it was prepared, or those of a draw."""
    if not len(corpus):
        raise RequestError(f"the {settings.split} split holds no documents")
    if int(corpus.tokens.max()) >= tokenizer.vocab_size:
        raise RequestError("the data was prepared with another tokenizer than the model's")
    if settings.documents is None or settings.documents >= len(corpus):
        return [corpus[i] for i in range(len(corpus))], int(corpus.about["bytes"])
    order = np.random.default_rng(settings.seed).permutation(len(corpus))
    documents = [corpus[i] for i in np.sort(order[: settings.documents])]
    return documents, transcript_bytes(documents, tokenizer)


def transcript_bytes(documents: Sequence[np.ndarray], tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of documents written as prepared: "User: …" lines, a newline between two, or the bare text."""
    roles = {tokenizer.special_ids[n]: r for n, r in _ROLES.items() if n in tokenizer.special_ids}
    total = 0
    for document in documents:
        turns = 0
        for token in document.tolist():
            if token in roles:
                total += len(f"{roles[token]}: ") + (1 if turns else 0)
                turns += 1
            else:
                total += len(tokenizer.token_bytes(token))
    return total


_ROLES = {"<|user|>": "User", "<|assistant|>": "Assistant", "<|system|>": "System"}


def lines(told: dict[str, Any]) -> list[str]:
    """The report for a person."""
    return [
        f"{told['split']}: {told['documents']} documents, {told['tokens']} tokens, {told['bytes']} bytes",
        "  AR     none: the encode role isn't causal"
        if told["ar_nats_per_token"] is None
        else f"  AR     {told['ar_nats_per_token']:.4f} nats a token, {told['ar_bits_per_byte']:.4f} bits a byte",
        f"  NELBO  {told['nelbo_nats_per_token']:.4f} ± {told['nelbo_nats_per_token_se']:.4f} nats a token, "
        f"{told['nelbo_bits_per_byte']:.4f} ± {told['nelbo_bits_per_byte_se']:.4f} bits a byte "
        f"(canvas {told['canvas']})",
    ]
