"""Questions about the constant operands of a node: is there one, how large, what number is it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx.checker import ValidationError
from onnx_graphsurgeon.ir.tensor import SparseValues

Where: TypeAlias = Callable[[gs.Node], bool]

#: Decompositions spell √2, √(2/π), … with three digits or more, and in bfloat16 with less.
TOLERANCE = 5e-3

#: A weight is at most this many nodes away from its initializer (dequantize, transpose, cast, reshape, weight norm).
REACH = 16

#: Operators whose first input is the data and whose others only say how to see it.
VIEWS = frozenset(
    ("Cast", "CastLike", "DequantizeLinear", "Expand", "Gather", "Identity", "QuantizeLinear", "Reshape", "Slice")
) | {"Squeeze", "Transpose", "Unsqueeze"}


def is_constant(value: gs.Tensor) -> bool:
    """Say whether `value` is an initializer, a Constant node's output, or computed from nothing but these nearby."""
    return constants_behind(value) != []


def constants_behind(value: gs.Tensor) -> list[gs.Constant]:
    """List the constants that `value` is computed from; none if anything else goes into it or they are far away.

    Of DequantizeLinear, Reshape and their like only the data is followed, not scales and shapes.
    """
    found: list[gs.Constant] = []
    todo = [value]
    for _ in range(REACH):
        if not todo:
            return found
        current = todo.pop()
        known = _stored(current)
        if known is not None:
            found.append(known)
            continue
        inputs = [item for item in current.inputs[0].inputs if not item.is_empty()] if current.inputs else []
        if not inputs:
            return []
        todo.extend(inputs[:1] if current.inputs[0].op in VIEWS else reversed(inputs))
    return [] if todo else found


def literal(value: gs.Tensor) -> gs.Constant | None:
    """Give the constant that `value` is another view of (cast, reshaped, transposed); None if it is computed."""
    for _ in range(REACH):
        known = _stored(value)
        if known is not None or not value.inputs or value.inputs[0].op not in VIEWS:
            return known
        value = value.inputs[0].inputs[0]
    return None


def _stored(value: gs.Tensor) -> gs.Constant | None:
    if isinstance(value, gs.Constant):
        return value
    producer = value.inputs[0] if value.inputs else None
    if producer is None or producer.op != "Constant" or not producer.attrs:
        return None
    held = next(iter(producer.attrs.values()))
    return gs.Constant(value.name, array(held) if isinstance(held, gs.Constant) else np.asarray(held))


def array(constant: gs.Constant) -> np.ndarray[Any, Any]:
    """Read a constant; unlike `constant.values`, leaves the graph's own copy unread, so that its type survives."""
    held = vars(constant)["_values"]
    if isinstance(held, np.ndarray):
        return held
    return held.load() if isinstance(held, SparseValues) else np.asarray(numpy_helper.to_array(held.tensor))


def number(value: gs.Tensor) -> float | None:
    """Give the number in a constant of one element, seen through casts and reshapes; None if it is none of these."""
    found = literal(value)
    quantized = bool(value.inputs) and value.inputs[0].op in ("DequantizeLinear", "QuantizeLinear")
    if found is None or quantized or math.prod(found.shape) != 1:
        return None
    try:
        return float(np.asarray(array(found), dtype=np.float64).reshape(()))
    except (OSError, TypeError, ValueError, ValidationError):  # strings, and external data that is not at hand
        return None


def reads(wanted: float) -> Where:
    """Give a test for nodes with a constant input that is about `wanted`."""
    return lambda node: any(close(number(value), wanted) for value in node.inputs)


def reads_scalar(node: gs.Node) -> bool:
    """Say whether `node` has a constant input of one element."""
    return any(number(value) is not None for value in node.inputs)


def reads_vector(node: gs.Node) -> bool:
    """Say whether `node` has a constant input with at most one axis longer than 1: a bias, a scale, a slope."""
    found = [literal(value) for value in node.inputs]
    return any(known is not None and sum(size != 1 for size in known.shape) <= 1 for known in found)


def constant_at(slot: int) -> Where:
    """Give a test for nodes whose input `slot` is constant."""
    return lambda node: len(node.inputs) > slot and is_constant(node.inputs[slot])


def attribute(node: gs.Node, name: str, default: float) -> float:
    """Give a float attribute of `node`."""
    return float(node.attrs.get(name, default))


def close(value: float | None, wanted: float) -> bool:
    """Say whether `value` is `wanted` up to the digits that exporters keep."""
    return value is not None and math.isclose(value, wanted, rel_tol=TOLERANCE, abs_tol=1e-6)
