"""The CPU backend: ONNX Runtime, numpy and safetensors; needs no torch (DESIGN decision 7)."""

from __future__ import annotations

import copy
import dataclasses
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from redraft.denoiser import families
from redraft.denoiser.config import DenoiserConfig, read_config
from redraft.denoiser.shards import read_tensors
from redraft.engine.agreement import smallest_exact_rows
from redraft.engine.backend import Context, Pass, PassResult
from redraft.engine.backends.onnx_cache import CacheView, OnnxContext, gather
from redraft.engine.backends.onnx_graph import PRECISIONS, Precision, build_graph, cache_names
from redraft.engine.backends.onnx_processor import integer_max
from redraft.engine.backends.onnx_rows import (
    LEAST_GRID_ROWS,
    RotaryTable,
    Share,
    Wanted,
    expectations,
    frame,
    wanted_rows,
    write_mask,
    write_tokens,
)
from redraft.engine.backends.onnx_session import Runner, Sessions
from redraft.engine.backends.onnx_weights import prepare
from redraft.errors import RedraftError, RequestError

# Below this many weights in the linear layers the extra nodes of int8 cost more than its arithmetic saves. At 3.5
# million int8 took 0.7 to 0.8 of fp32's time, at 135 million 0.4 (benchmarks/backends.py, AVX-512 VNNI).
INT8_PAYS_FROM = 2_000_000
# Below this many multiply-adds a call runs on one thread: handing an operator's parts out takes longer than they do.
# Two cores against one, redraft-tiny in int8: 1.05 to 1.1 times the time at 1 to 8 rows, as long at 16, 0.96 at 32.
ONE_THREAD_BELOW = 60_000_000
FEW_LANES = 2  # requests at once that one thread serves: the keys and values of more are worth two
LONGEST_ENCODE = 256  # rows of a prompt in one call: bounds the scores' memory, heads * rows * length
# Requests share a run when the widest brings at most SHORT rows or ALIKE times those of the narrowest.
SHORT, ALIKE = 32, 4

EncodeLogits = Literal["none", "last", "all"]


def linear_weights(config: DenoiserConfig) -> int:
    """Weights that a row is multiplied by, the head included."""
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    layer = config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)
    return config.num_hidden_layers * layer + config.hidden_size * config.vocab_size


def choose_precision(config: DenoiserConfig) -> Precision:
    """What is fastest for a model of this size and agrees with fp32.

    Networks of other families have outliers among their activations, for which 8 bits everywhere are too few: on 192
    rows of held-out dialogues the likeliest token of SmolLM2-135M was that of fp32 in 87 % with int8, in 98 % with
    mixed (weights of 8 bits; `redraft bench backends --model smollm2-135m` measures it).
    """
    if linear_weights(config) < INT8_PAYS_FROM:
        return "fp32"
    return "int8" if config.canvas_rows_marked else "mixed"


def physical_cores() -> int:
    """Cores this process may use; two hardware threads of one core count once, since arithmetic fills it."""
    try:
        usable = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    siblings = set()
    for cpu in usable:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text().strip() if path.exists() else str(cpu))
    return len(siblings)


