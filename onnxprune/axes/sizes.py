"""Check, before units are formed, that every size written in the graph can follow the axis it counts.

A literal can be rewritten. A number computed from the shape of another value follows by itself, if that value's axis
is the same one. Anything else freezes both axes.
"""

from __future__ import annotations

from ..errors import RuleDefect
from ..graph.integers import Expr
from .collect import Collection
from .factors import Factorization
from .relations import Freeze, SizeBinding


def check_sizes(collection: Collection, factors: Factorization) -> list[Freeze]:
    """List the freezes that keep computed sizes right."""
    freezes: list[Freeze] = []
    for b in collection.bindings:
        if not isinstance(b, SizeBinding) or not isinstance(b.where, int) or collection.sizes[b.axis] <= 1:
            continue
        known = collection.shapes.integers.get(collection.ops[b.node].x(b.where).name)
        if known is None:
            freezes.append(Freeze(b.axis, "its size is computed from data", b.node))
            continue
        if (b.item or 0) >= len(known.items):
            raise RuleDefect(f"{len(known.items)} sizes are given where {(b.item or 0) + 1} axes are")
        e = known.items[b.item or 0]
        if e.op == "lit" or not _runtime(collection, e):
            continue
        if e.dim is not None and _same_axis(collection, factors, e, b):
            continue
        if not e.is_product():
            why = "a size is computed from it in a way that cannot be rewritten"
            freezes += [Freeze(a, why, b.node) for a in (b.axis, *_measured(collection, e))]
    return freezes


def _measured(collection: Collection, e: Expr) -> list[int]:
    """List the axes whose sizes an expression reads."""
    values = [(collection.values.get(name), k) for name, k in sorted(e.dims())]
    return [v.axes[k].id for v, k in values if v is not None and v.shape[k] > 1]


def _runtime(collection: Collection, e: Expr) -> bool:
    """Say whether the number may differ from run to run."""
    return any(collection.shapes.is_dynamic(name, k) for name, k in e.dims())


def _same_axis(collection: Collection, factors: Factorization, e: Expr, b: SizeBinding) -> bool:
    assert e.dim is not None
    value = collection.values.get(e.dim[0])
    return value is not None and factors.class_of[value.axes[e.dim[1]].id] == factors.class_of[b.axis]
