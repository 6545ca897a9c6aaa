"""Leaves whose labels may differ from block to block: other head dims in every head, other channels in every group.

An axis (heads head_dim) keeps a rectangular block, but the kept head dims need not be the same in every head: only
their number must be. A leaf has a context, the leaves that count its blocks, when every value it lies on carries the
context along: in the same axis, outside of it, or on another axis that moves with it at every node. A weight is cut
axis by axis, so there the context must be part of the same axis.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from .collect import Collection
from .factors import DisjointSets, Factorization
from .op import Value
from .relations import Contract, Freeze, Regroup, Relation, Select, Tie

Contexts = Mapping[int, tuple[int, ...]]
Occurrence = tuple[int, int]


def find_contexts(collection: Collection, factors: Factorization) -> dict[int, tuple[int, ...]]:
    """Give the context of every leaf that has one: leaves, outermost first."""
    inner = {leaf for leaves in factors.leaves.values() for leaf in leaves[1:]}
    found = {leaf: context for leaf, context in _carried(collection, factors, inner).items() if context}
    if found:
        _drop_unlinked(collection, factors, found)
    # A context stays whole: its own labels do not differ from block to block.
    order = {leaf: k for leaves in factors.leaves.values() for k, leaf in enumerate(leaves)}
    result: dict[int, tuple[int, ...]] = {}
    for leaf in sorted(found, key=lambda f: (len(found[f]), f)):
        context = tuple(sorted((g for g in found[leaf] if g not in result), key=lambda g: (order[g], g)))
        if context and not any(leaf in other for other in result.values()):
            result[leaf] = context
    return result


def _before(leaves: tuple[int, ...], leaf: int) -> set[int]:
    """List the leaves outside `leaf` in one axis; none where it occurs twice."""
    return set(leaves[: leaves.index(leaf)]) if leaves.count(leaf) == 1 else set()


def _carried(collection: Collection, factors: Factorization, candidates: set[int]) -> dict[int, set[int]]:
    """Find, per candidate, the leaves that all values and selections it lies on carry along."""
    found: dict[int, set[int]] = {}

    def narrow(leaf: int, carried: set[int]) -> None:
        found[leaf] = found[leaf] & carried if leaf in found else carried

    for value in _values(collection):
        parts = _leaves_of(factors, value)
        if not any(leaf in candidates for leaves in parts for leaf in leaves):
            continue
        everywhere = [leaf for leaves in parts for leaf in leaves]
        once = {leaf for leaf in everywhere if everywhere.count(leaf) == 1}
        for k, leaves in enumerate(parts):
            elsewhere = {g for j, other in enumerate(parts) if j != k for g in other}
            for leaf in candidates.intersection(leaves):
                before = _before(leaves, leaf)
                carried = before if value.constant else (before | elsewhere) - set(leaves[leaves.index(leaf) :])
                narrow(leaf, carried & once if leaf in once else set())
    for r in collection.relations:
        for axis in _indexed(r):
            leaves = factors.leaves.get(factors.class_of[axis], ())
            for leaf in candidates.intersection(leaves):
                narrow(leaf, _before(leaves, leaf))
    return found


def _indexed(r: Relation) -> tuple[int, ...]:
    """List the axes of which a relation speaks index by index."""
    if isinstance(r, Select):
        return r.source, r.target
    return (r.axis,) if isinstance(r, Freeze) and r.index is not None else ()


def _values(collection: Collection) -> Iterable[Value]:
    yield from collection.parameters
    for value in collection.values.values():
        if value is not None and not value.initializer:
            yield value


def _leaves_of(factors: Factorization, value: Value) -> list[tuple[int, ...]]:
    return [factors.leaves.get(factors.class_of[a.id], ()) if a.size > 1 else () for a in value.axes]


def _drop_unlinked(collection: Collection, factors: Factorization, found: dict[int, set[int]]) -> None:
    """Drop context leaves that some node does not carry from value to value together with the leaf."""
    by_node: dict[int, list[Relation]] = defaultdict(list)
    for r in collection.relations:
        if isinstance(r, (Tie, Contract, Regroup)):
            by_node[r.node].append(r)
    classes = {c for c, leaves in factors.leaves.items() if any(leaf in found for leaf in leaves)}
    for op in collection.ops:
        values = {id(v): v for v in (*op.inputs, *op.outputs) if v is not None}
        axes = {a.id for v in values.values() for a in v.axes if factors.class_of[a.id] in classes and a.size > 1}
        if not axes:
            continue
        component = _linked(factors, by_node[op.index])
        sharing: dict[tuple[int, int], list[Value]] = {}
        for value in values.values():
            for leaf, axis, k in _occurrences(factors, value):
                if leaf in found:
                    sharing.setdefault((leaf, component.get((axis, k), -1 - axis)), []).append(value)
        for (leaf, _), together in sharing.items():
            if len(together) > 1:
                found[leaf] &= _moving_along(factors, together, component)


def _moving_along(factors: Factorization, values: list[Value], component: Mapping[Occurrence, int]) -> set[int]:
    """List the leaves whose occurrences in all these values are one and the same at this node."""
    rows = [{leaf: component.get((axis, k), -1 - axis) for leaf, axis, k in _occurrences(factors, v)} for v in values]
    first, *others = rows
    return {leaf for leaf, c in first.items() if all(row.get(leaf) == c for row in others)}


def _occurrences(factors: Factorization, value: Value) -> Iterable[tuple[int, int, int]]:
    """List the leaves of a value: (leaf, axis, position in the axis)."""
    for axis, leaves in zip(value.axes, _leaves_of(factors, value), strict=True):
        for k, leaf in enumerate(leaves):
            yield leaf, axis.id, k


def _linked(factors: Factorization, relations: list[Relation]) -> dict[Occurrence, int]:
    """Number the components of leaf occurrences (axis, position) that one node's relations identify."""
    numbers: dict[Occurrence, int] = {}
    pairs: list[tuple[Occurrence, Occurrence]] = []
    for r in relations:
        if isinstance(r, Regroup):
            left, right = _spread(factors, r.left), _spread(factors, r.right)
            if [leaf for leaf, _ in left] == [leaf for leaf, _ in right]:
                pairs += [(a, b) for (_, a), (_, b) in zip(left, right, strict=True)]
        elif isinstance(r, (Tie, Contract)) and r.b is not None:
            leaves = factors.leaves.get(factors.class_of[r.a], ())
            pairs += [((r.a, k), (r.b, k)) for k in range(len(leaves))]
    for a, b in pairs:
        numbers.setdefault(a, len(numbers))
        numbers.setdefault(b, len(numbers))
    sets = DisjointSets(len(numbers))
    for a, b in pairs:
        sets.union(numbers[a], numbers[b])
    return {occurrence: sets.find(k) for occurrence, k in numbers.items()}


def _spread(factors: Factorization, axes: Iterable[int]) -> list[tuple[int, Occurrence]]:
    return [(leaf, (axis, k)) for axis in axes for k, leaf in enumerate(factors.leaves.get(factors.class_of[axis], ()))]
