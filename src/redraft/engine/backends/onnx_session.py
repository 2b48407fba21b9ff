"""Sessions of ONNX Runtime and the arrays they read in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from redraft.engine.backends.onnx_graph import Graph
from redraft.errors import RedraftError

SMALL, SHAPES = (
    1 << 14,
    256,
)  # bytes of an input that is kept for the next call of its shape, and how many are


def _session(
    graph: bytes, weights: dict[str, np.ndarray], threads: int, spinning: bool, stopping: bool
) -> Any:
    """stopping: idle threads wait busily while a call runs and no longer."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # one pattern is kept for each shape ever seen
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1" if stopping else "0")
    options.add_external_initializers(
        list(weights), [onnxruntime.OrtValue.ortvalue_from_numpy(a) for a in weights.values()]
    )
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no base
        raise RedraftError(f"onnxruntime {onnxruntime.__version__} can't run the model: {error}") from None


class Inputs:
    """Arrays that the session reads in place, bound anew only when an input's shape changes.

    Small ones are kept by shape: a canvas's wanted rows become fewer with every step, and with the next canvas many.
    """

    def __init__(self, binding: Any, names: frozenset[str]) -> None:
        self._binding, self._names = binding, names
        self._bound: dict[str, np.ndarray] = {}
        self._kept: dict[tuple[str, tuple[int, ...]], tuple[np.ndarray, Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], kind: Any) -> np.ndarray:
        """The array that input `name` reads, with what an earlier call left in it."""
        bound = self._bound.get(name)
        if bound is not None and bound.shape == shape:
            return bound
        found = self._kept.get((name, shape))
        if found is None:
            array = np.empty(shape, kind)
            found = array, onnxruntime.OrtValue.ortvalue_from_numpy(array)
            if array.nbytes <= SMALL:
                if len(self._kept) >= SHAPES:
                    self._kept.clear()
                self._kept[name, shape] = found
        if name in self._names:  # the graph leaves out what its config has no use for
            self._binding.bind_ortvalue_input(name, found[1])
        self._bound[name] = found[0]
        return found[0]

    def write(self, name: str, values: np.ndarray) -> None:
        self.array(name, values.shape, values.dtype)[...] = values


class Kind(NamedTuple):
    """A session: on how many threads, for how many groups of lanes, with the adapter's nodes or without."""

    threads: int
    groups: int = 1
    gated: bool = False


class Sessions:
    """One network and its weights, on as many threads as a call is worth and with as many groups of lanes; made when
    first asked for.

    The same bits come out on any number of threads: operators are parted between rows and columns, never along a sum.
    """

    def __init__(
        self,
        graph: Callable[[int, bool], Graph],
        weights: dict[str, np.ndarray],
        spinning: bool,
        stopping: bool,
    ) -> None:
        """graph: the network for so many groups, with an adapter's nodes or without. weights: of both. stopping: for a
        model that runs on several sessions in turns, whose idle threads would else take one another's cores."""
        self._graph, self._weights = graph, weights
        self._spinning, self._stopping = spinning, stopping
        self._made: dict[Kind, Any] = {}

    def has(self, gated: bool) -> bool:
        """Whether one with the adapter's nodes, or without, has been made."""
        return any(kind.gated == gated for kind in self._made)

    def on(self, kind: Kind) -> Any:
        if kind not in self._made:
            graph = self._graph(kind.groups, kind.gated)
            own = {weight.name: self._weights[weight.name] for weight in graph.weights}
            self._made[kind] = _session(graph.data, own, kind.threads, self._spinning, self._stopping)
        return self._made[kind]
