"""An adapted AR base on the CPU: one graph in which clean rows and canvas rows share every product with the base's
weights, and canvas rows alone get what the adapter adds (onnx_gated). Calls without a canvas run the base's own graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from redraft.denoiser import families
from redraft.denoiser.adapter_config import ADAPTER_WEIGHTS, PREFIX, AdapterConfig
from redraft.denoiser.config import DenoiserConfig, read_config
from redraft.denoiser.shards import Tensors, entries, read_tensors
from redraft.engine.backends.onnx_backend import OnnxBackend, choose_precision
from redraft.engine.backends.onnx_gated import adapter_weights
from redraft.engine.backends.onnx_graph import Precision, build_graph
from redraft.errors import RequestError
from redraft.hub.store import base_of
from redraft.sampling.heads import DraftHeads

HEAD, HEADS = "lm_head.weight", "heads."


class AdaptedOnnxBackend:
    """Makes an OnnxBackend of a base and its adapter."""

    @classmethod
    def load(
        cls,
        folder: str | Path,
        precision: Precision | None = None,
        threads: int = 0,
        spinning: bool = True,
        largest: int = 0,
    ) -> OnnxBackend:
        """An adapter's folder; its base is found by the name it gives. precision None chooses by size; largest: as
        OnnxBackend takes it.

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
        return cls.of(config, weights, adapter, settings, precision, threads, spinning, str(folder), largest)

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
        largest: int = 0,
    ) -> OnnxBackend:
        """config: the adapted model's."""
        precision = precision or choose_precision(config)
        try:
            own = adapter_weights(config, adapter, settings.reach, settings.scale)
        except KeyError as error:
            raise RequestError(f"{source} lacks {error}: it doesn't fit its base") from None
        except ValueError as error:  # of shapes: another rank or width than the config's
            raise RequestError(f"{source} doesn't fit its base: {error}") from None
        for weight in build_graph(config, precision, reach=settings.reach).weights:
            if weight.name in own and own[weight.name].shape != weight.shape:
                shapes = f"{list(own[weight.name].shape)} where {list(weight.shape)} is wanted"
                raise RequestError(f"{source} doesn't fit its base: {weight.name} is {shapes}")
        made = OnnxBackend(
            config,
            base,
            precision,
            threads,
            spinning,
            source=source,
            largest=largest,
            adapter=own,
            reach=settings.reach,
        )
        heads = {n.removeprefix(HEADS): adapter[n] for n in adapter if n.startswith(HEADS)}
        output = base[HEAD] if any(settings.heads) and HEAD in base else made.embeddings
        made.heads = DraftHeads.of(heads, made.embeddings, output, *settings.heads, source)
        return made
