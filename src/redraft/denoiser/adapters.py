"""Gated adapters: what makes an AR base denoise, kept beside it and acting on canvas rows alone.

LoRA on projections of layers, RMSNorm gains of the canvas's own, and an embedding each for an open slot, an empty one
and a locked one (gated LoRA: Samragh et al., 2025, arXiv 2507.11851). Which layers and projections is the adapter's
business (adapter_config.Reach): every part costs a pass some nodes. The base's modules and weights stay as they
are; forward hooks add to the rows that `canvas_rows` names, picked out by index. A clean row never meets an adapter's
number, so AR mode is the base, bit for bit, and there is nothing to be merged.

On disk a folder in PEFT's manner: adapter_config.json names the base, adapter_model.safetensors holds the numbers, and
config.json is the adapted model's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from redraft.denoiser import checkpoint, families
from redraft.denoiser.adapter_config import ADAPTER_WEIGHTS, PREFIX, AdapterConfig, Reach
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.heads import Heads
from redraft.denoiser.transformer import Denoiser, RMSNorm
from redraft.errors import RequestError

HEADS = f"{PREFIX}heads."
ROW_MULTIPLE = (
    4  # with fewer rows a CPU's matrix product rounds otherwise (see engine.backends.torch_backend)
)


class LoRA(nn.Module):
    """x [n, in] -> scale * B A x [n, out] (Hu et al., 2021). B starts at 0: an untrained adapter changes nothing."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)  # float32 masters beside a bfloat16 base
        return F.linear(F.linear(x, a), b) * self.scale


class Gain(nn.Module):
    """An RMSNorm's weight for canvas rows; starts as the base's."""

    def __init__(self, base: RMSNorm) -> None:
        super().__init__()
        self.weight = nn.Parameter(base.weight.detach().clone())
        self.eps = base.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


class Slots(nn.Module):
    """Embeddings of what only a canvas holds. mask, null: in place of the base's row for that token; locked: added.
    late: what open and empty slots hold where they enter, if that is behind the first layer."""

    def __init__(self, size: int, late: bool) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.zeros(size))
        self.null = nn.Parameter(torch.zeros(size))
        self.locked = nn.Parameter(torch.zeros(size))
        if late:
            self.late_mask = nn.Parameter(torch.zeros(size))
            self.late_null = nn.Parameter(torch.zeros(size))


@dataclasses.dataclass
class Gate:
    """Which rows of the pass under way are canvas rows: None for none, True for all, or bool [B, T]; locked: bool
    [B, T], or None for none. dense: all rows are computed and the named ones taken, for shapes that don't depend on
    what the rows are (a recorded graph's). late: rows of the pass that enter late, bool [B, T], and what they hold."""

    rows: Tensor | bool | None = None
    locked: Tensor | None = None
    dense: bool = False
    late: list[tuple[Tensor, Tensor]] = dataclasses.field(default_factory=list)


class Adapter(nn.Module):
    """All trained parts, by the name of the base's module that each goes with (dots written as slashes)."""

    def __init__(self, model: Denoiser, settings: AdapterConfig) -> None:
        super().__init__()
        self.settings, self.gate = settings, Gate()
        size = model.config.hidden_size
        self.slots = Slots(size, settings.canvas_entry is not None)
        self.heads = Heads(size, *settings.heads)
        self.parts = nn.ModuleDict()
        for name, module in _adapted(model, settings.reach):
            part = (
                LoRA(module, settings.rank, settings.scale) if isinstance(module, nn.Linear) else Gain(module)
            )
            self.parts[name.replace(".", "/")] = part

    def reset_parameters(self, model: Denoiser, generator: torch.Generator) -> None:
        """A Gaussian of 1 / sqrt(in), B zero; slots at the mean embedding, with noise as wide as embeddings spread.

        A mask vector near zero, as some bases have it, makes the first hundred steps erratic.
        """
        table = model.model.embed_tokens.weight.detach().float()
        mean, spread = table.mean(0), table.std(0)
        with torch.no_grad():
            for part in self.parts.values():
                if isinstance(part, LoRA):
                    shape = part.lora_A.shape
                    part.lora_A.copy_(torch.randn(shape, generator=generator) * shape[1] ** -0.5)
            for name, vector in self.slots.named_parameters():
                if name == "locked":
                    continue
                vector.copy_(mean + spread * torch.randn(mean.shape, generator=generator))
        self.heads.reset_parameters(generator)

    @contextlib.contextmanager
    def canvas_rows(
        self, rows: Tensor | bool | None, locked: Tensor | None = None, dense: bool = False
    ) -> Iterator[None]:
        """For one pass of the network: the rows that the adapter acts on (see Gate). Without this it acts on none."""
        before = self.gate.rows, self.gate.locked, self.gate.dense
        self.gate.rows, self.gate.locked, self.gate.dense = rows, locked, dense
        try:
            yield
        finally:
            self.gate.rows, self.gate.locked, self.gate.dense = before
            self.gate.late = []

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """Rows x before a layer: where open and empty slots enter, they hold what they begin with. Of what layers made
        of them before, tokens on the canvas alone have seen something."""
        if layer == self.settings.canvas_entry:
            for here, vector in self.gate.late:
                x = torch.where(here[..., None], vector.to(x.dtype), x)
        return x

    def named_tensors(self) -> dict[str, Tensor]:
        """Parameters by the names that a PEFT file gives them."""
        out: dict[str, Tensor] = {f"{PREFIX}slots.{n}": p for n, p in self.slots.named_parameters()}
        out |= {f"{HEADS}{n}": p for n, p in self.heads.named_parameters()}
        for name, part in self.parts.items():
            for own, p in part.named_parameters():
                whole = f"{own}.weight" if isinstance(part, LoRA) else own
                out[f"{PREFIX}{name.replace('/', '.')}.{whole}"] = p
        return out


