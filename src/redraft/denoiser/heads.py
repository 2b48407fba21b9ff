"""Two small heads behind an adapter's canvas rows, for drafts that are to be verified.

Slots of a canvas that are filled at once know nothing of one another. The *Markov head* (DSpark) lets a slot know the
token before it: its logits gain W1[previous] · W2, drafted from left to right. Both tables are the base's own, of its
embeddings E and of its logits H, seen through matrices of rank r: W1 = A rms_norm(E), W2 = B H. So the head is as small
as a layer's LoRA, and knows tokens that it never met in training. And as H turns hidden states into logits, W1[x] W2 is
H (Bᵀ A rms_norm(E[x])): the head moves a row's hidden state, and costs no product over the vocabulary of its own.

The *confidence head* says how likely a slot's draft is to be accepted if all before it were: a linear function of the
hidden state so moved, and of the slot's place in the canvas. It learns from the overlap with the AR self; its log-odds
are then scaled and shifted, place by place, to what is accepted on held-out text (Platt, 1999; the scale alone would be
temperature scaling).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6  # in rms_norm of an embedding


class Heads(nn.Module):
    """markov_A, markov_B: float [r, hidden]. confidence_weight [hidden]; confidence_bias and, not trained but fitted,
    confidence_scale and confidence_shift [places], of the slots of a canvas. Only those of the heads that there are."""

    def __init__(self, hidden: int, markov_rank: int, places: int) -> None:
        super().__init__()
        self.markov, self.confidence = markov_rank > 0, places > 0
        if self.markov:
            self.markov_A = nn.Parameter(torch.zeros(markov_rank, hidden))
            self.markov_B = nn.Parameter(torch.zeros(markov_rank, hidden))
        if self.confidence:
            self.confidence_weight = nn.Parameter(torch.zeros(hidden))
            self.confidence_bias = nn.Parameter(torch.zeros(places))
            self.confidence_scale = nn.Parameter(torch.ones(places), requires_grad=False)
            self.confidence_shift = nn.Parameter(torch.zeros(places), requires_grad=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """A Gaussian of 1 / sqrt(hidden), the rest as it is: an untrained head changes nothing and is in doubt."""
        if self.markov:
            shape = self.markov_A.shape
            with torch.no_grad():
                self.markov_A.copy_(torch.randn(shape, generator=generator) * shape[1] ** -0.5)

    def move(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """Hidden states of canvas rows [n, hidden], moved by the tokens before their slots: embeddings [n, hidden],
        zeros where there's none to tell of. As they are without a Markov head."""
        if not self.markov:
            return hidden
        normed = F.rms_norm(embedded.float(), embedded.shape[-1:], eps=EPSILON)
        return hidden + (F.linear(normed, self.markov_A) @ self.markov_B).to(hidden.dtype)

    def raw_confidence(self, hidden: Tensor, place: Tensor) -> Tensor:
        """float32 [n] log-odds that a slot's draft is accepted, not yet scaled and shifted. hidden [n, hidden], moved;
        place: int64 [n]. No gradient goes to the hidden states."""
        return (hidden.detach().float() * self.confidence_weight).sum(-1) + self.confidence_bias[place]
