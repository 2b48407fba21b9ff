"""What can be said of generated text: how likely the AR self finds it, how varied it is, how much it repeats itself.

Token ids in, plain numbers out. Likelihood alone flatters a sampler that repeats itself and variety alone one that
babbles, so the two are always shown together (Generative Frontiers, 2604.02718).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from redraft.engine.backend import Backend, Pass
from redraft.errors import RequestError

Tokens = Sequence[int] | np.ndarray


def ngrams(tokens: Tokens, n: int) -> list[tuple[int, ...]]:
    """All runs of n tokens, in order; none when there are fewer than n."""
    ids = [int(t) for t in tokens]
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def distinct(texts: Sequence[Tokens], n: int) -> float:
    """Different n-grams over all texts ÷ n-grams (Li et al. 2016), none across two texts; 0.0 when there is none.

    It falls as texts grow, so compare it over equally many tokens only (`shortened`).
    """
    found = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(found)) / len(found) if found else 0.0


def unigram_entropy(tokens: Tokens) -> float:
    """Entropy in nats of one text's own token frequencies; at most log of its length. 0.0 for an empty text."""
    if not len(tokens):
        return 0.0
    _, counts = np.unique(np.asarray(tokens, dtype=np.int64), return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def repetition(tokens: Tokens, n: int = 4) -> float:
    """Share of a text's n-grams that stood in it before (seq-rep-n, Welleck et al. 2020)."""
    found = ngrams(tokens, n)
    return 1.0 - len(set(found)) / len(found) if found else 0.0


def shortened(groups: Sequence[Sequence[Tokens]]) -> list[list[Tokens]]:
    """The same groups of texts, all cut to the length of the shortest text among them."""
    shortest = min((len(text) for texts in groups for text in texts), default=0)
    return [[text[:shortest] for text in texts] for texts in groups]


def nll_of_rows(logits: np.ndarray, targets: np.ndarray, never: Sequence[int] = ()) -> np.ndarray:
    """float64 [n]: -log softmax(logits [n, V])[target] in nats, with the tokens `never` left out of the softmax."""
    wide = logits.astype(np.float64)
    wide[:, list(never)] = -np.inf
    highest = wide.max(axis=-1)
    log_total = highest + np.log(np.exp(wide - highest[:, None]).sum(axis=-1))
    out: np.ndarray = log_total - wide[np.arange(len(targets)), targets]
    return out


def continuation_nll(
    backend: Backend, prompts: Sequence[Tokens], texts: Sequence[Tokens], batch: int = 8
) -> list[np.ndarray]:
    """Nats of each token of each text, float64, given its prompt and the text before it, in the encode role: exact.

    What the plain AR self says at temperature 1; tokens that exist on canvases only are impossible for it. `batch`
    texts share a network evaluation, which changes no result. Raises RequestError for an empty prompt, or where the
    encode role isn't causal and so has no such likelihood.
    """
    if backend.config.layout != "causal_context":
        raise RequestError(f"a model with layout {backend.config.layout} has no AR self to judge text by")
    if any(not len(prompt) for prompt in prompts):
        raise RequestError("the prompt is empty: nothing predicts the text's first token")
    out: list[np.ndarray] = [np.zeros(0)] * len(texts)
    order = [i for i in sorted(range(len(texts)), key=lambda i: len(prompts[i])) if len(texts[i])]
    for at in range(0, len(order), batch):
        group = order[at : at + batch]
        ids = {i: (_ids(prompts[i]), _ids(texts[i])) for i in group}
        contexts = {i: backend.new_context(sum(map(len, ids[i]))) for i in group}
        long = [i for i in group if len(ids[i][0]) > 1]
        if long:
            backend.forward([Pass(contexts[i], ids[i][0][:-1]) for i in long])
        read = [np.concatenate((ids[i][0][-1:], ids[i][1][:-1])) for i in group]
        results = backend.forward([Pass(contexts[i], r, "all") for i, r in zip(group, read, strict=True)])
        for i, result in zip(group, results, strict=True):
            out[i] = nll_of_rows(result.encode, ids[i][1], backend.config.special_slot_ids)
    return out


def _ids(tokens: Tokens) -> np.ndarray:
    return np.asarray(tokens, dtype=np.int64)


def bootstrap(
    values: np.ndarray, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of float64 [n], by drawing the n values anew with replacement."""
    rng = np.random.Generator(np.random.Philox(seed))
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_ratio(
    above: np.ndarray, below: np.ndarray, paired: bool = True, seed: int = 0, draws: int = 2000
) -> tuple[float, float]:
    """95 % percentile interval of mean(above) ÷ mean(below). paired: entry i of both belongs to the same prompt."""
    rng = np.random.Generator(np.random.Philox(seed))
    first = rng.integers(0, len(above), (draws, len(above)))
    second = first if paired else rng.integers(0, len(below), (draws, len(below)))
    ratios = above[first].mean(axis=1) / below[second].mean(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)
