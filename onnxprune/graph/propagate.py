"""Sizes and small integer tensors followed from node to node, where onnx's own inference of a whole graph ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import defs, numpy_helper, shape_inference

from . import contrib, integers
from .flatten import DOMAIN, Flat
from .integers import IntTensor
from .sizes import DATA_FIELDS

SMALL = integers.MAX_ELEMENTS
_INTEGERS = {6, 7, 9, 12}
_FLOATS = {1, 10, 11}

# Operators whose output has the shape of their first input, but for which onnx infers no shape.
SHAPE_KEEPERS = frozenset(
    {
        "BiasDropout", "BiasGelu", "BiasSoftmax", "FastGelu", "Gelu", "GroupNorm", "GroupNormalization",
        "MeanVarianceNormalization",
        "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QuickGelu", "RotaryEmbedding",
        "SimplifiedLayerNormalization", "SkipGroupNorm", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip


def propagate(
    bare: onnx.ModelProto,
    sizes: dict[str, tuple[int, ...] | None],
    known: dict[str, IntTensor],
    types: dict[str, onnx.TypeProto],
) -> None:
    """Follow the nodes once: evaluate integer tensors, and infer what was left unknown from their values."""
    opsets = {o.domain: o.version for o in bare.opset_import}
    for node in bare.graph.node:
        if node.op_type == "Constant":
            continue
        if node.domain == DOMAIN:
            _meet(node, sizes, known, types)
        if any(o and sizes.get(o) is None for o in node.output):
            _infer_node(bare, node, opsets, sizes, known, types)
        if node.op_type in SHAPE_KEEPERS and node.input and sizes.get(node.output[0]) is None:
            sizes[node.output[0]] = sizes.get(node.input[0])
        if node.domain in ("", "ai.onnx") and len(node.output) == 1:
            attributes = {a.name: _attribute(a) for a in node.attribute if a.type != onnx.AttributeProto.GRAPH}
            inputs = [known.get(n) for n in node.input]
            result = integers.evaluate(node.op_type, attributes, inputs, list(node.input), sizes.get)
            if result is not None:
                known[node.output[0]] = result
                if sizes.get(node.output[0]) is None:
                    sizes[node.output[0]] = result.shape


def _meet(
    node: onnx.NodeProto,
    sizes: dict[str, tuple[int, ...] | None],
    known: Mapping[str, IntTensor],
    types: dict[str, onnx.TypeProto],
) -> None:
    """Give the values where bodies meet their surroundings their shapes; unknown where the sides differ."""
    shapes = [sizes.get(n) for n in node.input]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    output = node.output[0]
    shape = shapes[0] if shapes else ()
    if any(other != shape for other in shapes):
        shape = None
    if node.op_type == "Stack" and shape is not None:
        at = attributes["axis"] % (len(shape) + 1)
        shape = (*shape[:at], _rounds(attributes, sizes, known), *shape[at:])
    elif node.op_type == "Unstack" and shape:
        at = attributes["axis"] % len(shape)
        shape = (*shape[:at], *shape[at + 1 :])
    elif node.op_type == "Read":
        shape = ()
    sizes[output] = shape if sizes.get(output) is None else sizes[output]
    carried = next((types[n] for n in node.input if n in types), None)
    if node.op_type == "Counter":
        types[output] = onnx.helper.make_tensor_type_proto(attributes["elem_type"], ())
    elif carried is not None:
        types[output] = carried


ROUNDS = 3
MAX_ROUNDS = 1 << 16


def _rounds(
    attributes: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...] | None], known: Mapping[str, IntTensor]
) -> int:
    """Give the number of rounds where a scanned input or a constant count says it, else a number to analyse with."""
    along = sizes.get(attributes.get("along", b"").decode())
    if along:
        return int(along[attributes["along_axis"] % len(along)])
    trips = known.get(attributes.get("trips", b"").decode())
    count = int(trips.items[0].value) if trips is not None and trips.items[0].op == "lit" else 0
    if 0 < count < MAX_ROUNDS:
        return count
    return ROUNDS


def _attribute(a: onnx.AttributeProto) -> Any:
    return numpy_helper.to_array(a.t) if a.type == onnx.AttributeProto.TENSOR else onnx.helper.get_attribute_value(a)


def _infer_node(
    bare: onnx.ModelProto,
    node: onnx.NodeProto,
    opsets: dict[str, int],
    sizes: dict[str, tuple[int, ...] | None],
    known: dict[str, IntTensor],
    types: dict[str, onnx.TypeProto],
) -> None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    standard = domain in opsets and defs.has(node.op_type, opsets[domain], domain)
    if not standard and domain not in ("", contrib.DOMAIN):
        return
    given: dict[str, onnx.TypeProto] = {}
    for name in node.input:
        if name and name in types:
            given[name] = types[name]
            shape = sizes.get(name)
            if shape is not None and types[name].HasField("tensor_type"):
                given[name] = onnx.helper.make_tensor_type_proto(types[name].tensor_type.elem_type, shape)
    if any(n and n not in given for n in node.input):
        return
    try:
        data = {n: _as_tensor(n, known[n], given[n]) for n in given if n in known}
        if not standard:
            result = contrib.infer_contrib(node, given)
        else:
            schema = defs.get_schema(node.op_type, opsets[domain], domain)
            result = shape_inference.infer_node_outputs(
                schema, node, given, data, opset_imports=list(bare.opset_import), ir_version=bare.ir_version
            )
    except Exception:  # noqa: BLE001  unknown stays unknown: whatever touches it is frozen
        return
    for name, type_proto in result.items():
        value = onnx.ValueInfoProto(name=name, type=type_proto)
        types[name] = type_proto
        if sizes.get(name) is None:
            sizes[name] = shape_of(value)


def _as_tensor(name: str, known: IntTensor, kind: onnx.TypeProto) -> onnx.TensorProto:
    array = np.array([e.value for e in known.items]).reshape(known.shape)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)
    return numpy_helper.from_array(array.astype(dtype), name)


def _may_carry_sizes(t: onnx.TensorProto) -> bool:
    """Say whether a tensor is small and integer, or a handful of numbers that sizes may be computed with."""
    n = math.prod(t.dims)
    return (n <= SMALL and t.data_type in _INTEGERS) or (n <= 8 and t.data_type in _FLOATS)


def known_integers(flat: Flat) -> dict[str, IntTensor]:
    """Read the small constants that may carry sizes."""
    known: dict[str, IntTensor] = {}
    for name, t in flat.tensors.items():
        if _may_carry_sizes(t) and has_data(t):
            known[name] = integers.from_array(numpy_helper.to_array(t))
    for node in flat.nodes:
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            continue
        for a in node.attribute:
            if a.name == "value" and _may_carry_sizes(a.t):
                known[node.output[0]] = integers.from_array(numpy_helper.to_array(a.t))
            elif a.name in ("value_int", "value_ints", "value_float", "value_floats"):
                known[node.output[0]] = integers.from_array(np.array(onnx.helper.get_attribute_value(a)))
    return known


def has_data(t: onnx.TensorProto) -> bool:
    """Say whether the data of a tensor is in its proto."""
    return t.HasField("raw_data") or any(len(getattr(t, name)) for name in DATA_FIELDS)


def types_of(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    """Give the types that are declared or inferred, and those of initializers, by name."""
    types = {v.name: v.type for v in [*graph.input, *graph.value_info, *graph.output]}
    for t in graph.initializer:
        types[t.name] = onnx.helper.make_tensor_type_proto(t.data_type, list(t.dims))
    return types


def shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """Give a declared shape, None where it is not known in full."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    if not all(d.HasField("dim_value") and d.dim_value >= 0 for d in dims):
        return None
    return tuple(d.dim_value for d in dims)
