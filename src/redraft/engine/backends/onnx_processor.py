"""What this processor's 8-bit products can take."""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime

from redraft.engine.backends import onnx_proto as proto
from redraft.engine.backends.onnx_graph import IR_VERSION, OPSET
from redraft.engine.backends.onnx_weights import INTEGER_MAX

INPUTS, OUTPUTS = 64, 32
ROWS = (1, 8)  # kernels differ for one row and for several


@functools.cache
def integer_max() -> int:
    """The largest integer of an 8-bit weight for which products are right here: 127 where they are added up in 32 bits
    (VNNI, ARM), INTEGER_MAX where two meet in 16 bits with saturation. Measured, on the largest there are; it takes
    some milliseconds.
    """
    weight = np.full((INPUTS, OUTPUTS), 127, np.int8)
    graph = proto.model(
        [proto.node("MatMulInteger", ["x", "weight"], ["y"])],
        [proto.tensor("weight", weight)],
        [proto.value("x", "uint8", ["N", INPUTS])],
        [proto.value("y", "int32", ["N", OUTPUTS])],
        {"": OPSET},
        IR_VERSION,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    right = all(
        (session.run(None, {"x": np.full((rows, INPUTS), 255, np.uint8)})[0] == 255 * 127 * INPUTS).all()
        for rows in ROWS
    )
    return 127 if right else INTEGER_MAX
