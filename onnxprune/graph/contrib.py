"""Shapes of onnxruntime's own operators, which onnx's shape inference does not know.

A rule takes the node's attributes and the shapes of its inputs, and gives the shapes of its outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
from onnx import TensorProto, defs, shape_inference

from .contrib_attention import ATTENTION_SHAPES

Shape = tuple[int, ...]
Attributes = Mapping[str, Any]
ShapeRule = Callable[[Attributes, Sequence[Shape]], list[Shape]]

DOMAIN = "com.microsoft"


def infer_contrib(node: onnx.NodeProto, given: Mapping[str, onnx.TypeProto]) -> dict[str, onnx.TypeProto]:
    """Give the types of the outputs of a com.microsoft node; nothing where they are not known."""
    rule = _RULES.get(node.op_type)
    if rule is None:
        return {}
    shapes: list[Shape] = []
    for name in node.input:
        tensor = given[name].tensor_type if name in given else None
        dims = tensor.shape.dim if tensor is not None else ()
        if tensor is not None and not (tensor.HasField("shape") and all(d.HasField("dim_value") for d in dims)):
            return {}
        shapes.append(tuple(d.dim_value for d in dims))
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    slot, default = _TYPE_FROM.get(node.op_type, (0, TensorProto.FLOAT))
    source = node.input[slot] if 0 <= slot < len(node.input) else ""
    elem_type = given[source].tensor_type.elem_type if source in given else default
    try:
        outputs = rule(attributes, shapes)
    except (IndexError, KeyError, ValueError, ZeroDivisionError):
        return {}
    make = onnx.helper.make_tensor_type_proto
    return {name: make(elem_type, shape) for name, shape in zip(node.output, outputs, strict=False) if name}


def _same(_: Attributes, x: Sequence[Shape]) -> list[Shape]:
    return [x[0], x[0]]


def _broadcast(*slots: int) -> ShapeRule:
    def rule(_: Attributes, x: Sequence[Shape]) -> list[Shape]:
        rank = max(len(x[s]) for s in slots)
        rows = [(1,) * (rank - len(x[s])) + x[s] for s in slots]
        return [tuple(max(column) for column in zip(*rows, strict=True))]

    return rule


def _standard(op: str, *slots: int, last: bool | None = False) -> ShapeRule:
    """Ask onnx about the standard operator of the same geometry; `last`: channels lie last, None: as attributes say."""

    def rule(attributes: Attributes, x: Sequence[Shape]) -> list[Shape]:
        schema = defs.get_schema(op, 13, "")
        moved = bool(attributes.get("channels_last", 0)) if last is None else last
        shapes = [x[s] for s in slots]
        if moved:
            shapes[0] = (shapes[0][0], shapes[0][-1], *shapes[0][1:-1])
            if len(shapes) > 1 and shapes[1][1] * attributes.get("group", 1) != shapes[0][1]:
                shapes[1] = (shapes[1][0], shapes[1][-1], *shapes[1][1:-1])
        node = onnx.helper.make_node(op, [f"x{k}" for k in range(len(slots))], ["y"])
        node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in attributes.items() if k in schema.attributes)
        types = {f"x{k}": onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, s) for k, s in enumerate(shapes)}
        try:
            found = shape_inference.infer_node_outputs(schema, node, types)["y"].tensor_type.shape.dim
        except Exception as error:
            raise ValueError(str(error)) from error
        y = tuple(d.dim_value for d in found)
        return [(y[0], *y[2:], y[1]) if moved else y]

    return rule


def _matmul(a: int, b: int) -> ShapeRule:
    def rule(attributes: Attributes, x: Sequence[Shape]) -> list[Shape]:
        left, right = (_ordered(attributes, x[s], which) for s, which in ((a, "A"), (b, "B")))
        batch = _broadcast(0, 1)(attributes, [tuple(left[:-2]), tuple(right[:-2])])[0]
        return [(*batch, *(left[-2:-1]), *(right[-1:] if len(right) > 1 else ()))]

    return rule


def _ordered(attributes: Attributes, shape: Shape, which: str) -> list[int]:
    dims = list(shape)
    if len(dims) > 1 and attributes.get(f"transBatch{which}", 0):
        dims.insert(len(dims) - 2, dims.pop(0))
    if len(dims) > 1 and attributes.get(f"trans{which}", 0):
        dims[-2:] = dims[:-3:-1]
    return dims


def _gemm(a: int, b: int) -> ShapeRule:
    def rule(attributes: Attributes, x: Sequence[Shape]) -> list[Shape]:
        return [(x[a][1 if attributes.get("transA", 0) else 0], x[b][0 if attributes.get("transB", 0) else 1])]

    return rule


def _concat(attributes: Attributes, x: Sequence[Shape]) -> list[Shape]:
    parts = x[2::3]
    at = attributes["axis"] % len(parts[0])
    total = sum(part[at] for part in parts)
    return [(*parts[0][:at], total, *parts[0][at + 1 :])]


def _to_n(attributes: Attributes, x: Sequence[Shape]) -> list[Shape]:
    return [(*x[0][:-1], attributes["N"])]


def _half(_: Attributes, x: Sequence[Shape]) -> list[Shape]:
    return [(*x[0][:-1], x[0][-1] // 2)]


def _lstm(_: Attributes, x: Sequence[Shape]) -> list[Shape]:
    (time, batch, _input), (directions, hidden, _gates) = x[0], x[2]
    state = (directions, batch, hidden)
    return [(time, directions, batch, hidden), state, state]


def _gather_blocks(attributes: Attributes, x: Sequence[Shape]) -> list[Shape]:
    table, index = list(x[0]), x[1]
    at, q = attributes.get("gather_axis", 0) % len(table), attributes.get("quantize_axis", 1) % len(table)
    blocks = x[2][q]
    # A table of bytes may hold two codes each; its scales tell.
    if math.ceil(table[q] / attributes.get("block_size", 128)) != blocks:
        table[q] *= 8 // attributes.get("bits", 4)
    return [(*table[:at], *index, *table[at + 1 :])]


_TYPE_FROM: dict[str, tuple[int, int]] = {
    "QuantizeLinear": (2, TensorProto.UINT8),
    "DequantizeLinear": (1, TensorProto.FLOAT),
    "QLinearConcat": (1, TensorProto.UINT8),
    "QGemm": (8, TensorProto.FLOAT),
    "MatMulIntegerToFloat": (2, TensorProto.FLOAT),
    "GatherBlockQuantized": (2, TensorProto.FLOAT),
    "EmbedLayerNormalization": (2, TensorProto.FLOAT),
    "QAttention": (3, TensorProto.FLOAT),
    "QLinearWhere": (1, TensorProto.UINT8),
}
_RULES: dict[str, ShapeRule] = {
    **ATTENTION_SHAPES,
    **dict.fromkeys(
        (
            *("QuantizeLinear", "DequantizeLinear", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "Gelu"),
            *("QuickGelu", "FastGelu", "BiasGelu", "BiasAdd", "BiasDropout", "BiasSoftmax", "GroupNorm"),
            *("SkipGroupNorm", "Trilu", "MoE", "QMoE"),
        ),
        _same,
    ),
    "QLinearAdd": _broadcast(0, 3),
    "QLinearMul": _broadcast(0, 3),
    "QLinearWhere": _broadcast(0, 1, 4),
    "QLinearConcat": _concat,
    "QLinearAveragePool": _standard("AveragePool", 0, last=None),
    "QLinearGlobalAveragePool": _standard("GlobalAveragePool", 0, last=None),
    "NhwcMaxPool": _standard("MaxPool", 0, last=True),
    "NhwcConv": _standard("Conv", 0, 1, last=True),
    "NhwcFusedConv": _standard("Conv", 0, 1, last=True),
    "FusedConv": _standard("Conv", 0, 1),
    "FusedMatMul": _matmul(0, 1),
    "GemmFastGelu": _matmul(0, 1),
    "MatMulIntegerToFloat": _matmul(0, 1),
    "DynamicQuantizeMatMul": _matmul(0, 1),
    "FusedGemm": _gemm(0, 1),
    "QGemm": _gemm(0, 3),
    "MatMulNBits": _to_n,
    "BiasSplitGelu": _half,
    "DynamicQuantizeLSTM": _lstm,
    "GatherBlockQuantized": _gather_blocks,
}
