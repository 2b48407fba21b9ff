"""Passes on torch in few fixed shapes, for GPUs: a step of a few rows takes less time than launching its kernels,
unless they were recorded as one CUDA graph, and a graph knows one shape and one set of addresses.

An evaluation is filled up to a `Bucket`: so many rows in all, lanes, rows a lane, rows of keys and values, rows whose
logits are wanted. All that it reads is one vector of integers (`Fields`), copied at once; what a row may attend to is
three numbers of it, and the masks are made on the device. Contexts sit in lanes of one block (torch_pool). The linear
layers see all rows as one list; attention sees a grid of lanes by columns. Prompts run the same code unrecorded: they
are wide enough to keep a GPU busy, and of too many lengths.

Nothing here needs a GPU but the recording: on a CPU the same code runs as it stands, which is how it is tested.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.denoiser.adapters import canvas_rows
from redraft.denoiser.transformer import Denoiser, Layer, Visibility, rotary_angles
from redraft.engine.backend import Context, Pass, PassResult
from redraft.engine.backends.torch_graphs import CudaGraphs, Recorder, Recording
from redraft.engine.backends.torch_heads import heads_of
from redraft.engine.backends.torch_pool import SCRATCH, Pool, StaticContext
from redraft.engine.backends.torch_shapes import Bucket, Fields, bucket_for, fill, rounds
from redraft.errors import RedraftError
from redraft.sampling.heads import DraftHeads

NARROW = 32  # rows of a pass up to which it shares a recorded evaluation with others; wider ones are prompts
MOST_ROWS = 4096  # rows of one unrecorded evaluation, which bounds its memory
MOST_RECORDED = 256  # evaluations kept; each holds little but its logits

log = logging.getLogger("redraft")


@dataclass(eq=False)
class Plan:
    """What one bucket runs on. host: the same numbers as `inputs`, int64, in memory that can be copied asynchronously;
    expected: float32 [rows, V], with self-conditioning only; recording: None where the code runs as it stands."""

    fields: Fields
    host: Tensor
    inputs: Tensor
    expected: Tensor | None
    recording: Recording | None = None


Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def attend_fused(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Heads [B, H, R, D] over keys and values [B, H, S, D] with an additive mask [B, 1, R, S], in one kernel."""
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)


