"""Reverse diffusion, free of any network: from logits to the next canvas. Needs no torch.

One canvas goes

    canvas = begin(settings, vocabulary, key, position)
    while not canvas.finished:
        canvas = advance(canvas, network(canvas.tokens))     # only the rows wanted(canvas) are read
    tokens = outcome(canvas)

and AR's next token is choose(logits, settings, vocabulary, key, position, chosen).
"""

from redraft.sampling.canvas import Canvas, begin, outcome
from redraft.sampling.noise import NoiseKey, gumbel
from redraft.sampling.reading import wanted
from redraft.sampling.settings import SamplerSettings, SlotVocabulary, WarpSettings
from redraft.sampling.state import SlotState
from redraft.sampling.step import advance
from redraft.sampling.warp import choose, warp

__all__ = [
    "Canvas",
    "NoiseKey",
    "SamplerSettings",
    "SlotState",
    "SlotVocabulary",
    "WarpSettings",
    "advance",
    "begin",
    "choose",
    "gumbel",
    "outcome",
    "wanted",
    "warp",
]
