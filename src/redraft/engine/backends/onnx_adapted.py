"""An adapted AR base on the CPU: one graph in which clean rows and canvas rows share every product with the base's
weights, and canvas rows alone get what the adapter adds (onnx_gated). Calls without a canvas run the base's own graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from redraft.denoiser import families
from redraft.denoiser.adapter_config import ADAPTER_WEIGHTS, PREFIX, AdapterConfig, Reach
from redraft.denoiser.config import DenoiserConfig, read_config
from redraft.denoiser.shards import Tensors, entries, read_tensors
from redraft.engine.backends.onnx_backend import OnnxBackend, choose_precision
from redraft.engine.backends.onnx_gated import LATE, LOCKED, MASK, NULL, columns, parts_of, reached, widths
from redraft.engine.backends.onnx_graph import Precision, build_graph
from redraft.engine.backends.onnx_scale import block_of, head_norms, query_scale
from redraft.engine.backends.onnx_weights import in_blocks
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
            whole = adapter_weights(config, adapter, settings.reach, settings.scale, "fp32")
        except KeyError as error:
            raise RequestError(f"{source} lacks {error}: it doesn't fit its base") from None
        except ValueError as error:  # of shapes: another rank or width than the config's
            raise RequestError(f"{source} doesn't fit its base: {error}") from None
        for weight in build_graph(config, "fp32", reach=settings.reach).weights:
            if weight.name in whole and whole[weight.name].shape != weight.shape:
                shapes = f"{list(whole[weight.name].shape)} where {list(weight.shape)} is wanted"
                raise RequestError(f"{source} doesn't fit its base: {weight.name} is {shapes}")
        own = adapter_weights(config, adapter, settings.reach, settings.scale, precision)
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


def adapter_weights(
    config: DenoiserConfig,
    adapter: Mapping[str, np.ndarray],
    reach: Reach,
    scale: float,
    precision: Precision,
) -> dict[str, np.ndarray]:
    """Every weight that a gated graph has beside its base's, by name. adapter: named as in its file, without PEFT's
    prefix. scale: of B A x. Raises KeyError for a tensor that is missing, ValueError for shapes that don't fit one
    another."""
    out = {name: adapter[name] for name in (MASK, NULL, LOCKED, *(LATE if config.canvas_entry else ()))}
    layers = [f"model.layers.{i}" for i in range(config.num_hidden_layers)]
    norms = [
        f"{layer}.{norm}" for layer in layers for norm in ("input_layernorm", "post_attention_layernorm")
    ]
    out |= {f"{name}.gain": adapter[f"{name}.weight"] for name in [*norms, "model.norm"] if reach.acts(name)}
    for layer in layers:
        if config.qk_norm and reach.acts(f"{layer}.self_attn.q_norm"):
            q, k = (adapter[f"{layer}.self_attn.{name}_norm.weight"] for name in "qk")
            out[f"{layer}.self_attn.qk_gain"] = head_norms(config, q, k)
        for name in ("self_attn.qkv", "self_attn.o_proj", "mlp.gate_up", "mlp.down_proj"):
            joined, stems = f"{layer}.{name}", reached(reach, f"{layer}.{name}")
            if stems:
                down = np.concatenate([adapter[f"{s}.lora_A.weight"] for s in stems])
                out |= _held(f"{joined}.lora_A", down, precision)
                out |= _held(
                    f"{joined}.lora_B", _diagonal(config, adapter, reach, joined, scale).T, precision
                )
    kinds = {name: np.uint8 if name.endswith(".blocks") else np.float32 for name in out}
    return {name: np.ascontiguousarray(array, kinds[name]) for name, array in out.items()}


def _held(name: str, weight: np.ndarray, precision: Precision) -> dict[str, np.ndarray]:
    """A matrix [outputs, inputs] of the adapter by what the graph calls its parts."""
    weight = np.ascontiguousarray(weight, np.float32)
    block = block_of(weight.shape[1]) if precision == "blocks" else None
    if block is None:
        return {name: weight.T}
    integers, steps = in_blocks(weight, block)
    return {f"{name}.blocks": integers, f"{name}.steps": steps}


def _diagonal(
    config: DenoiserConfig, adapter: Mapping[str, np.ndarray], reach: Reach, joined: str, scale: float
) -> np.ndarray:
    """B of the layers joined under a name, each at its own outputs and behind its own A: float32 [ranks, outputs]."""
    stems, has, outputs = parts_of(joined), reached(reach, joined), widths(config, joined)
    out = np.zeros((reach.rank * len(has), columns(reach, config, joined)), np.float32)
    for stem, end, width in zip(stems, np.cumsum(outputs), outputs, strict=True):
        if stem in has:
            rows = slice(has.index(stem) * reach.rank, (has.index(stem) + 1) * reach.rank)
            factor = scale * (query_scale(config) if stem.endswith(".q_proj") else 1.0)
            out[rows, end - width : end] = np.float32(factor) * adapter[f"{stem}.lora_B.weight"].T
    return out
