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
from redraft.denoiser.adapter_config import Reach
from redraft.denoiser.config import DenoiserConfig, read_config
from redraft.denoiser.shards import read_tensors
from redraft.engine.agreement import smallest_exact_rows
from redraft.engine.backend import Context, Pass, PassResult
from redraft.engine.backends.onnx_cache import OnnxContext, gather
from redraft.engine.backends.onnx_crews import Workers, crews_of
from redraft.engine.backends.onnx_gated import join
from redraft.engine.backends.onnx_graph import PRECISIONS, Graph, Precision, Weight, build_graph
from redraft.engine.backends.onnx_processor import integer_max, multiplies_blocks
from redraft.engine.backends.onnx_rows import LEAST_GRID_ROWS, RotaryTable
from redraft.engine.backends.onnx_runner import Runner
from redraft.engine.backends.onnx_session import Kind, Sessions
from redraft.engine.backends.onnx_weights import prepare
from redraft.errors import RedraftError, RequestError
from redraft.sampling.heads import DraftHeads

# Below this many weights in the linear layers the extra nodes of int8 cost more than its arithmetic saves. At 3.5
# million int8 took 0.7 to 0.8 of fp32's time, at 135 million 0.4 (benchmarks/backends.py, AVX-512 VNNI).
INT8_PAYS_FROM = 2_000_000
# Below this many multiply-adds a call runs on one thread: handing an operator's parts out takes longer than they do.
# Two cores against one, redraft-tiny in int8: 1.05 to 1.1 times the time at 1 to 8 rows, as long at 16, 0.96 at 32.
ONE_THREAD_BELOW = 60_000_000
FEW_LANES = (
    2  # requests of few rows that one thread serves together: more, or wider ones, are parted among the cores
)
# More requests than that are parted into so many groups by length, in models with up to so many weights: another graph
# packs them anew, and beside a large model's weights the lanes' keys and values count for little.
GROUPS, PARTED_UP_TO = 2, 30_000_000
# An adapted model's calls without a canvas, in a row, from which the base's graph is worth a session: prompts and the
# ends of answers come alone, the steps of decode ar do not.
BASE_ALONE_FROM = 4
LONGEST_ENCODE = 256  # rows of a prompt in one call: bounds the scores' memory, heads * rows * length
# Requests share a run when the widest brings at most SHORT rows or ALIKE times those of the narrowest.
SHORT, ALIKE = 32, 4

EncodeLogits = Literal["none", "last", "all"]


def linear_weights(config: DenoiserConfig) -> int:
    """Weights that a row is multiplied by, the head included."""
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    layer = config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)
    return config.num_hidden_layers * layer + config.hidden_size * config.vocab_size


def eight_bits(config: DenoiserConfig) -> Precision:
    """How this network is held in 8 bits.

    Networks of other families have entries among their activations that are far larger than the others, for which one
    scale a row is too few: see docs/performance.md (`redraft bench backends --model smollm2-135m` measures it). Ours
    were trained without such entries.
    """
    own = (
        config.canvas_rows_marked and not config.shift
    )  # a shift is what an AR base leaves to a model made of it
    return "int8" if own else "blocks"


