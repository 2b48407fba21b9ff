"""The bytes of our graphs, against protobuf's own examples and against the onnx package where it is installed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from redraft.engine.backends import onnx_proto as proto
from redraft.engine.backends.onnx_graph import build_graph
from redraft.engine.backends.onnx_inputs import cache_names
from tests.engine.onnx_models import OPTIONS, denoiser


@pytest.mark.parametrize(
    ("number", "bytes_"),
    [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (150, "9601"), (300, "ac02"), (-1, "ff" * 9 + "01")],
)
def test_whole_numbers_as_protobuf_writes_them(number: int, bytes_: str) -> None:
    assert proto.varint(number).hex() == bytes_


def test_fields_as_protobuf_writes_them() -> None:
    assert proto.field(1, 150).hex() == "089601"  # protobuf.dev, "A Simple Message"
    assert proto.field(2, "testing").hex() == "120774657374696e67"
    assert proto.field(5, 1.0).hex() == "2d0000803f"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("precision", ["fp32", "blocks", "int8"])
def test_the_onnx_package_reads_what_was_meant(options: dict[str, Any], precision: Any) -> None:
    onnx = pytest.importorskip("onnx")
    config = denoiser(**options).config
    graph = build_graph(config, precision)
    read = onnx.load_model_from_string(graph.data)
    assert [(o.domain, o.version) for o in read.opset_import] == [("", 23), ("com.microsoft", 1)]
    assert {i.name for i in read.graph.input} == graph.inputs
    assert [o.name for o in read.graph.output] == ["logits", *(f"{n}.next" for n in cache_names(config))]
    known = {name for n in read.graph.node for name in n.output} | graph.inputs | {""}
    known |= {t.name for t in read.graph.initializer}
    assert all(name in known for n in read.graph.node for name in n.input)
    outside = [t for t in read.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert [(t.name, tuple(t.dims)) for t in outside] == [(w.name, w.shape) for w in graph.weights]


def test_values_come_back() -> None:
    onnx = pytest.importorskip("onnx")
    for array in (np.array([3, -1, 1 << 40]), np.float32(0.1), np.array([[128, 0]], np.uint8)):
        read = onnx.TensorProto.FromString(proto.tensor("x", np.asarray(array)))
        assert np.array_equal(onnx.numpy_helper.to_array(read), array)
    read = onnx.NodeProto.FromString(
        proto.node("Kind", ["a", ""], ["y", "z"], "d", f=0.5, i=-2, s="t", n=[1, -1])
    )
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in read.attribute}
    assert attributes == {"f": 0.5, "i": -2, "s": b"t", "n": [1, -1]}
    assert (read.op_type, list(read.input), list(read.output), read.domain) == (
        "Kind",
        ["a", ""],
        ["y", "z"],
        "d",
    )


def test_the_backend_needs_no_onnx_package() -> None:
    code = "import sys, redraft.engine.backends.onnx_export; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
