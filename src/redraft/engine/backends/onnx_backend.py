"""The CPU backend: ONNX Runtime, numpy and safetensors; needs no torch (DESIGN decision 7)."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.agreement import smallest_exact_rows
from redraft.engine.backend import Context, Pass, PassResult
from redraft.engine.backends.onnx_cache import CacheView, OnnxContext, gather
from redraft.engine.backends.onnx_graph import PRECISIONS, Precision, build_graph, cache_names
from redraft.engine.backends.onnx_rows import Geometry, RotaryTable, Share, geometry
from redraft.engine.backends.onnx_weights import prepare, read_tensors
from redraft.errors import RedraftError, RequestError

# Below this many weights in the linear layers the extra nodes of int8 cost more than its arithmetic saves
# (benchmarks/backends.py measures it).
INT8_PAYS_FROM = 20_000_000
LONGEST_ENCODE = 256  # rows of a prompt in one call: bounds the scores' memory, heads * rows * length
# Requests share a run when the widest brings at most SHORT rows or ALIKE times those of the narrowest.
SHORT, ALIKE = 32, 4


def linear_weights(config: DenoiserConfig) -> int:
    """Weights that a row is multiplied by, the head included."""
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    layer = config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)
    return config.num_hidden_layers * layer + config.hidden_size * config.vocab_size


def choose_precision(config: DenoiserConfig) -> Precision:
    """What is faster for a model of this size."""
    return "int8" if linear_weights(config) >= INT8_PAYS_FROM else "fp32"


def _session(graph: bytes, weights: dict[str, np.ndarray], threads: int, spinning: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # one pattern is kept for each shape ever seen
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.add_external_initializers(
        list(weights), [onnxruntime.OrtValue.ortvalue_from_numpy(a) for a in weights.values()]
    )
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no base
        raise RedraftError(f"onnxruntime {onnxruntime.__version__} can't run the model: {error}") from None


class OnnxBackend:
    """Implements engine.backend.Backend. Calls from several threads take turns.

    threads: cores to use, 0 for all. spinning: idle threads wait busily between operators, which is faster and
    burns a core while a pass runs.
    """

    def __init__(
        self,
        config: DenoiserConfig,
        tensors: dict[str, np.ndarray],
        precision: Precision = "fp32",
        threads: int = 0,
        spinning: bool = True,
        source: str = "the model",
    ) -> None:
        """tensors: float32, named as in the checkpoint. Raises RequestError when they don't fit the config."""
        if precision not in PRECISIONS:
            raise RequestError(f"precision {precision!r} is unknown; one of {', '.join(PRECISIONS)}")
        self.config, self.precision = config, precision
        self.name = f"onnx-{precision}"
        self.threads = threads or os.cpu_count() or 1
        graph, wanted = build_graph(config, precision)
        self._inputs = {i.name for i in graph.graph.input}
        self._weights = prepare(
            config, tensors, wanted, source
        )  # onnxruntime reads this memory: it must stay
        self._session = _session(graph.SerializeToString(), self._weights, self.threads, spinning)
        self._binding = self._session.io_binding()
        self._rotary = RotaryTable(config)
        self._lock = threading.Lock()
        self._view: Any = None
        self._geometry_key: Any = None
        self._geometry: Geometry
        self._feeds: dict[str, np.ndarray] = {}

    @classmethod
    def load(
        cls, folder: str | Path, precision: Precision | None = None, threads: int = 0, spinning: bool = True
    ) -> OnnxBackend:
        """A model's folder (config.json and safetensors); precision None chooses by size."""
        config = DenoiserConfig.load(folder)
        tensors = read_tensors(folder)
        return cls(config, tensors, precision or choose_precision(config), threads, spinning, str(folder))

    def new_context(self, capacity: int) -> OnnxContext:
        """An empty context with room for `capacity` rows, canvas included; it grows when they don't suffice."""
        return OnnxContext(self.config, capacity)

    def forward(self, passes: Sequence[Pass]) -> list[PassResult]:
        """One network evaluation for each pass; raises ValueError when two passes share a context."""
        if len({id(p.context) for p in passes}) < len(passes):
            raise ValueError("a context may appear once in a call")
        empty = np.empty((0, self.config.vocab_size), np.float32)
        encoded: list[list[np.ndarray]] = [[empty] for _ in passes]
        canvases: list[np.ndarray | None] = [None] * len(passes)
        pieces = [self._cut(p) for p in passes]
        with self._lock:
            for turn in range(max(map(len, pieces), default=0)):
                now = [(i, cut[turn]) for i, cut in enumerate(pieces) if turn < len(cut)]
                for group in _alike(now):
                    for (i, piece), result in zip(group, self._run([p for _, p in group]), strict=True):
                        encoded[i].append(result.encode)
                        canvases[i] = result.canvas if piece.canvas is not None else None
        return [PassResult(_joined(e), c) for e, c in zip(encoded, canvases, strict=True)]

    def _cut(self, p: Pass) -> list[Pass]:
        """A long prompt in pieces, which changes no result; the last piece brings the canvas."""
        if len(p.encode) == 0 and p.canvas is None:
            return []
        if len(p.encode) <= LONGEST_ENCODE or self.config.layout == "full":
            return [p]
        step = LONGEST_ENCODE
        if self.config.layout == "block_causal":  # a block's rows see one another, so it stays whole
            step = -(-step // self.config.canvas_length) * self.config.canvas_length
        start = step - p.context.length % step
        ends = [*range(start, len(p.encode), step), len(p.encode)]
        begins = [0, *ends[:-1]]
        before = "all" if p.encode_logits == "all" else "none"
        cut = [Pass(p.context, p.encode[a:b], before) for a, b in zip(begins[:-1], ends[:-1], strict=True)]
        return [*cut, dataclasses.replace(p, encode=p.encode[begins[-1] :])]

    def _run(self, passes: list[Pass]) -> list[PassResult]:
        """One run of the session; contexts grow by what they encoded only when it went well."""
        contexts = [_own(p.context) for p in passes]
        sizes = [(len(p.encode), 0 if p.canvas is None else len(p.canvas)) for p in passes]
        needed = max(c.length + n + slots for c, (n, slots) in zip(contexts, sizes, strict=True))
        view = gather(self.config, contexts, needed)
        shares = tuple(Share(c.lane - view.first, c.length, *s) for c, s in zip(contexts, sizes, strict=True))
        self._bind_view(view)
        self._bind_geometry(shares, view)
        wanted = self._bind_rows(passes)
        logits = np.empty((1, sum(map(len, wanted)), self.config.vocab_size), np.float32)
        self._binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's own classes share no base
            raise RedraftError(
                f"onnxruntime failed in a pass of {sum(map(sum, sizes))} rows: {error}"
            ) from None
        results, offset = [], 0
        for p, rows, context in zip(passes, wanted, contexts, strict=True):
            own = logits[0, offset : offset + len(rows)]
            offset += len(rows)
            context.length += len(p.encode)
            encode_rows = len(rows) if p.canvas is None else _wanted_encode(p).size
            results.append(PassResult(own[:encode_rows], None if p.canvas is None else own[encode_rows:]))
        return results

    def _bind_view(self, view: CacheView) -> None:
        """Caches as inputs and, at the same addresses, as outputs; done again only when they moved."""
        if self._view == view.key():
            return
        for name, array in zip(cache_names(self.config), view.arrays(), strict=True):
            where = ("cpu", 0, np.float32, array.shape, array.ctypes.data)
            self._binding.bind_input(name, *where)
            self._binding.bind_output(f"{name}.next", *where)
        self._view = view.key()

    def _bind_geometry(self, shares: tuple[Share, ...], view: CacheView) -> None:
        """Index arrays and mask; unchanged from one step to the next on the same canvas."""
        key = (shares, view.lanes, view.rows)
        if self._geometry_key == key:
            return
        self._geometry_key = None
        g = self._geometry = geometry(self.config, shares, view.lanes, view.rows)
        cos, sin = self._rotary.rows(g.position)
        self._feed(turn=g.turn, slot=g.slot, grid=g.grid, place=g.place, mask=g.mask, cos=cos, sin=sin)
        self._geometry_key = key

    def _bind_rows(self, passes: list[Pass]) -> list[np.ndarray]:
        """What each row holds, and which rows' logits are wanted; returns the latter for each pass."""
        wanted: list[np.ndarray] = []
        tokens: list[np.ndarray] = []
        roles: list[np.ndarray] = []
        offset = 0
        for p in passes:
            tokens.append(p.encode)
            roles.append(np.zeros(len(p.encode), np.int64))
            rows = [_wanted_encode(p)]
            if p.canvas is not None:
                tokens.append(p.canvas)
                roles.append(
                    np.ones(len(p.canvas), np.int64) if p.locked is None else 1 + p.locked.astype(np.int64)
                )
                slots = np.arange(len(p.canvas)) if p.canvas_rows is None else p.canvas_rows
                rows.append(len(p.encode) + slots)
            wanted.append(offset + np.concatenate(rows))
            offset += len(p.encode) + (0 if p.canvas is None else len(p.canvas))
        all_wanted = np.concatenate(wanted).astype(np.int64)
        self._feed(
            tokens=np.concatenate(tokens).astype(np.int64)[None],
            role=np.concatenate(roles)[None],
            wanted=all_wanted,
            wanted_place=self._geometry.place[:, all_wanted],
        )
        if self.config.self_conditioning:
            self._bind_expected(passes, offset)
        return wanted

    def _bind_expected(self, passes: list[Pass], rows: int) -> None:
        known = [p.expected for p in passes if p.canvas is not None and p.expected is not None]
        expected = np.concatenate([np.empty((0, self.config.vocab_size), np.float32), *known]).astype(
            np.float32
        )
        row_of = np.full((1, rows), len(expected), np.int64)
        offset = taken = 0
        for p in passes:
            offset += len(p.encode)
            slots = 0 if p.canvas is None else len(p.canvas)
            if slots and p.expected is not None:
                row_of[0, offset : offset + slots] = taken + np.arange(slots)
                taken += slots
            offset += slots
        self._feed(expected=expected, expected_row=row_of)

    def _feed(self, **arrays: np.ndarray) -> None:
        """Binds what the graph takes of these; onnxruntime reads the memory in place, so it is kept."""
        for name, array in arrays.items():
            if name in self._inputs:
                self._feeds[name] = np.ascontiguousarray(array)
                self._binding.bind_cpu_input(name, self._feeds[name])

    @cached_property
    def exact_rows(self) -> int:
        """The fewest encode rows in a pass that give the logits they would have among many; see agreement.py."""
        return smallest_exact_rows(self)


def _own(context: Context) -> OnnxContext:
    if not isinstance(context, OnnxContext):
        raise TypeError(f"a context of another backend ({type(context).__name__})")
    return context


def _wanted_encode(p: Pass) -> np.ndarray:
    rows = len(p.encode)
    return np.arange({"none": rows, "last": max(rows - 1, 0), "all": 0}[p.encode_logits], rows)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Logits of a prompt's pieces as one array, without a copy when it came in one."""
    full = [p for p in parts if len(p)]
    return np.concatenate(full) if len(full) > 1 else (full or parts)[-1]


def _alike(pieces: list[tuple[int, Pass]]) -> list[list[tuple[int, Pass]]]:
    """Groups of passes that share a run: a lane of few rows beside a wide one would be mostly padding."""

    def rows(item: tuple[int, Pass]) -> int:
        return len(item[1].encode) + (0 if item[1].canvas is None else len(item[1].canvas))

    groups: list[list[tuple[int, Pass]]] = []
    for item in sorted(pieces, key=rows):
        if groups and rows(item) <= max(SHORT, ALIKE * rows(groups[-1][0])):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups
