"""How likely a model finds a given text: exactly in the encode role, by the diffusion bound in the denoise
role."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.backend import Backend, Context, Pass
from redraft.errors import RequestError

STRATA, REPLICATES = 4, 4


@dataclass(frozen=True)
class Bound:
    """Nats. ar_nll: -log p of the scored tokens given those before, None where the encode role isn't causal.
    nelbo: an unbiased estimate of an upper bound of the same by the absorbing process, nelbo_se its standard
    error; None without a mask token. tokens: how many are scored. ar_greedy: whether each of them is the encode
    role's likeliest."""

    ar_nll: float | None
    nelbo: float | None
    nelbo_se: float | None
    tokens: int
    ar_greedy: bool | None = None


@dataclass(frozen=True)
class Block:
    """One canvas over a text: slots hold tokens start … stop - 1, the first `given` of them known."""

    start: int
    stop: int
    given: int

    @property
    def slots(self) -> int:
        return self.stop - self.start - self.given


def likelihood(
    backend: Backend,
    tokens: np.ndarray,
    canvas_length: int | None = None,
    strata: int = STRATA,
    replicates: int = REPLICATES,
    seed: int = 0,
    given: int = 1,
) -> Bound:
    """Scores int64 [n] from token `given` on; those before are given, at least the first, since nothing predicts
    it in the encode role.

    The bound is the sum over canvases of E over k uniform in 1 … L of (L / k) * sum of -log p(x_i | rest,
    context) over k slots masked at random, which equals the integral over t of the absorbing process's NELBO
    (Ou et al. 2024; LLaDA, eq. 6). Of the k, `strata` are spread evenly from a random start; `replicates`
    such sets give the standard error; with replicates 0 there is no bound. A canvas of one slot makes it the
    exact chain-rule NLL of the denoise role.

    Raises RequestError for a text with nothing behind what is given, or longer than the context.
    """
    config = backend.config
    if not 1 <= given < len(tokens):
        raise RequestError("the text is too short to be scored: it needs at least two tokens")
    if len(tokens) > config.max_position_embeddings:
        limit = config.max_position_embeddings
        raise RequestError(f"the text has {len(tokens)} tokens and the context {limit}: score it in parts")
    context = backend.new_context(len(tokens) + config.canvas_length)
    ar_nll, ar_greedy = _encode(backend, context, tokens, given)
    if config.mask_token_id is None or not replicates:
        return Bound(ar_nll, None, None, len(tokens) - given, ar_greedy)
    rng = np.random.Generator(np.random.Philox(seed))
    means, variances = [], []
    for block in blocks(config, len(tokens), canvas_length or config.canvas_length, given):
        estimates = [
            np.mean(
                [_term(backend, context, tokens, block, k, rng) for k in _sizes(block.slots, strata, rng)]
            )
            for _ in range(replicates)
        ]
        means.append(np.mean(estimates))
        variances.append(np.var(estimates, ddof=1) / replicates if replicates > 1 else 0.0)
    return Bound(
        ar_nll, float(np.sum(means)), float(np.sqrt(np.sum(variances))), len(tokens) - given, ar_greedy
    )


def blocks(config: DenoiserConfig, length: int, canvas_length: int, given: int = 1) -> Iterator[Block]:
    """The canvases over tokens given … length - 1, last to first, so that one context serves by being
    truncated."""
    if config.layout == "full":
        yield Block(0, length, given)
        return
    if config.layout == "block_causal":
        size = config.canvas_length
        starts = range((length - 1) // size * size, -1, -size)
        spans = [(start, min(start + size, length)) for start in starts]
        yield from (Block(a, b, max(0, given - a)) for a, b in spans if b > given)
        return
    for start in reversed(range(given, length, canvas_length)):
        yield Block(start, min(start + canvas_length, length), 0)


def _encode(
    backend: Backend, context: Context, tokens: np.ndarray, given: int
) -> tuple[float | None, bool | None]:
    """Reads the text into the context; where rows see only what comes before them, -log p of its tokens from `given`
    on, and whether each is the likeliest."""
    config = backend.config
    if config.layout == "full":
        return None, None
    if config.layout == "block_causal":
        whole = len(tokens) // config.canvas_length * config.canvas_length
        if whole:
            backend.forward([Pass(context, tokens[:whole])])
        return None, None
    rows = backend.forward([Pass(context, tokens, "all")])[0].encode[given - 1 : -1]
    never = config.special_slot_ids
    allowed = np.where(np.isin(np.arange(rows.shape[1]), never), -np.inf, rows)
    greedy = bool((allowed.argmax(axis=-1) == tokens[given:]).all())
    return float(nll(rows, tokens[given:], never).sum()), greedy


def _sizes(slots: int, strata: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [strata]: numbers of masked slots, each uniform in 1 … slots, evenly spread among one another."""
    places = (np.arange(strata) / strata + rng.random()) % 1.0
    return np.minimum((places * slots).astype(np.int64) + 1, slots)


def _term(
    backend: Backend,
    context: Context,
    tokens: np.ndarray,
    block: Block,
    masked: int,
    rng: np.random.Generator,
) -> float:
    """(L / k) * sum of -log p over k slots masked at random, in nats."""
    config = backend.config
    rows = np.sort(block.given + rng.choice(block.slots, size=masked, replace=False))
    canvas = tokens[block.start : block.stop].copy()
    canvas[rows] = config.mask_token_id
    locked = np.arange(len(canvas)) < block.given
    # A shifted canvas reads its first slot off the last clean row: read that row (or its block) anew.
    again = (config.canvas_length if config.layout == "block_causal" else 1) if config.shift else 0
    start = 0 if config.layout == "full" else block.start
    again = min(again, start)
    if context.length > start - again:
        context.truncate(start - again)
    result = backend.forward(
        [Pass(context, tokens[start - again : start], canvas=canvas, locked=locked, canvas_rows=rows)]
    )[0]
    assert result.canvas is not None
    losses = nll(result.canvas, tokens[block.start + rows], config.noise_token_ids)
    return block.slots / masked * float(losses.sum())


def nll(logits: np.ndarray, targets: np.ndarray, never: tuple[int, ...]) -> np.ndarray:
    """float64 [rows]: -log softmax(logits)[target], with the tokens `never` left out of the softmax."""
    wide = logits.astype(np.float64)
    wide[:, list(never)] = -np.inf
    highest = wide.max(axis=-1)
    log_total = highest + np.log(np.exp(wide - highest[:, None]).sum(axis=-1))
    out: np.ndarray = log_total - wide[np.arange(len(targets)), targets]
    return out