def _adapted(model: Denoiser, reach: Reach) -> Iterator[tuple[str, Any]]:
    """The base's modules that get a part."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | RMSNorm) and reach.acts(name):
            yield name, module


def attach(model: Denoiser, settings: AdapterConfig) -> Denoiser:
    """Freezes the base and puts a fresh adapter beside it, as `model.adapter`; its config becomes the adapted one.

    Raises RequestError for a base that is a diffusion model already.
    """
    if not model.config.autoregressive_only:
        raise RequestError(
            "an adapter goes on an AR base; this model denoises already: train or fine-tune it"
        )
    model.requires_grad_(False)
    model.config = model.model.config = settings.adapted(model.config)
    adapter = Adapter(model, settings).to(model.lm_head.weight)
    for name, module in _adapted(model, settings.reach):
        module.register_forward_hook(_hook(adapter.gate, adapter.parts[name.replace(".", "/")]))
    model.model.embed_tokens.register_forward_hook(_embedding_hook(adapter, model.config))
    model.adapter = adapter
    if settings.canvas_entry is not None:
        model.model.enter = adapter.enter
    return model


def _hook(gate: Gate, part: nn.Module) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor | None]:
    """LoRA adds to the base's output, a gain replaces it: on the gate's rows."""
    adds = isinstance(part, LoRA)

    def hook(module: nn.Module, given: tuple[Tensor], out: Tensor) -> Tensor | None:
        if gate.rows is None:
            return None
        x = given[0]
        if gate.rows is True:
            return out + part(x) if adds else part(x)
        assert isinstance(gate.rows, Tensor)
        if gate.dense:
            own = out + part(x) if adds else part(x)
            return torch.where(gate.rows.view(*gate.rows.shape, *[1] * (out.dim() - 2)), own, out)
        picked = x[gate.rows]
        padding = -len(picked) % ROW_MULTIPLE
        own = part(F.pad(picked, (0, 0) * (picked.dim() - 1) + (0, padding)))[: len(picked)]
        return out.index_put((gate.rows,), out[gate.rows] + own if adds else own)

    return hook


def _embedding_hook(
    adapter: Adapter, config: DenoiserConfig
) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor | None]:
    gate, slots = adapter.gate, adapter.slots

    def hook(module: nn.Module, given: tuple[Tensor], out: Tensor) -> Tensor | None:
        if gate.rows is None:
            return None
        tokens = given[0]
        gate.late = []
        for token, name in ((config.mask_token_id, "mask"), (config.null_token_id, "null")):
            if token is not None:
                here = tokens == token if gate.rows is True else (tokens == token) & gate.rows
                out = torch.where(here[..., None], slots.get_parameter(name).to(out.dtype), out)
                if config.canvas_entry is not None:
                    gate.late.append((here, slots.get_parameter(f"late_{name}")))
        if gate.locked is not None:
            locked = gate.locked if gate.rows is True else gate.locked & gate.rows
            out = torch.where(locked[..., None], out + slots.locked.to(out.dtype), out)
        return out

    return hook


def save(adapter: Adapter, config: DenoiserConfig, folder: Path, dtype: torch.dtype | None = None) -> None:
    """adapter_config.json, adapter_model.safetensors and config.json into `folder`, which must exist."""
    write(adapter.named_tensors(), adapter.settings, config, folder, dtype)


def write(
    tensors: dict[str, Tensor],
    settings: AdapterConfig,
    config: DenoiserConfig,
    folder: Path,
    dtype: torch.dtype | None = None,
) -> None:
    """As `save`, of tensors with the names of `Adapter.named_tensors`."""
    checkpoint.save_weights(
        folder / ADAPTER_WEIGHTS, {k: v if dtype is None else v.to(dtype) for k, v in tensors.items()}
    )
    settings.write(folder)
    checkpoint.write_atomically(folder / "config.json", config.to_json().encode())


def cut(base: Denoiser, layers: int | None) -> Denoiser:
    """The base's first `layers` layers, in place. Raises RequestError when it has fewer."""
    have = base.config.num_hidden_layers
    if layers is None or layers == have:
        return base
    if layers > have:
        raise RequestError(f"the base has {have} layers, fewer than the {layers} asked for")
    base.model.layers = base.model.layers[:layers]
    base.config = base.model.config = dataclasses.replace(base.config, num_hidden_layers=layers)
    return base


