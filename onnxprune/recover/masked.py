"""Masked weights: the original's, with zeros wherever a plan cuts. The model runs with them as the pruned one will."""

from __future__ import annotations

from collections import Counter

from ..axes.analysis import Analysis, Keep
from ..axes.cuts import versions
from .products import Array

# What is divided by, or an exponent: a zero there would not stand for nothing.
NEEDED = frozenset({("BatchNormalization", 4), ("Div", 1), ("Pow", 1), ("QuantizeLinear", 1), ("DequantizeLinear", 1)})


def masked_weights(analysis: Analysis, alive: Keep) -> dict[str, Array]:
    """Give the initializers that change, by name.

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
        kind = analysis.model.tensors[version.initializer].data_type
        if several[version.initializer] > 1 or version.initializer in needed or kind not in (1, 10, 11):
            continue
        array = analysis.model.array(version.initializer).copy()
        for axis, keep in version.keeps.items():
            array.swapaxes(0, axis)[~keep] = 0
        if version.keeps:
            values[version.initializer] = array
    return values