def attend_by_products(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """The same by two products: more kernels, but more of the device at work where lanes and heads are few."""
    scores = torch.matmul(q, keys.transpose(2, 3)) * q.shape[-1] ** -0.5 + mask
    return torch.matmul(torch.softmax(scores, -1), values)


ATTENTIONS: tuple[Attend, ...] = (attend_fused, attend_by_products)


class StaticTorchBackend:
    """A Backend (see engine.backend) that runs a Denoiser in fixed shapes, on a CUDA device as recorded graphs.

    recorder: how evaluations are recorded; None for what the device offers. Of the two ways to attend the faster one is
    kept with each recording, by time. When recording fails, one line says so and the code runs as it stands.
    No promise is made about bits: a row may round otherwise in other company. Calls from several threads take turns.
    """

    def __init__(self, model: Denoiser, recorder: Recorder | None = None) -> None:
        self.model = model.eval()
        self.config = model.config
        weight = model.model.embed_tokens.weight
        self.device, self.dtype = weight.device, weight.dtype
        if recorder is None and self.device.type == "cuda":
            recorder = CudaGraphs(self.device)
        self._recorder = recorder
        self.name = "torch-static" if recorder is None else "torch-graphs"
        self._pool = Pool(self.config, self.dtype, self.device)
        self._plans: dict[Bucket, Plan] = {}
        self._latest: Plan | None = None
        self._generation = self._pool.generation
        self._lock = threading.Lock()
        with torch.inference_mode():
            self._positions = torch.arange(self.config.max_position_embeddings, device=self.device)
            self._cos, self._sin = (t.to(self.dtype) for t in rotary_angles(self._positions, self.config))

    @cached_property
    def heads(self) -> DraftHeads | None:
        """As of the plain backend."""
        return heads_of(self.model)

    @property
    def recorded(self) -> list[Bucket]:
        """The shapes that run as recorded graphs by now."""
        return [bucket for bucket, plan in self._plans.items() if plan.recording is not None]

    def replay_seconds(self) -> float | None:
        """What the graph of the last evaluation takes by itself; None if it wasn't recorded."""
        recording = None if self._latest is None else self._latest.recording
        return None if recording is None or self._recorder is None else self._recorder.seconds(recording)

    def unrecorded(self) -> StaticTorchBackend:
        """The same network with nothing recorded, to compare with."""
        twin = StaticTorchBackend(self.model)
        twin._recorder, twin.name = None, "torch-static"
        return twin

    def new_context(self, capacity: int) -> StaticContext:
        """An empty context in a lane with room for `capacity` rows, canvas included; all lanes grow when one must."""
        return StaticContext(self._pool, capacity)

    @torch.inference_mode()
    def forward(self, passes: Sequence[Pass]) -> list[PassResult]:
        """As engine.backend says. Passes may share a context if none of those encodes. Raises RequestError when a pass
        doesn't fit into its context, RedraftError for one with nothing in it."""
        results: dict[int, PassResult] = {}
        with self._lock:
            for p in passes:
                if not len(p.encode) + p.slots:
                    raise RedraftError("a pass must encode or denoise something")
                _own(p.context).reserve(len(p.encode) + p.slots)
            for together in rounds(passes):
                for group in _groups(passes, together):
                    made = self._run([passes[i] for i in group])
                    results.update(zip(group, made, strict=True))
        return [results[i] for i in range(len(passes))]

    def _run(self, passes: Sequence[Pass]) -> list[PassResult]:
        contexts = [_own(p.context) for p in passes]
        narrow = max(len(p.encode) + p.slots for p in passes) <= NARROW
        bucket = bucket_for(self.config, passes, self._pool.rows, seated=narrow)
        if narrow:
            self._pool.grow(bucket.lanes, 1)
            self._pool.bring_forward([c.seat for c in contexts], bucket.lanes)
        self._latest = plan = self._plan(bucket)
        lanes = [c.seat.lane for c in contexts]
        counts = fill(plan.fields, self.config, passes, lanes, self._pool.rows, plan.host.numpy())
        plan.inputs.copy_(plan.host, non_blocking=True)
        self._expect(plan, passes)
        logits = self._evaluate(bucket, plan)
        host = torch.empty(
            (sum(counts), self.config.vocab_size), dtype=torch.float32, pin_memory=logits.is_cuda
        )
        host.copy_(logits[: len(host)])
        for context, p in zip(contexts, passes, strict=True):
            context.extend(len(p.encode))
        return _sorted_out(host.numpy(), passes, counts)

    def _plan(self, bucket: Bucket) -> Plan:
        """Kept for narrow shapes, as long as the memory that it reads stays where it is."""
        if self._generation != self._pool.generation or len(self._plans) >= MOST_RECORDED:
            self._plans.clear()
            self._generation = self._pool.generation
        plan = self._plans.get(bucket)
        if plan is None:
            fields = Fields(bucket)
            host = torch.zeros(fields.size, dtype=torch.int64, pin_memory=self.device.type == "cuda")
            expected = None
            if self.config.self_conditioning and bucket.drafts:
                expected = torch.zeros((1, bucket.rows, self.config.vocab_size), device=self.device)
            plan = Plan(fields, host, torch.zeros_like(host, device=self.device), expected)
            if bucket.seated:
                self._plans[bucket] = plan
        return plan

    def _expect(self, plan: Plan, passes: Sequence[Pass]) -> None:
        if plan.expected is None:
            return
        plan.expected.zero_()
        rows = plan.fields.first_rows(passes, [_own(p.context).seat.lane for p in passes])
        for p, first in zip(passes, rows, strict=True):
            if p.expected is not None:
                first += len(p.encode)
                given = torch.from_numpy(np.ascontiguousarray(p.expected, dtype=np.float32))
                plan.expected[0, first : first + len(given)] = given.to(self.device)

    def _evaluate(self, bucket: Bucket, plan: Plan) -> Tensor:
        """Logits float32 [wanted, V] of what the plan's inputs say; valid until the next evaluation."""
        if plan.recording is None and self._recorder is not None and bucket.seated:
            self._record(bucket, plan, self._recorder)
        if plan.recording is None:
            return self._network(bucket, plan, ATTENTIONS[0])
        plan.recording.replay()
        return plan.recording.output

    def _record(self, bucket: Bucket, plan: Plan, recorder: Recorder) -> None:
        """Records the evaluation once for each way to attend, and keeps the fastest. Running it again changes nothing:
        it writes the same keys and values."""
        try:
            made = [recorder.record(partial(self._network, bucket, plan, attend)) for attend in ATTENTIONS]
            plan.recording = min(made, key=recorder.seconds)
        except RuntimeError as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning(
                "no graph could be recorded (%s): kernels are launched one by one, which is slower", why
            )
            self._recorder, self.name = None, "torch-static"
            for known in self._plans.values():
                known.recording = None

    def _network(self, bucket: Bucket, plan: Plan, attend: Attend) -> Tensor:
        """The evaluation itself. Shapes depend on the bucket alone, never on a number that is read."""
        given = plan.fields.views(plan.inputs)
        network = self.model.model
        canvas = given["canvas"][None].bool() if bucket.drafts else None
        locked = given["locked"][None].bool() if bucket.drafts else None
        turns = self._cos[given["position"]][None], self._sin[given["position"]][None]
        mask = self._mask(bucket, given)
        with canvas_rows(self.model, canvas, locked, dense=True):
            x = network.embed(given["token"][None], canvas, locked, plan.expected)
            for index, layer in enumerate(network.layers):
                assert isinstance(layer, Layer)
                x = network.enter(index, x)
                q, k, v = layer.self_attn.project(layer.input_layernorm(x), *turns)
                keys, values = self._written(index, bucket, given, k[0], v[0])
                x = x + layer.self_attn.o_proj(_attended(bucket, given, q[0], keys, values, mask, attend))
                x = x + layer.mlp(layer.post_attention_layernorm(x))
            hidden = network.norm(x)[0]
        if self.config.shift:  # the row that predicts a canvas's first slot may be an earlier pass's
            states = self._pool.hidden.flatten(0, 1)
            states.index_copy_(0, given["cell"], hidden)
            hidden = states
        logits: Tensor = self.model.logits(hidden[given["wanted"]]).float()
        return logits

    def _mask(self, bucket: Bucket, given: dict[str, Tensor]) -> Tensor:
        """[lanes, 1, rows of a group of heads, context], additive: keys before `start`, and from `low` to `high`."""
        key = self._positions[: bucket.context]
        start, low, high = (given[name][:, None] for name in ("start", "low", "high"))
        seen = (key < start) | ((key >= low) & (key < high))
        mask = Visibility.additive(seen, self.dtype).view(bucket.lanes, 1, bucket.columns, bucket.context)
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        return mask.repeat(1, 1, group, 1)

    def _written(
        self, index: int, bucket: Bucket, given: dict[str, Tensor], k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Puts a layer's new keys and values [rows, kv_heads, D] into their cells; what the lanes then hold, [lanes,
        kv_heads, context, D]."""
        out = []
        for whole, new in ((self._pool.keys[index], k), (self._pool.values[index], v)):
            whole.flatten(0, 1).index_copy_(0, given["cell"], new)
            if bucket.seated:
                own = whole[SCRATCH : SCRATCH + bucket.lanes, : bucket.context]
            else:
                own = whole[:, : bucket.context].index_select(0, given["lane"])
            out.append(own.transpose(1, 2))
        return out[0], out[1]


def _attended(
    bucket: Bucket,
    given: dict[str, Tensor],
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    attend: Attend,
) -> Tensor:
    """Attention's output [1, rows, heads * D] for q [rows, heads, D]. Heads that share keys become rows of one."""
    heads, size, kv_heads = q.shape[1], q.shape[2], keys.shape[1]
    grid = q[given["grid"]] if bucket.packed else q
    grouped = grid.view(bucket.lanes, bucket.columns, kv_heads, heads // kv_heads, size).permute(
        0, 2, 3, 1, 4
    )
    out = attend(grouped.flatten(2, 3), keys, values, mask)
    out = out.unflatten(2, (heads // kv_heads, bucket.columns)).permute(0, 3, 1, 2, 4)
    rows = out.reshape(bucket.lanes * bucket.columns, heads * size)
    return (rows[given["place"]] if bucket.packed else rows)[None]


def _own(context: Context) -> StaticContext:
    if not isinstance(context, StaticContext):
        raise RedraftError("this context belongs to another backend")
    return context


def _groups(passes: Sequence[Pass], together: Sequence[int]) -> list[list[int]]:
    """Passes that share an evaluation: all narrow ones, and wide ones of about one width."""
    by_width: dict[int, list[int]] = {}
    for i in together:
        rows = len(passes[i].encode) + passes[i].slots
        by_width.setdefault(0 if rows <= NARROW else (rows - 1).bit_length(), []).append(i)
    out = []
    for width, members in by_width.items():
        most = max(1, MOST_ROWS >> width) if width else len(members)
        out += [members[at : at + most] for at in range(0, len(members), most)]
    return out


def _sorted_out(logits: Any, passes: Sequence[Pass], counts: Sequence[int]) -> list[PassResult]:
    """Each pass's part of logits [sum of counts, V]: its clean rows first."""
    results, at = [], 0
    for p, count in zip(passes, counts, strict=True):
        slots = 0 if p.canvas is None else len(p.wanted)
        middle, at = at + count - slots, at + count
        encode = logits[at - count : middle]
        results.append(PassResult(encode, None if p.canvas is None else logits[middle:at]))
    return results
