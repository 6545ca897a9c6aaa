"""The layout of a tensor as people read it: `embedding=48, (3 heads=4 head_dim=12)`.

An axis is the product of its factors in parentheses, or parts one after another joined by +. A factor that units run
along has its kind; a bare number is locked.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .analysis import Analysis
    from .labels import Labels
    from .op import Value

MAX_PARTS = 6


def layout(analysis: Analysis, value: Value) -> str:
    """Spell the axes of a value, comma-separated."""
    return ", ".join(_axis(analysis, axis.id, axis.size) for axis in value.axes)


def _axis(analysis: Analysis, axis: int, size: int) -> str:
    factors = analysis.factors
    if size <= 1:
        return str(size)
    leaves = factors.leaves[factors.class_of[axis]]
    parts = [_leaf(analysis, leaf, np.arange(factors.leaf_size[leaf])) for leaf in leaves]
    return parts[0] if len(parts) == 1 else f"({' '.join(parts)})"


def _leaf(analysis: Analysis, leaf: int, labels: Labels) -> str:
    """Spell some labels of one leaf: runs of one group, or of one product where the leaf is covered."""
    layers = analysis.labeling.covers.get(leaf, [])
    covered = [(other, table[labels]) for other, table in layers]
    pattern = np.zeros(len(labels), dtype=np.int64)
    for bit, (_, table) in enumerate(covered):
        pattern |= (table >= 0).astype(np.int64) << bit
    kinds = analysis.kind_at(leaf, labels)
    starts = np.flatnonzero(np.concatenate([[True], (pattern[1:] != pattern[:-1]) | (kinds[1:] != kinds[:-1])]))
    texts = []
    for start, stop in zip(starts, [*starts[1:], len(labels)], strict=True):
        inner = [(other, table[start:stop]) for other, table in covered if table[start] >= 0]
        if inner:
            sizes = analysis.factors.leaf_size
            distinct = [(other, np.unique(table % sizes[other])) for other, table in inner]
            product = [_leaf(analysis, other, table) for other, table in distinct]
            times = int(stop - start) // math.prod(len(table) for _, table in distinct)
            text = f"({' '.join(product)})" if len(product) > 1 else product[0]
            texts.append(text if times <= 1 else f"{times} x {text}")
        else:
            kind = analysis.groups[kinds[start]].kind if kinds[start] >= 0 else None
            n = int(stop - start)
            texts.append(f"{kind}={n}" if kind else str(n))
    shown = texts if len(texts) <= MAX_PARTS else [*texts[: MAX_PARTS - 1], f"{len(texts) - MAX_PARTS + 1} more parts"]
    return " + ".join(shown) if len(shown) == 1 else f"({' + '.join(shown)})"
