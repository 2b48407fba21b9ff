"""An adapted AR base on the CPU: the base's graph for clean rows, and one with the adapter merged in for canvas rows.

Both write the same caches. A pass that encodes and denoises takes two runs, the clean rows' first, so that they are the
base's own, bit for bit. The adapter is merged as the graph is made: LoRA into copies of the base's matrices, gains in
place of its norms, the slots' embeddings into a copy of its table and into the roles (see denoiser.adapters).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from redraft.denoiser import families
from redraft.denoiser.adapter_config import ADAPTER_WEIGHTS, PREFIX, AdapterConfig
from redraft.denoiser.config import DenoiserConfig, read_config
from redraft.denoiser.shards import Tensors, entries, read_tensors
from redraft.engine.backend import Pass, PassResult
from redraft.engine.backends.onnx_backend import OnnxBackend, choose_precision
from redraft.engine.backends.onnx_cache import OnnxContext
from redraft.engine.backends.onnx_graph import Precision
from redraft.errors import RequestError
from redraft.hub.store import base_of
from redraft.sampling.heads import DraftHeads

NOTHING = np.empty(0, np.int64)
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
HEADS = "heads."


class Merged(Mapping[str, np.ndarray]):
    """The canvas's weights by name, float32, each computed when it is asked for. The head stays the base's."""

    def __init__(
        self, base: Mapping[str, np.ndarray], adapter: Mapping[str, np.ndarray], settings: AdapterConfig
    ) -> None:
        """adapter: named as in its file, without PEFT's prefix. Raises KeyError for what either lacks."""
        self._base, self._adapter, self._settings = base, adapter, settings
        self._names = {*base, HEAD, "model.canvas_embedding", "model.locked_embedding"}

    def __getitem__(self, name: str) -> np.ndarray:
        adapter, settings = self._adapter, self._settings
        if name == "model.locked_embedding":
            return adapter["slots.locked"]
        if name == "model.canvas_embedding":
            return np.zeros_like(adapter["slots.locked"])
        if name == HEAD:
            return self._base[HEAD] if HEAD in self._base else self._base[TABLE]
        own = self._base[name]
        if name == TABLE:
            own = own.copy()
            own[settings.mask_token_id] = adapter["slots.mask"]
            own[settings.null_token_id] = adapter["slots.null"]
            return own
        stem = name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" in adapter:
            product = adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
            return own + np.float32(settings.scale) * product
        return adapter.get(name, own)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def adapter_heads(
    base: Mapping[str, np.ndarray], adapter: Mapping[str, np.ndarray], settings: AdapterConfig, source: str
) -> DraftHeads | None:
    """The adapter's heads, if it has any; named as in `Merged`. Raises RequestError for what doesn't fit."""
    own = {name.removeprefix(HEADS): adapter[name] for name in adapter if name.startswith(HEADS)}
    embedding = base[TABLE]
    return DraftHeads.of(own, embedding, base.get(HEAD, embedding), *settings.heads, source)


class AdaptedOnnxBackend:
    """Implements engine.backend.Backend with two graphs over the same contexts."""

    heads: DraftHeads | None = None

    def __init__(self, encoder: OnnxBackend, denoiser: OnnxBackend) -> None:
        self.encoder, self.denoiser = encoder, denoiser
        self.config, self.name = encoder.config, encoder.name

    @classmethod
    def load(
        cls, folder: str | Path, precision: Precision | None = None, threads: int = 0, spinning: bool = True
    ) -> AdaptedOnnxBackend:
        """An adapter's folder; its base is found by the name it gives. precision None chooses by size.

        Raises RequestError when the two don't belong together.
        """
        folder = Path(folder)
        base, settings = base_of(folder), AdapterConfig.read(folder)
        assert base is not None
        config = DenoiserConfig.load(folder)
        settings.check(config, families.load_config(base), folder, base)
        family = families.identify(read_config(base), str(base))
        weights = read_tensors(base, *([] if family is None else [family.rename]))
        own = entries(folder / ADAPTER_WEIGHTS)
        adapter = Tensors({name.removeprefix(PREFIX): entry for name, entry in own.items()})
        return cls.of(config, weights, adapter, settings, precision, threads, spinning, str(folder))

    @classmethod
    def of(
        cls,
        config: DenoiserConfig,
        base: Mapping[str, np.ndarray],
        adapter: Mapping[str, np.ndarray],
        settings: AdapterConfig,
        precision: Precision | None = None,
        threads: int = 0,
        spinning: bool = True,
        source: str = "the adapter",
    ) -> AdaptedOnnxBackend:
        """config: the adapted model's."""
        precision = precision or choose_precision(config)
        marked = dataclasses.replace(config, canvas_rows_marked=True, tie_word_embeddings=False)
        try:
            merged = Merged(base, adapter, settings)
            denoiser = OnnxBackend(marked, merged, precision, threads, spinning, source=source)
        except ValueError as error:  # of shapes: another rank or width than the config's
            raise RequestError(f"{source} doesn't fit its base: {error}") from None
        made = cls(OnnxBackend(config, base, precision, threads, spinning, source=source), denoiser)
        made.heads = adapter_heads(base, adapter, settings, source)
        return made

    def unpadded(self) -> AdaptedOnnxBackend:
        """The same network for AR's fastest loop; see OnnxBackend.unpadded."""
        return AdaptedOnnxBackend(self.encoder.unpadded(), self.denoiser.unpadded())

    def new_context(self, capacity: int) -> OnnxContext:
        return self.encoder.new_context(capacity)

    def forward(self, passes: Sequence[Pass]) -> list[PassResult]:
        """As OnnxBackend.forward; clean rows first, then all canvases."""
        clean = [i for i, p in enumerate(passes) if len(p.encode) or p.canvas is None]
        drafts = [i for i, p in enumerate(passes) if p.canvas is not None]
        empty = np.empty((0, self.config.vocab_size), np.float32)
        encoded, canvases = dict.fromkeys(range(len(passes)), empty), {}
        if clean:
            runs = [dataclasses.replace(passes[i], canvas=None, locked=None, canvas_rows=None) for i in clean]
            for i, result in zip(clean, self.encoder.forward(runs), strict=True):
                encoded[i] = result.encode
        if drafts:
            runs = [dataclasses.replace(passes[i], encode=NOTHING, encode_logits="none") for i in drafts]
            for i, result in zip(drafts, self.denoiser.forward(runs), strict=True):
                canvases[i] = result.canvas
        return [PassResult(encoded[i], canvases.get(i)) for i in range(len(passes))]
