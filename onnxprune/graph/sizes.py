"""Tensors of a proto and their sizes in bytes, from types and dimensions alone."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from ..errors import ModelError


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """List all tensors of a graph: initializers, node attributes, and those of graphs inside nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from tensors_of(attribute.g)


def tensor_nbytes(tensor: onnx.TensorProto) -> int:
    """Size in bytes of a tensor's data, from its type and dimensions."""
    n = 1
    for d in tensor.dims:
        if d < 0:
            raise ModelError(f"tensor {tensor.name!r} declares the dimension {d}")
        n *= d
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        raise ModelError(f"tensor {tensor.name!r} has a type without a fixed size ({tensor.data_type})")
    return (n * bits + 7) // 8


def _bits() -> dict[int, int]:
    t = onnx.TensorProto
    widths = {2: ("INT2", "UINT2"), 4: ("INT4", "UINT4", "FLOAT4E2M1"), 16: ("FLOAT16", "BFLOAT16", "INT16", "UINT16")}
    widths |= {32: ("FLOAT", "INT32", "UINT32"), 64: ("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 128: ("COMPLEX128",)}
    eight = ("INT8", "UINT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0")
    widths[8] = eight
    return {getattr(t, name): bits for bits, names in widths.items() for name in names if hasattr(t, name)}


_BITS = _bits()
