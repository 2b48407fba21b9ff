"""Passes on torch: the reference backend.

The rows of all requests go through every linear layer as one matrix, and each request attends to its own
context. A row then depends on its neighbours only through the kernels, and they are made not to (DESIGN
decision 2): matrices have a multiple of `row_multiple` rows, and attention adds up keys in blocks of
KEY_BLOCK, so that a longer context only adds zeros at the end. Measured on CPUs with MKL: a matrix product of
1 to 3 rows, or whose rows a thread gets in a remainder of 1 to 3, rounds otherwise than a larger one, and so
does a sum over more than about 190 keys. On other devices nothing is padded and nothing is claimed;
`engine.agreement` measures what holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.denoiser.adapters import canvas_rows
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.layouts import Rows, allowed, canvas_start, clean_start
from redraft.denoiser.transformer import Denoiser, Layer, Visibility, rotary_angles
from redraft.engine.backend import Backend, Context, Pass, PassResult, check_room
from redraft.engine.backends.torch_heads import heads_of
from redraft.errors import RedraftError
from redraft.hub.store import base_of
from redraft.sampling.heads import DraftHeads

KEY_BLOCK = 128
ROW_MULTIPLE = 4


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


class TorchContext:
    """Keys and values [layers, capacity, kv_heads, head_dim]; rows past `length` are scratch for the
    canvas."""

    def __init__(
        self, config: DenoiserConfig, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.limit = config.max_position_embeddings
        rows = _round_up(max(1, min(capacity, self.limit)), KEY_BLOCK)
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, config.head_dim)
        # Zeros: rows that nobody wrote get probability 0, but 0 times NaN would be NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        # With a shift the last clean row predicts the next canvas's first slot.
        hidden = config.hidden_size if config.shift else 0
        self.hidden = torch.zeros((1, rows, hidden), dtype=dtype, device=device)
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on. Their buffers stay."""
        if length < self._length:
            self._length = max(0, length)

    def copy(self, other: TorchContext, length: int) -> None:
        """Takes over the first `length` tokens of another context; this one holds none yet."""
        self.reserve(length)
        self.keys[:, :length], self.values[:, :length] = other.keys[:, :length], other.values[:, :length]
        self.hidden[:, :length] = other.hidden[:, :length]
        self._length = length

    def extend(self, hidden: Tensor) -> None:
        """Counts the rows that a pass has written as clean tokens; hidden [rows, hidden]: their last
        states."""
        stop = self._length + len(hidden)
        if self.hidden.shape[-1]:
            self.hidden[0, self._length : stop] = hidden
        self._length = stop

    def reserve(self, rows: int) -> None:
        """Makes room for `rows` more rows, at least doubling, up to the model's positions.

        Raises RequestError past those.
        """
        check_room(self._length, rows, self.limit)
        needed = self._length + rows
        have = self.keys.shape[1]
        if needed <= have:
            return
        grown = min(max(_round_up(needed, KEY_BLOCK), 2 * have), _round_up(self.limit, KEY_BLOCK))
        for name in ("keys", "values", "hidden"):
            old = getattr(self, name)
            new = old.new_zeros((old.shape[0], grown, *old.shape[2:]))
            new[:, : self._length] = old[:, : self._length]
            setattr(self, name, new)


@dataclass(frozen=True)
class _Part:
    """One pass among the rows of a call: `first` is its first row there, `mask` additive [T or more,
    keys]."""

    call: Pass
    context: TorchContext
    first: int
    encoded: int
    slots: int
    mask: Tensor

    @property
    def rows(self) -> int:
        return self.encoded + self.slots


