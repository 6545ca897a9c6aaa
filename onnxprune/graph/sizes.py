"""Tensors of a proto and their sizes in bytes, from types and dimensions alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx

from ..errors import ModelError

Body = onnx.GraphProto | onnx.FunctionProto
MAX_RANK = 64


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """List all tensors of a graph: initializers, node attributes, and those of graphs inside nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from tensors_of(attribute.g)


def bodies_of(proto: onnx.ModelProto) -> Iterator[tuple[Body, int]]:
    """List the main graph, functions, training graphs and all graphs inside their nodes, each with its depth."""
    training = [body for info in proto.training_info for body in (info.initialization, info.algorithm)]
    waiting: list[tuple[Body, int]] = [(body, 0) for body in (*training, *proto.functions, proto.graph)]
    while waiting:
        body, depth = waiting.pop()
        yield body, depth
        for node in body.node:
            for attribute in node.attribute:
                waiting += [(inner, depth + 1) for inner in graphs_in(attribute)]


def graphs_in(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """List the graphs that an attribute holds."""
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def dense_in(attribute: onnx.AttributeProto) -> list[onnx.TensorProto]:
    """List the dense tensors that an attribute holds."""
    return [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]


def sparse_in(attribute: onnx.AttributeProto) -> list[onnx.SparseTensorProto]:
    """List the sparse tensors that an attribute holds."""
    return [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []), *attribute.sparse_tensors]


def tensors_in(attribute: onnx.AttributeProto) -> list[onnx.TensorProto]:
    """List the tensors that an attribute holds, those that make up sparse ones included."""
    return [*dense_in(attribute), *(t for sparse in sparse_in(attribute) for t in (sparse.values, sparse.indices))]


def tensor_nbytes(tensor: onnx.TensorProto) -> int:
    """Size in bytes of a tensor's data, from its type and dimensions."""
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        raise ModelError(f"tensor {tensor.name!r} has a type without a fixed size ({tensor.data_type})")
    return (n_elements(tensor) * bits + 7) // 8


def n_elements(tensor: onnx.TensorProto) -> int:
    """Count a tensor's elements; raises `ModelError` for a negative dimension or more axes than any operator takes."""
    if len(tensor.dims) > MAX_RANK:
        raise ModelError(f"tensor {tensor.name!r} has {len(tensor.dims)} axes, more than {MAX_RANK}")
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} declares the dimension {min(tensor.dims)}")
    return math.prod(tensor.dims)


def is_known_type(elem_type: int) -> bool:
    """Say whether an element type is one of this version of ONNX."""
    return elem_type in _BITS or elem_type == onnx.TensorProto.STRING


DATA_FIELDS = tuple(f"{kind}_data" for kind in ("float", "int32", "int64", "double", "uint64", "string"))


def field_entries(tensor: onnx.TensorProto) -> tuple[str, int]:
    """Name the field that a tensor's elements lie in when they are not raw, and say how many entries it must have.

    Source: onnx.proto3, TensorProto: types below 32 bits share `int32_data`, those below 8 share its bytes.
    """
    kind, n = tensor.data_type, n_elements(tensor)
    if kind in _FIELDS:
        name, per_entry = _FIELDS[kind]
        return name, n * per_entry
    bits = _BITS[kind]
    return "int32_data", n if bits >= 8 else -(-n * bits // 8)


def _fields() -> dict[int, tuple[str, int]]:
    t = onnx.TensorProto
    return {
        t.FLOAT: ("float_data", 1),
        t.COMPLEX64: ("float_data", 2),
        t.DOUBLE: ("double_data", 1),
        t.COMPLEX128: ("double_data", 2),
        t.INT64: ("int64_data", 1),
        t.UINT32: ("uint64_data", 1),
        t.UINT64: ("uint64_data", 1),
        t.STRING: ("string_data", 1),
    }


def _bits() -> dict[int, int]:
    t = onnx.TensorProto
    widths = {2: ("INT2", "UINT2"), 4: ("INT4", "UINT4", "FLOAT4E2M1"), 16: ("FLOAT16", "BFLOAT16", "INT16", "UINT16")}
    widths |= {32: ("FLOAT", "INT32", "UINT32"), 64: ("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 128: ("COMPLEX128",)}
    eight = ("INT8", "UINT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0")
    widths[8] = eight
    return {getattr(t, name): bits for bits, names in widths.items() for name in names if hasattr(t, name)}


_BITS = _bits()
_FIELDS = _fields()
