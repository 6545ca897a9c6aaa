"""Masked weights: the original's, with zeros wherever a plan cuts. The model runs with them as the pruned one will."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ..axes.analysis import Analysis, Keep
from ..axes.cuts import versions
from ..axes.op import Op
from ..graph.codes import MOVES_CODES, ZERO_POINT_SLOT
from .products import FLOATS, Array

# What is divided by, or an exponent: a zero there would not stand for nothing.
NEEDED = frozenset({("BatchNormalization", 4), ("Div", 1), ("Pow", 1), ("QuantizeLinear", 1), ("DequantizeLinear", 1)})
CODES = frozenset((2, 3, 21, 22))


def masked_weights(analysis: Analysis, alive: Keep) -> dict[str, Array]:
    """Give the initializers that change, by name: zeros in place of what is cut, or a zero point for quantized codes.

    One that several nodes cut differently keeps what any of them keeps: what stands in a removed place is not read
    again, since the columns that read it are zero.
    """
    found = versions(analysis, alive)
    several = Counter(v.initializer for v in found)
    needed = {
        x.name for op in analysis.collection.ops for k, x in enumerate(op.inputs) if x and (op.node.op, k) in NEEDED
    }
    values: dict[str, Array] = {}
    for version in found:
        name, kind = version.initializer, analysis.model.tensors[version.initializer].data_type
        if several[name] > 1 or name in needed or not version.keeps or kind not in FLOATS | CODES:
            continue
        points = {0} if kind in FLOATS else zero_points(analysis, name)
        if points is None or len(points) != 1:
            continue
        array = analysis.model.array(name).copy()
        for axis, keep in version.keeps.items():
            array.swapaxes(0, axis)[~keep] = next(iter(points))
        values[name] = array
    return values


def hidden_from_masks(analysis: Analysis, alive: Keep) -> str | None:
    """Name a quantized tensor whose cut `masked_weights` cannot show: its zero points are computed, or differ."""
    for version in versions(analysis, alive):
        name = version.initializer
        is_codes = analysis.model.tensors[name].data_type in CODES
        if version.keeps and is_codes:
            points = zero_points(analysis, name)
            if points is None or len(points) > 1:
                return name
    return None


def zero_points(analysis: Analysis, name: str) -> set[int] | None:
    """Give the codes that stand for zero where a tensor is read as codes, none where it is not; None if computed."""
    readers: dict[str, list[tuple[Op, int]]] = {}
    for op in analysis.collection.ops:
        for slot, read in enumerate(op.node.inputs):
            readers.setdefault(read.name, []).append((op, slot))
    waiting, points = [name], set[int]()
    while waiting:
        for op, slot in readers.get(waiting.pop(), ()):
            if (op.node.op, slot) in ZERO_POINT_SLOT:
                at = ZERO_POINT_SLOT[op.node.op, slot]
                given = op.node.inputs[at].name if at is not None and at < len(op.node.inputs) else ""
                if given and given not in analysis.model.tensors:
                    return None
                points.update(np.unique(analysis.model.array(given)).tolist() if given else [0])
            elif op.node.op in MOVES_CODES and slot == 0:
                waiting += [t.name for t in op.node.outputs]
    return points