class OnnxBackend:
    """Implements engine.backend.Backend. Calls from several threads take turns.

    threads: how many to use; 0 for one on each core, and one for a call that is too small to be shared out. spinning:
    idle threads wait busily between operators, which is faster on idle cores and burns a core while a pass runs.
    exact: single rows attend as they would among others, bit for bit; False is faster for them (an AR baseline) and
    gives up that verified equals ar.
    """

    def __init__(
        self,
        config: DenoiserConfig,
        tensors: Mapping[str, np.ndarray],
        precision: Precision = "fp32",
        threads: int = 0,
        spinning: bool = True,
        exact: bool = True,
        source: str = "the model",
        largest: int = 0,
    ) -> None:
        """tensors: float32, named as in the checkpoint. largest: of the integers of 8-bit weights; 0 for what this
        processor can take. Raises RequestError when the tensors don't fit the config."""
        if precision not in PRECISIONS:
            raise RequestError(f"precision {precision!r} is unknown; one of {', '.join(PRECISIONS)}")
        self.config, self.precision = config, precision
        self.name = f"onnx-{precision}"
        self.threads = threads or physical_cores()
        graph = build_graph(config, precision)
        self._least_rows = LEAST_GRID_ROWS if exact else 1
        self._input_names = graph.inputs
        self._weights = prepare(
            config, tensors, graph.weights, source, largest or integer_max()
        )  # onnxruntime reads this memory: it must stay
        self._rotary = RotaryTable(config)
        self._lock = threading.Lock()
        self._sessions = Sessions(graph.data, self._weights, spinning)
        self._few_rows = 0 if threads else ONE_THREAD_BELOW // linear_weights(config)
        self._runners: dict[int, Runner] = {}
        self._runner(1)  # what is wrong with the weights shows now

    def attach(self, session: Any) -> None:
        """Runs this session from now on, one of the graph that the backend was made with."""
        self._runners = dict.fromkeys((1, self.threads), Runner(session, self._input_names))

    def _runner(self, rows: int, lanes: int = 1) -> Runner:
        """For a call of so many rows on so many lanes, each of which has keys and values of its own to be read."""
        threads = 1 if rows <= self._few_rows and lanes <= FEW_LANES else self.threads
        runner = self._runners.get(threads)
        if runner is None:
            runner = self._runners[threads] = Runner(self._sessions.on(threads), self._input_names)
        return runner

    @classmethod
    def load(
        cls,
        folder: str | Path,
        precision: Precision | None = None,
        threads: int = 0,
        spinning: bool = True,
        exact: bool = True,
        **overrides: Any,
    ) -> OnnxBackend:
        """A folder of ours or of another family, config.json and safetensors; precision None chooses by size.

        overrides: fields of the config that the folder gets wrong (see families.load_config).
        """
        config = families.load_config(folder, **overrides)
        family = families.identify(read_config(folder), str(folder))
        tensors = read_tensors(folder, *([] if family is None else [family.rename]))
        return cls(
            config, tensors, precision or choose_precision(config), threads, spinning, exact, str(folder)
        )

    def unpadded(self) -> OnnxBackend:
        """The same network with exact=False, for AR's fastest loop; both share sessions and weights."""
        if self._least_rows == 1:
            return self
        twin = copy.copy(self)
        twin._least_rows = 1
        twin._lock = threading.Lock()
        twin._runners = {}
        return twin

    def new_context(self, capacity: int) -> OnnxContext:
        """An empty context with room for `capacity` rows, canvas included; it grows when they don't suffice."""
        return OnnxContext(self.config, capacity)

    def forward(self, passes: Sequence[Pass]) -> list[PassResult]:
        """One network evaluation for each pass. Passes may share a context if none of those encodes.

        Raises RequestError when a pass doesn't fit into the context, RedraftError for one with nothing in it.
        """
        if len(passes) == 1 and len(passes[0].encode) <= LONGEST_ENCODE:
            _check_rows(passes[0])
            with self._lock:
                return self._run(list(passes))
        _check(passes)
        encoded: list[list[np.ndarray]] = [[] for _ in passes]
        canvases: list[np.ndarray | None] = [None] * len(passes)
        with self._lock:
            for together in _rounds([self._cut(p) for p in passes]):
                for group in _alike(together):
                    for (i, _), result in zip(group, self._run([p for _, p in group]), strict=True):
                        encoded[i].append(result.encode)
                        canvases[i] = result.canvas
        return [PassResult(_joined(e), c) for e, c in zip(encoded, canvases, strict=True)]

    def _cut(self, p: Pass) -> list[Pass]:
        """A long prompt in pieces, which changes no result; the last piece brings the canvas."""
        if len(p.encode) <= LONGEST_ENCODE or self.config.layout == "full":
            return [p]
        step = LONGEST_ENCODE
        if self.config.layout == "block_causal":  # a block's rows see one another, so it stays whole
            step = -(-step // self.config.canvas_length) * self.config.canvas_length
        ends = [*range(step - p.context.length % step, len(p.encode), step), len(p.encode)]
        pieces = [p.encode[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        before: EncodeLogits = "all" if p.encode_logits == "all" else "none"
        return [*(Pass(p.context, e, before) for e in pieces[:-1]), dataclasses.replace(p, encode=pieces[-1])]

    def _run(self, passes: list[Pass]) -> list[PassResult]:
        """One run of the session; contexts grow by what they encoded only when it went well."""
        contexts = [_own(p.context) for p in passes]
        shares = [(c.length, len(p.encode), _rows(p)) for c, p in zip(contexts, passes, strict=True)]
        view = gather(self.config, contexts, max(length + rows for length, _, rows in shares))
        use = self._runner(sum(rows for _, _, rows in shares), view.lanes)
        self._bind_view(use, view)
        placed = tuple(
            Share(c.lane - view.first, length, encode, rows - encode)
            for c, (length, encode, rows) in zip(contexts, shares, strict=True)
        )
        self._write_frame(use, placed, view.lanes)
        self._write_places(use, placed, view)
        wanted = [wanted_rows(p, self.config.shift) for p in passes]
        rows = [w.rows() for w in wanted]
        count = self._write_rows(use, passes, placed, rows)
        logits = np.empty((1, count, self.config.vocab_size), np.float32)
        use.binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            use.session.run_with_iobinding(use.binding)
        except Exception as error:  # onnxruntime's own classes share no base
            raise RedraftError(
                f"onnxruntime failed in a pass of {sum(map(_rows, passes))} rows: {error}"
            ) from None
        results, at = [], 0
        for p, w, own, context in zip(passes, wanted, rows, contexts, strict=True):
            results.append(_result(logits[0, at : at + len(own)], w, context))
            at += len(own)
            context.extend(len(p.encode))
        return results

    def _bind_view(self, use: Runner, view: CacheView) -> None:
        """Caches as inputs and, at the same addresses, as outputs; done again only when they moved."""
        key = view.key()
        if use.view == key:
            return
        for name, array in zip(cache_names(self.config), view.arrays(), strict=True):
            where = ("cpu", 0, np.float32, array.shape, array.ctypes.data)
            use.binding.bind_input(name, *where)
            use.binding.bind_output(f"{name}.next", *where)
        use.view = key

    def _write_frame(self, use: Runner, shares: tuple[Share, ...], lanes: int) -> None:
        """Index arrays that last as long as requests bring as many rows as before."""
        key = lanes, tuple((s.lane, s.rows) for s in shares)
        if use.frame_key == key:
            return
        use.frame_key = use.place_key = None
        use.frame = made = frame(key[1], lanes, self._least_rows)
        for name in ("turn", "grid", "place"):
            use.inputs.write(name, getattr(made, name))
        use.frame_key = key

    def _write_places(self, use: Runner, shares: tuple[Share, ...], view: CacheView) -> None:
        """Positions and mask: unchanged from one step to the next on the same canvas."""
        key = shares, view.rows
        if use.place_key == key:
            return
        use.place_key = None
        made, inputs = use.frame, use.inputs
        slot = inputs.array("slot", made.place.shape, np.int64)
        slot[...] = made.place
        at = 0
        for share in shares:
            slot[0, at : at + share.rows, 1] += share.length
            at += share.rows
        shape = (view.lanes, 1, made.grid.shape[1], view.rows)
        write_mask(self.config, shares, inputs.array("mask", shape, np.float32))
        cos, sin = self._rotary.rows(slot[0, :, 1])
        inputs.write("cos", cos)
        inputs.write("sin", sin)
        use.place_key = key

    def _write_rows(
        self, use: Runner, passes: list[Pass], shares: tuple[Share, ...], wanted: list[np.ndarray]
    ) -> int:
        """What each row holds, and which rows' logits are wanted; returns how many."""
        inputs, total = use.inputs, len(use.frame.columns)
        tokens = inputs.array("tokens", (1, total), np.int64)
        write_tokens(passes, tokens[0], inputs.array("role", (1, total), np.int64)[0])
        rows = wanted[0]
        if len(wanted) > 1:
            first = np.cumsum([0, *(s.rows for s in shares[:-1])])
            rows = np.concatenate([a + w for a, w in zip(first, wanted, strict=True)])
        inputs.write("wanted", rows)
        use.frame.place.take(rows, axis=1, out=inputs.array("wanted_place", (1, len(rows), 2), np.int64))
        if self.config.self_conditioning:
            expected, row_of = expectations(passes, self.config.vocab_size)
            inputs.write("expected", expected)
            inputs.write("expected_row", row_of[None])
        return len(rows)

    @cached_property
    def exact_rows(self) -> int:
        """The fewest encode rows in a pass that give the logits they would have among many; see agreement.py."""
        return smallest_exact_rows(self)


def _own(context: Context) -> OnnxContext:
    if not isinstance(context, OnnxContext):
        raise RedraftError("this context belongs to another backend")
    return context


def _rows(p: Pass) -> int:
    return len(p.encode) + (0 if p.canvas is None else len(p.canvas))


def _check(passes: Sequence[Pass]) -> None:
    uses = Counter(id(p.context) for p in passes)
    for p in passes:
        if len(p.encode) and uses[id(p.context)] > 1:
            raise RedraftError("a context can't be extended by a pass and read by another in the same call")
        _check_rows(p)


def _check_rows(p: Pass) -> None:
    rows = _rows(p)
    if not rows:
        raise RedraftError("a pass must encode or denoise something")
    _own(p.context).check_room(rows)


def _rounds(pieces: list[list[Pass]]) -> list[list[tuple[int, Pass]]]:
    """Pieces with their pass's number, those that can run at once together: a context is in each round once."""
    rounds: list[list[tuple[int, Pass]]] = []
    turns: Counter[int] = Counter()
    for i, cut in enumerate(pieces):
        for piece in cut:
            turn = turns[id(piece.context)]
            turns[id(piece.context)] += 1
            if turn == len(rounds):
                rounds.append([])
            rounds[turn].append((i, piece))
    return rounds


def _result(logits: np.ndarray, wanted: Wanted, context: OnnxContext) -> PassResult:
    """Sorts one pass's logits [rows, V] out, and lets the context remember its last clean row's."""
    encoded = len(wanted.encode)
    canvas = None
    if wanted.canvas is not None:
        canvas = logits[encoded : encoded + len(wanted.canvas)]
        if wanted.remembered is not None and wanted.remembered.any():
            if context.last_logits is None:
                raise RedraftError(
                    "a shifted canvas needs the last clean row: encode a token after truncating"
                )
            canvas[wanted.remembered] = context.last_logits
    if len(wanted.last):
        context.last_logits = logits[-1].copy()
    return PassResult(logits[:encoded], canvas)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Logits of a prompt's pieces as one array, without a copy when it came in one."""
    full = [p for p in parts if len(p)]
    return np.concatenate(full) if len(full) > 1 else (full or parts)[-1]


def _alike(pieces: list[tuple[int, Pass]]) -> list[list[tuple[int, Pass]]]:
    """Groups of passes that share a run: a lane of few rows beside a wide one would be mostly padding."""
    groups: list[list[tuple[int, Pass]]] = []
    for i, piece in sorted(pieces, key=lambda item: _rows(item[1])):
        if groups and _rows(piece) <= max(SHORT, ALIKE * _rows(groups[-1][0][1])):
            groups[-1].append((i, piece))
        else:
            groups.append([(i, piece)])
    return groups