def choose_precision(config: DenoiserConfig) -> Precision:
    """What is fastest for a model of this size on this processor and agrees with fp32."""
    if linear_weights(config) < INT8_PAYS_FROM:
        return "fp32"
    precision = eight_bits(config)
    return "fp32" if precision == "blocks" and not multiplies_blocks() else precision


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

    threads: how many to use; 0 for one on each core, and one for a call that is too small to be shared out. Several
    requests are parted among them, a crew of lanes on each (onnx_crews). spinning:
    idle threads wait busily between operators, which is faster on idle cores and burns a core while a pass runs.
    exact: single rows attend as they would among others, bit for bit; False is faster for them (an AR baseline) and
    gives up that verified equals ar.
    """

    heads: DraftHeads | None = None

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
        adapter: Mapping[str, np.ndarray] | None = None,
        reach: Reach | None = None,
    ) -> None:
        """tensors: float32, named as in the checkpoint. largest: of the integers of 8-bit weights; 0 for what this
        processor can take. adapter: what a gated one that reaches so far brings (onnx_adapted.adapter_weights). Raises
        RequestError when the tensors don't fit the config."""
        if precision not in PRECISIONS:
            raise RequestError(f"precision {precision!r} is unknown; one of {', '.join(PRECISIONS)}")
        if config.canvas_entry is not None and reach is None:
            raise RequestError(f"{source} has a canvas_entry: that takes an adapter")
        self.config, self.precision = config, precision
        self.name = f"onnx-{precision}"
        self.threads = threads or physical_cores()
        self._reach = reach
        self._graphs: dict[tuple[int, bool], Graph] = {}
        self._least_rows = LEAST_GRID_ROWS if exact else 1
        self._groups = GROUPS if linear_weights(config) <= PARTED_UP_TO else 1
        wanted, largest = self._graph(1).weights, largest or integer_max()
        # onnxruntime reads this memory: it must stay
        self._weights = prepare(config, tensors, wanted, source, largest) | dict(adapter or {})
        join(self._weights)
        self._rotary = RotaryTable(config)
        self._lock = threading.Lock()
        self._sessions = Sessions(self._graph, self._weights, spinning, stopping=reach is not None)
        self._few_rows = 0 if threads else ONE_THREAD_BELOW // linear_weights(config)
        self._runners: dict[tuple[Kind, int], Runner] = {}
        self._crews = self.threads
        self._canvasless = 0  # calls without a canvas since the last that had one
        self._runner(1, gated=reach is not None)  # what is wrong with the weights shows now

    @property
    def embeddings(self) -> np.ndarray:
        """float32 [V, hidden], of the base where there's an adapter."""
        return self._weights["model.embed_tokens.weight"]

    def _graph(self, groups: int, gated: bool = False) -> Graph:
        """The network for so many groups of lanes, with the adapter's nodes on canvas rows or as the base alone."""
        key = groups, gated
        if key not in self._graphs:
            reach = self._reach if gated else None
            self._graphs[key] = build_graph(self.config, self.precision, groups=groups, reach=reach)
        return self._graphs[key]

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """What its graphs read, by name, an adapter's numbers among them."""
        return self._weights

    @property
    def reads(self) -> list[Weight]:
        """What the graph for any rows reads, see `graph`."""
        return self._graph(1, gated=self._reach is not None).weights

    def graph(self, places: Mapping[str, Mapping[str, str]]) -> Graph:
        """Its network for any rows, whose weights lie at these places (see build_graph)."""
        return build_graph(self.config, self.precision, places, reach=self._reach)

    def attach(self, session: Any) -> None:
        """Runs this session from now on, one of the graph that the backend was made with."""
        self._groups = self._crews = 1
        kinds = [Kind(threads, gated=self._reach is not None) for threads in (1, self.threads)]
        self._runners = dict.fromkeys([(kind, 0) for kind in kinds], self._made(session, kinds[0]))

    def _made(self, session: Any, kind: Kind) -> Runner:
        names = self._graph(kind.groups, kind.gated).inputs
        return Runner(session, names, self.config, self._rotary, self._least_rows)

    def _runner(self, rows: int, groups: int = 1, gated: bool = False, crew: int | None = None) -> Runner:
        """For a call of so many rows, or for one of several crews, on a core of its own. gated: with the adapter's
        nodes, for calls with a canvas."""
        one_thread = crew is not None or rows <= self._few_rows
        kind = Kind(1 if one_thread else self.threads, groups, gated)
        key = kind, crew or 0
        runner = self._runners.get(key)
        if runner is None:
            runner = self._runners[key] = self._made(self._sessions.on(kind), kind)
        return runner

    @cached_property
    def _workers(self) -> Workers:
        return Workers(self._crews - 1)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        precision: Precision | None = None,
        threads: int = 0,
        spinning: bool = True,
        exact: bool = True,
        largest: int = 0,
        **overrides: Any,
    ) -> OnnxBackend:
        """A folder of ours or of another family, config.json and safetensors; precision None chooses by size.

        overrides: fields of the config that the folder gets wrong (see families.load_config).
        """
        config = families.load_config(folder, **overrides)
        family = families.identify(read_config(folder), str(folder))
        tensors = read_tensors(folder, *([] if family is None else [family.rename]))
        precision = precision or choose_precision(config)
        return cls(config, tensors, precision, threads, spinning, exact, str(folder), largest)

    def unpadded(self) -> OnnxBackend:
        """The same network with exact=False, for AR's fastest loop; both share sessions and weights."""
        if self._least_rows == 1:
            return self
        twin = copy.copy(self)
        twin._least_rows = 1
        twin._lock = threading.Lock()
        twin._runners = {}
        twin.__dict__.pop("_workers", None)  # whose answers are counted, so that two callers must not mix
        return twin

    def new_context(self, capacity: int) -> OnnxContext:
        """An empty context with room for `capacity` rows, canvas included; it grows when they don't suffice."""
        return OnnxContext(self.config, capacity)

    def forward(self, passes: Sequence[Pass]) -> list[PassResult]:
        """One network evaluation for each pass. Passes may share a context if none of those encodes.

        Raises RequestError when a pass doesn't fit into the context, RedraftError for one with nothing in it.
        """
        if len({id(p.context) for p in passes}) == len(passes):
            rows = [_checked_rows(p) for p in passes]
            one_run = rows and max(rows) <= max(SHORT, ALIKE * min(rows))
            if one_run and max(len(p.encode) for p in passes) <= LONGEST_ENCODE:
                with self._lock:
                    return self._run(passes, rows)
        else:
            _check(passes)
        encoded: list[list[np.ndarray]] = [[] for _ in passes]
        canvases: list[np.ndarray | None] = [None] * len(passes)
        with self._lock:
            for together in _rounds([self._cut(p) for p in passes]):
                for group in _alike(together):
                    alike = [p for _, p in group]
                    results = self._run(alike, [_rows(p) for p in alike])
                    for (i, _), result in zip(group, results, strict=True):
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

    def _run(self, passes: Sequence[Pass], rows: Sequence[int]) -> list[PassResult]:
        """One run of a session for passes that bring so many rows; contexts grow by what they encoded only when it went
        well."""
        contexts = [_own(p.context) for p in passes]
        needed = [c.length + count for c, count in zip(contexts, rows, strict=True)]
        gated = self._gated(passes)
        if len(passes) == 1 or self._crews == 1 or (sum(rows) <= self._few_rows and len(rows) <= FEW_LANES):
            crews = [list(range(len(passes)))]
        else:
            crews = crews_of(contexts, needed, self._crews)
        runners = []
        for number, crew in enumerate(crews):
            own = [contexts[i] for i in crew]
            groups = self._groups if len(crew) > FEW_LANES else 1
            views = gather(self.config, own, [needed[i] for i in crew], groups)
            runner = self._runner(sum(rows), len(views), gated, None if len(crews) == 1 else number)
            runner.prepare([passes[i] for i in crew], own, views)
            runners.append(runner)
        if len(runners) == 1:
            runners[0].execute()
        else:
            self._workers.run([runner.execute for runner in runners])
        results: dict[int, PassResult] = {}
        for crew, runner in zip(crews, runners, strict=True):
            results.update(zip(crew, runner.collect(), strict=True))
        return [results[i] for i in range(len(passes))]

    def _gated(self, passes: Sequence[Pass]) -> bool:
        """Whether a call runs with the adapter's nodes, as one with a canvas must. Without them the same bits come out
        sooner, but on a session that packs the weights anew: it is made when calls without a canvas keep coming."""
        if self._reach is None:
            return False
        if any(p.canvas is not None for p in passes):
            self._canvasless = 0
            return True
        self._canvasless += 1
        return self._canvasless < BASE_ALONE_FROM and not self._sessions.has(gated=False)

    @cached_property
    def exact_rows(self) -> int:
        """The fewest encode rows in a pass that give the logits they would have among many; see agreement.py."""
        return smallest_exact_rows(self)


def _own(context: Context) -> OnnxContext:
    if not isinstance(context, OnnxContext):
        raise RedraftError("this context belongs to another backend")
    return context


def _rows(p: Pass) -> int:
    return len(p.encode) + p.slots


def _check(passes: Sequence[Pass]) -> None:
    uses = Counter(id(p.context) for p in passes)
    for p in passes:
        if len(p.encode) and uses[id(p.context)] > 1:
            raise RedraftError("a context can't be extended by a pass and read by another in the same call")
        _checked_rows(p)


def _checked_rows(p: Pass) -> int:
    """Rows of a pass, which it must have, and its context room for them."""
    rows = _rows(p)
    if not rows:
        raise RedraftError("a pass must encode or denoise something")
    _own(p.context).check_room(rows)
    return rows


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
