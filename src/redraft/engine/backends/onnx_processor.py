"""What this processor's 8-bit products can take."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnxruntime

from redraft.engine.backends import onnx_proto as proto
from redraft.engine.backends.onnx_graph import IR_VERSION, OPSET, ZERO, GraphWriter
from redraft.engine.backends.onnx_scale import BLOCKS
from redraft.engine.backends.onnx_weights import INTEGER_MAX

INPUTS, OUTPUTS = 192, 32  # three blocks of 64: kernels take blocks two by two, and one that is left
ROWS = (1, 8)  # kernels differ for one row and for several
MOST = 127


def _session(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@functools.cache
def integer_max() -> int:
    """The largest integer of an 8-bit weight for which products are right here: 127 where they are added up in 32 bits
    (VNNI, ARM), INTEGER_MAX where two meet in 16 bits with saturation. Measured, on the largest there are; it takes
    some milliseconds.
    """
    weight = np.full((INPUTS, OUTPUTS), MOST, np.int8)
    graph = proto.model(
        [proto.node("MatMulInteger", ["x", "weight"], ["y"])],
        [proto.tensor("weight", weight)],
        [proto.value("x", "uint8", ["N", INPUTS])],
        [proto.value("y", "int32", ["N", OUTPUTS])],
        {"": OPSET},
        IR_VERSION,
    )
    session = _session(graph)
    right = all(
        (session.run(None, {"x": np.full((rows, INPUTS), 255, np.uint8)})[0] == 255 * MOST * INPUTS).all()
        for rows in ROWS
    )
    return MOST if right else INTEGER_MAX


@functools.cache
def multiplies_blocks() -> bool:
    """Whether products of blocks are computed in 8 bits here, and right. Measured as integer_max is.

    They were on every x86 processor tried, with VNNI and, where integer_max is less, with AVX-512 or AVX2 without it:
    weights are the unsigned side, and bytes of even and of odd places are multiplied apart, so that a sum of two in 16
    bits is one product, 255 * 127 < 2^15 (onnxruntime's mlas/lib/sqnbitgemm_kernel_avx2_int8_blklen64.h, "2 x i8 x i8
    may be larger than i16"). So files in blocks keep 8 bits.

    Where onnxruntime has no such kernel (ARM without dot products, qnbitgemm_kernel_neon.cpp) it doesn't refuse: it
    expands all weights to float32 at every call (contrib_ops/cpu/quantization/matmul_nbits.cc, ComputeBUnpacked),
    hundreds of times slower; so it does for accuracy_level 1, which is no way out of a kernel that were wrong.
    """
    return all(_right_in_blocks(block) for block in BLOCKS)


def block_product(integers: np.ndarray, steps: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x [N, inputs] times a weight in blocks (onnx_weights.in_blocks), transposed: float32 [N, outputs], by the node
    that graphs have for it."""
    outputs, blocks, block = integers.shape
    writer = GraphWriter("blocks")
    writer.op("Identity", writer.block_linear("x", "w", blocks * block, outputs, block), to="y")
    graph = proto.model(
        writer.nodes,
        [proto.tensor("w.blocks", integers), proto.tensor("w.steps", steps)],
        [proto.value("x", "float32", ["N", blocks * block])],
        [proto.value("y", "float32", ["N", outputs])],
        {"": OPSET, "com.microsoft": 1},
        IR_VERSION,
    )
    return np.asarray(_session(graph).run(None, {"x": x})[0])


def _right_in_blocks(block: int) -> bool:
    """The largest integers that there are on both sides, and some entries of x that 8 bits round to 0, which float32
    would not. Every scale is 1 and every sum below 2^24, so that float32 holds what is right exactly."""
    rng = np.random.default_rng(0)
    weight = rng.choice([-MOST, MOST], (OUTPUTS, INPUTS))
    weight[0] = MOST
    integers = (weight + ZERO).astype(np.uint8).reshape(OUTPUTS, -1, block)
    x = rng.choice([-MOST, MOST], (max(ROWS), INPUTS)).astype(np.float32)
    x[0] = MOST
    x[:, ::5] = 0.375
    due = np.rint(x) @ weight.T
    steps = np.ones(OUTPUTS * INPUTS // block, np.float32)
    return all((block_product(integers, steps, x[:rows]) == due[:rows]).all() for rows in ROWS)