def load(folder: Path, base: Path, dtype: torch.dtype = torch.float32) -> Denoiser:
    """An adapted model in eval mode. base: the folder of the model that adapter_config.json names.

    Raises RequestError when the two don't belong together, or the adapter's file is damaged.
    """
    settings = AdapterConfig.read(folder)
    settings.check(DenoiserConfig.load(folder), families.load_config(base), folder, base)
    model = attach(cut(families.load(base, dtype), settings.layers), settings)
    read_into(adapter_of(model), folder / ADAPTER_WEIGHTS)
    return model.eval()


def adapter_of(model: Denoiser) -> Adapter:
    assert isinstance(model.adapter, Adapter)
    return model.adapter


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{path} can't be read ({error}); fetch it again") from None


def grow(adapter: Adapter, path: Path, settings: AdapterConfig, heads: bool) -> None:
    """Copies the numbers of another adapter's file (settings: its own) into this one as far as both reach: of a smaller
    rank into the first ones, scaled to stay what they were; the rest of B becomes 0. heads False: all but those of the
    heads. Raises RequestError where the file lacks one of them or it has another shape."""
    tensors = _read(path)
    factor, smaller = settings.scale / adapter.settings.scale, {adapter.settings.rank: settings.rank}
    with torch.no_grad():
        for name, p in adapter.named_tensors().items():
            part, _, kind = name.removeprefix(PREFIX).rpartition(".lora_")
            inside = part or name.removeprefix(PREFIX).removesuffix(".weight")
            if inside.startswith("model.") and not settings.reach.acts(inside):
                continue
            if name.startswith(HEADS) and not heads:
                continue
            if name.startswith(f"{PREFIX}slots.late_") and settings.canvas_entry is None:
                continue
            axis = {"A.weight": 0, "B.weight": 1}.get(kind)
            due = [smaller[size] if at == axis else size for at, size in enumerate(p.shape)]
            if name not in tensors or list(tensors[name].shape) != due:
                raise RequestError(f"{path} doesn't fit its base: {name}")
            theirs = tensors[name].to(p)
            if axis == 1:
                p.zero_()
                theirs = theirs * factor
            p[tuple(slice(size) for size in due)] = theirs


def read_into(adapter: Adapter, path: Path) -> None:
    """Copies the numbers of a file into the adapter. Raises RequestError on a missing, surplus or misshapen one."""
    tensors, own = _read(path), adapter.named_tensors()
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += sorted(n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape)
    if wrong and wrong[0].startswith(HEADS):
        name = wrong[0].removeprefix(HEADS)
        raise RequestError(f"the heads of {path} don't fit the adapter: {name}; train them anew")
    if wrong:
        raise RequestError(f"{path} doesn't fit its base: {wrong[0]}")
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(tensors[name])


@contextlib.contextmanager
def canvas_rows(
    model: Denoiser, rows: Tensor | bool | None, locked: Tensor | None = None, dense: bool = False
) -> Iterator[None]:
    """`Adapter.canvas_rows` of a model that may have no adapter."""
    if model.adapter is None:
        yield
        return
    with adapter_of(model).canvas_rows(rows, locked, dense):
        yield
