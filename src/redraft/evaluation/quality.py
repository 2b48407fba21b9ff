"""Quality of several ways of writing on the same prompts, each judged over equally many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.engine.backend import Backend
from redraft.evaluation.text import continuation_nll, distinct, repetition, shortened, unigram_entropy


@dataclass(frozen=True)
class Quality:
    """ar_nll: nats a token under the AR self at temperature 1, mean over all tokens; by_prompt float64 [prompts]: the
    same for each text. entropy: of a text's own tokens, nats, mean over texts. distinct_3 over all texts; repetition_4
    within a text, mean over texts. tokens: how many are judged."""

    ar_nll: float
    by_prompt: np.ndarray
    entropy: float
    distinct_3: float
    repetition_4: float
    tokens: int

    @property
    def ar_nll_se(self) -> float:
        """Standard error over prompts; 0.0 for a single one."""
        n = len(self.by_prompt)
        return float(self.by_prompt.std(ddof=1) / n**0.5) if n > 1 else 0.0

    def to_json(self) -> dict[str, float]:
        return {
            "ar_nll": self.ar_nll,
            "ar_nll_se": self.ar_nll_se,
            "entropy": self.entropy,
            "distinct_3": self.distinct_3,
            "repetition_4": self.repetition_4,
        }


def judge(
    backend: Backend,
    prompts: Sequence[np.ndarray],
    written: Sequence[Sequence[Sequence[int]]],
    batch: int = 8,
) -> list[Quality]:
    """written[way][prompt]: token ids. All are cut to the length of the shortest before they are judged."""
    out = []
    for texts in shortened(written):
        nll = continuation_nll(backend, prompts, texts, batch)
        count = sum(map(len, texts))
        out.append(
            Quality(
                ar_nll=float(sum(n.sum() for n in nll) / max(1, count)),
                by_prompt=np.array([n.mean() if len(n) else 0.0 for n in nll]),
                entropy=float(np.mean([unigram_entropy(t) for t in texts])),
                distinct_3=distinct(texts, 3),
                repetition_4=float(np.mean([repetition(t) for t in texts])),
                tokens=count,
            )
        )
    return out
