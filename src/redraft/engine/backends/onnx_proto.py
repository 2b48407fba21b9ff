"""The few messages of ONNX's file format that a graph needs, as bytes: the onnx package weighs as much as half of
onnxruntime and takes a third of a second to import.

Field numbers are those of onnx.proto (ONNX IR version 10), the encoding is protobuf's: a message is a sequence of
fields, each a key (number << 3 | wire type) and its value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Attribute = float | int | str | bytes | Sequence[int]  # bytes: a tensor
KINDS = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}  # TensorProto.DataType
EXTERNAL = 1  # TensorProto.DataLocation


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; a negative number as its 64-bit two's complement."""
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, value: int | float | str | bytes) -> bytes:
    """One field: an integer, a 32-bit float, or a text or message with its length before it."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def _repeated(number: int, values: Iterable[int | float | str | bytes]) -> bytes:
    return b"".join(field(number, value) for value in values)


def _attribute(name: str, value: Attribute) -> bytes:
    """AttributeProto; its last field is the type."""
    if isinstance(value, float):
        body = field(2, value) + field(20, 1)
    elif isinstance(value, int):
        body = field(3, value) + field(20, 2)
    elif isinstance(value, str):
        body = field(4, value) + field(20, 3)
    elif isinstance(value, bytes):
        body = field(5, value) + field(20, 4)
    else:
        body = _repeated(8, value) + field(20, 7)
    return field(1, name) + body


def node(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Attribute
) -> bytes:
    """NodeProto, named as its first output."""
    return (
        _repeated(1, inputs)
        + _repeated(2, outputs)
        + field(3, outputs[0])
        + field(4, kind)
        + _repeated(5, (_attribute(name, value) for name, value in attributes.items()))
        + field(7, domain)
    )


def tensor(name: str, array: np.ndarray) -> bytes:
    """TensorProto with its values inside."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return (
        _repeated(1, array.shape)
        + field(2, KINDS[array.dtype.name])
        + field(8, name)
        + field(9, little.tobytes())
    )


def outside_tensor(name: str, dtype: str, shape: Sequence[int], where: Mapping[str, str]) -> bytes:
    """TensorProto whose values lie elsewhere: `where` has the keys location and, for a part of a file, offset and
    length."""
    entries = (field(1, key) + field(2, value) for key, value in where.items())
    return (
        _repeated(1, shape)
        + field(2, KINDS[dtype])
        + field(8, name)
        + _repeated(13, entries)
        + field(14, EXTERNAL)
    )


def value(name: str, dtype: str, shape: Sequence[int | str]) -> bytes:
    """ValueInfoProto of a graph's input or output; a text in the shape names a size that is open."""
    sizes = (field(1 if isinstance(size, int) else 2, size) for size in shape)
    return field(1, name) + field(2, field(1, field(1, KINDS[dtype]) + field(2, _repeated(1, sizes))))


def model(
    nodes: Iterable[bytes],
    initializers: Iterable[bytes],
    inputs: Iterable[bytes],
    outputs: Iterable[bytes],
    opsets: Mapping[str, int],
    ir_version: int,
) -> bytes:
    """ModelProto of one graph; opsets: version by domain."""
    graph = (
        _repeated(1, nodes)
        + field(2, "denoiser")
        + _repeated(5, initializers)
        + _repeated(11, inputs)
        + _repeated(12, outputs)
    )
    imports = (field(1, domain) + field(2, version) for domain, version in opsets.items())
    return field(1, ir_version) + field(2, "redraft") + field(7, graph) + _repeated(8, imports)