@dataclass(frozen=True)
class _Alike:
    """Passes of one shape, whose attention is computed at once. present: int64 [P, T], their rows among all; mask
    [P, padded T, keys]."""

    parts: list[_Part]
    present: Tensor
    mask: Tensor

    @property
    def rows(self) -> int:
        return self.present.shape[1]

    def write(self, index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Puts the layer's new keys and values behind each pass's context; returns what each sees, [P, keys, kv_heads,
        D]. One pass after the other: they may share a context, where each finds its own rows."""
        shape = (len(self.parts), self.mask.shape[2], *k.shape[1:])
        keys, values = k.new_empty(shape), v.new_empty(shape)
        for number, part in enumerate(self.parts):
            context, present = part.context, slice(part.first, part.first + part.rows)
            written = slice(context.length, context.length + part.rows)
            context.keys[index, written], context.values[index, written] = k[present], v[present]
            keys[number] = context.keys[index, : shape[1]]
            values[number] = context.values[index, : shape[1]]
        return keys, values


def _alike(parts: list[_Part]) -> list[_Alike]:
    """The passes by their numbers of rows and of keys."""
    groups: dict[tuple[int, ...], list[_Part]] = {}
    for part in parts:
        groups.setdefault((part.rows, *part.mask.shape), []).append(part)
    out = []
    for (rows, *_), members in groups.items():
        mask = torch.stack([part.mask for part in members])
        first = torch.tensor([part.first for part in members], device=mask.device)
        out.append(_Alike(members, first[:, None] + torch.arange(rows, device=mask.device), mask))
    return out


def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention whose rows depend neither on how many there are nor on how many masked keys follow.

    q [P, T, heads, D], keys and values [P, E, kv_heads, D], mask [P, T, E] additive, for P passes of one shape; T a
    multiple of 4, E of KEY_BLOCK. Returns [P, T, heads, D]. Query heads of one group are rows of one product, keys are
    summed block after block.
    """
    passes, rows, heads, size = q.shape
    groups = keys.shape[2]
    grouped = q.view(passes, rows, groups, heads // groups, size).permute(0, 2, 3, 1, 4)
    scores = torch.matmul(grouped.reshape(passes, groups, -1, size), keys.permute(0, 2, 3, 1)) * size**-0.5
    scores = scores.view(passes, groups, heads // groups, rows, -1) + mask[:, None, None]
    weights = torch.softmax(scores, -1).view(passes, groups, -1, keys.shape[1])
    by_group = values.permute(0, 2, 1, 3)
    out = torch.matmul(weights[..., :KEY_BLOCK], by_group[:, :, :KEY_BLOCK])
    for start in range(KEY_BLOCK, keys.shape[1], KEY_BLOCK):
        stop = start + KEY_BLOCK
        out = out + torch.matmul(weights[..., start:stop], by_group[:, :, start:stop])
    out = out.view(passes, groups, heads // groups, rows, size).permute(0, 3, 1, 2, 4)
    return out.reshape(passes, rows, heads, size)


def visibility(config: DenoiserConfig, call: Pass, keys: int) -> np.ndarray:
    """bool [encoded + slots, keys]: what the rows of a pass may attend to.

    Keys are the context, then the pass's rows, then padding up to `keys`.
    """
    place = np.arange(keys)
    length, anchor = call.context.length, call.context.length + len(call.encode)
    end = anchor + call.slots
    canvas = (place >= anchor) & (place < end)
    block = np.zeros(keys, dtype=np.int64)
    start = clean_start(config.layout, place, config.canvas_length)
    if call.slots:
        starts = np.array(call.starts)
        block[anchor:end] = np.arange(call.slots) // (call.slots // len(starts))
        begins = canvas_start(config.layout, length + starts, config.canvas_length)
        start[anchor:end] = begins[block[anchor:end]]
    every = Rows(canvas, np.where(place < end, 0, -1), place, start, block)
    present = slice(length, end)
    queries = Rows(*(a[present, None] for a in (canvas, every.document, place, start, block)))
    return np.asarray(allowed(queries, every))


class TorchBackend:
    """A Backend (see engine.backend) that runs a Denoiser on its device in its dtype.

    row_multiple: rows of a matrix are padded to a multiple of it; 1 pads nothing, which is faster for single
    rows and gives up that a row has the same bits alone and among others. None: 4 on a CPU, 1 elsewhere.
    Passes of one call may share a context as long as none of them encodes.
    """

    name = "torch"

    def __init__(self, model: Denoiser, row_multiple: int | None = None) -> None:
        self.model = model.eval()
        self.config = model.config
        weight = model.model.embed_tokens.weight
        self.device, self.dtype = weight.device, weight.dtype
        on_cpu = self.device.type == "cpu"
        self.row_multiple = row_multiple or (ROW_MULTIPLE if on_cpu else 1)
        self._attend = attend if on_cpu else _attend_fused

    def unpadded(self) -> TorchBackend:
        """The same network with row_multiple=1, for AR's fastest loop."""
        return self if self.row_multiple == 1 else TorchBackend(self.model, row_multiple=1)

    @cached_property
    def heads(self) -> DraftHeads | None:
        return heads_of(self.model)

    def new_context(self, capacity: int) -> TorchContext:
        """An empty context with room for `capacity` rows, canvas included; it grows when needed."""
        return TorchContext(self.config, capacity, self.dtype, self.device)

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> Backend:
        """A model's folder, of ours or of another family, or an adapter, whose base is then found by the name it
        gives; device None: a GPU (bfloat16, steps recorded as graphs: torch_static) or else the CPU (float32)."""
        from redraft.denoiser import adapters, families

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        base = base_of(folder)
        model = families.load(folder, dtype) if base is None else adapters.load(Path(folder), base, dtype)
        if torch.device(device).type == "cuda":
            from redraft.engine.backends.torch_static import StaticTorchBackend

            return StaticTorchBackend(model.to(device))
        return cls(model.to(device))

    @torch.inference_mode()
    def forward(self, passes: Sequence[Pass]) -> list[PassResult]:
        """Raises RequestError when a pass doesn't fit into the context."""
        parts = self._parts(passes)
        if not parts:
            return []
        hidden = self._hidden(parts)
        results = self._results(parts, hidden)
        for part in parts:
            if part.encoded:
                part.context.extend(hidden[part.first : part.first + part.encoded])
        return results

    def _parts(self, passes: Sequence[Pass]) -> list[_Part]:
        parts, first = [], 0
        for call in passes:
            context = _own(call.context)
            encoded, slots = len(call.encode), call.slots
            if not encoded + slots:
                raise RedraftError("a pass must encode or denoise something")
            context.reserve(encoded + slots)
            keys = _round_up(context.length + encoded + slots, KEY_BLOCK)
            seen = visibility(self.config, call, keys)
            padding = _round_up(len(seen), self.row_multiple) - len(seen)
            seen = np.concatenate((seen, np.ones((padding, keys), dtype=bool)))
            mask = Visibility.additive(torch.from_numpy(seen).to(self.device), self.dtype)
            parts.append(_Part(call, context, first, encoded, slots, mask))
            first += encoded + slots
        return parts

    def _hidden(self, parts: list[_Part]) -> Tensor:
        """Hidden states of all rows after the final norm [rows, hidden], padding rows at the end."""
        used = sum(part.rows for part in parts)
        total = _round_up(used, self.row_multiple)
        tokens, positions = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
        canvas, locked = np.zeros(total, dtype=bool), np.zeros(total, dtype=bool)
        for part in parts:
            start, middle, end = part.first, part.first + part.encoded, part.first + part.rows
            tokens[start:middle] = part.call.encode
            positions[start:middle] = part.context.length + np.arange(part.encoded)
            canvas[middle:end] = True
            if part.call.canvas is not None:
                tokens[middle:end], positions[middle:end] = part.call.canvas, part.call.slot_positions
            if part.call.locked is not None:
                locked[middle:end] = part.call.locked
        network = self.model.model
        to = self._to_device
        cos, sin = rotary_angles(to(positions), self.config)
        groups = _alike(parts)
        noisy, held = to(canvas), to(locked)
        with canvas_rows(self.model, noisy if canvas.any() else None, held):
            x = network.embed(to(tokens), noisy, held, self._expected(parts, total))
            for index, layer in enumerate(network.layers):
                assert isinstance(layer, Layer)
                x = network.enter(index, x)
                x = x + self._attention(index, layer, layer.input_layernorm(x), cos, sin, groups)
                x = x + layer.mlp(layer.post_attention_layernorm(x))
            hidden: Tensor = network.norm(x)[0]
        return hidden

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array)[None].to(self.device)

    def _expected(self, parts: list[_Part], total: int) -> Tensor | None:
        if not self.config.self_conditioning or all(part.call.expected is None for part in parts):
            return None
        expected = np.zeros((total, self.config.vocab_size), dtype=np.float32)
        for part in parts:
            if part.call.expected is not None:
                middle = part.first + part.encoded
                expected[middle : middle + part.slots] = part.call.expected
        return self._to_device(expected)

    def _attention(
        self, index: int, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, groups: list[_Alike]
    ) -> Tensor:
        """x [1, rows, hidden] to the attention's output; writes the rows' keys and values behind each
        context."""
        own = layer.self_attn
        rows = x.shape[1]
        q, k, v = (heads[0] for heads in own.project(x, cos, sin))
        out = torch.zeros_like(q)
        for alike in groups:
            present, padding = alike.present, alike.mask.shape[1] - alike.rows
            queries = q[present] if not padding else F.pad(q[present], (0, 0, 0, 0, 0, padding))
            keys, values = alike.write(index, k, v)
            out[present] = self._attend(queries, keys, values, alike.mask)[:, : alike.rows]
        projected: Tensor = own.o_proj(out.view(1, rows, -1))
        return projected

    def _results(self, parts: list[_Part], hidden: Tensor) -> list[PassResult]:
        """Logits of the rows that were asked for, all in one product."""
        rows: list[Tensor] = []
        counts: list[tuple[int, int | None]] = []
        for part in parts:
            wanted = {"none": 0, "last": min(1, part.encoded), "all": part.encoded}[part.call.encode_logits]
            stop = part.first + part.encoded
            rows.append(hidden[stop - wanted : stop])
            slots = None
            if part.call.canvas is not None:
                index = part.call.wanted
                rows.append(self._canvas_hidden(part, hidden, index))
                slots = len(index)
            counts.append((wanted, slots))
        flat = torch.cat(rows)
        padding = _round_up(len(flat), self.row_multiple) - len(flat)
        logits = self.model.logits(F.pad(flat, (0, 0, 0, padding))).float().cpu().numpy()
        results, at = [], 0
        for wanted, slots in counts:
            encode = logits[at : at + wanted]
            at += wanted
            results.append(PassResult(encode, None if slots is None else logits[at : at + slots]))
            at += slots or 0
        return results

    def _canvas_hidden(self, part: _Part, hidden: Tensor, index: np.ndarray) -> Tensor:
        """The hidden rows that predict these slots: their own, or with a shift the row before each."""
        if not self.config.shift:
            return hidden[torch.from_numpy(part.first + part.encoded + index)]
        before = part.call.before(index)
        # Where nothing comes before, the first row's guess stands in, as in Dream.
        picked = hidden[torch.from_numpy(part.first + np.maximum(before, 0))]
        if part.context.length and (before < 0).any():
            picked[torch.from_numpy(before < 0)] = part.context.hidden[0, part.context.length - 1]
        return picked


def _own(context: Context) -> TorchContext:
    if not isinstance(context, TorchContext):
        raise RedraftError("this context belongs to another backend")
    return context


def _attend_fused(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """`attend` by the device's own kernel, which promises nothing about rows."""
    by_head, k, v = (x.transpose(1, 2) for x in (q, keys, values))
    grouped = q.shape[2] != keys.shape[2]
    out = F.scaled_dot_product_attention(by_head, k, v, attn_mask=mask[:, None], enable_gqa=grouped)
    return out.transpose(1, 2)
