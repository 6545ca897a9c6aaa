"""Which removals are exact: what stays zero in the masked model, and where statistics are taken.

The masked model has zeros in every removed slice of every weight. A sum over a removed index adds nothing where its
terms are zero there: beside a weight always, between two computed values only if zeros reach one of them.
"""

from __future__ import annotations

from collections import defaultdict

from .collect import Collection
from .relations import Contract, Mix, Regroup, Relation, Select, Tie

Edges = dict[int, list[int]]


def inexact_axes(collection: Collection) -> list[tuple[int, str, int]]:
    """List the axes whose removal changes more than masking does: (axis, why, node)."""
    by_node: dict[int, list[Relation]] = defaultdict(list)
    for r in collection.relations:
        if isinstance(r, (Tie, Regroup, Select)):
            by_node[r.node].append(r)
    zero = bytearray(len(collection.sizes))
    for value in collection.parameters:
        for axis in value.axes:
            zero[axis.id] = axis.size > 1
    for op in collection.ops:
        mode = collection.zero_modes.get(op.index)
        if mode is not None:
            _follow_zeros(collection, op.index, mode, _edges(collection, by_node[op.index]), zero)
    found = []
    for r in collection.relations:
        if isinstance(r, Mix):
            found.append((r.axis, f"{collection.node_label(r.node)}: {r.why}", r.node))
        elif isinstance(r, Contract) and not (zero[r.a] or (r.b is not None and zero[r.b])):
            why = f"{collection.node_label(r.node)} sums over it, and zeros do not reach there"
            found.append((r.a, why, r.node))
    return found


def _edges(collection: Collection, relations: list[Relation]) -> Edges:
    edges: Edges = defaultdict(list)
    for r in relations:
        if isinstance(r, Tie):
            pairs = [(r.a, r.b)]
        elif isinstance(r, Select):
            pairs = [(r.source, r.target)]
        elif isinstance(r, Regroup):
            pairs = _overlapping(collection.sizes, r)
        else:
            continue
        for a, b in pairs:
            edges[a].append(b)
            edges[b].append(a)
    return edges


def _overlapping(sizes: list[int], r: Regroup) -> list[tuple[int, int]]:
    """Pair axes of the two sides that share a factor: their spans of the running product overlap."""
    spans = []
    for side in (r.left, r.right):
        position, row = 1, []
        for a in side:
            row.append((a, position, position * sizes[a]))
            position *= sizes[a]
        spans.append(row)
    return [(a, b) for a, s, e in spans[0] for b, t, f in spans[1] if s < f and t < e]


def _follow_zeros(
    collection: Collection, node: int, mode: tuple[str, tuple[int, ...]], edges: Edges, zero: bytearray
) -> None:
    op = collection.ops[node]
    how, slots = mode
    owner_slot: dict[int, set[int]] = defaultdict(set)
    for slot in slots:
        value = op.inputs[slot] if slot < len(op.inputs) else None
        for axis in value.axes if value is not None else ():
            owner_slot[axis.id].add(slot)
    given = [s for s in slots if op.given(s)]
    outputs = {axis.id for y in op.outputs if y is not None for axis in y.axes}
    for axis in outputs:
        states: dict[int, bool] = {}
        seen, stack = {axis}, [axis]
        while stack:
            for other in edges.get(stack.pop(), ()):
                if other in seen:
                    continue
                seen.add(other)
                for slot in owner_slot.get(other, ()):
                    states[slot] = states.get(slot, True) and bool(zero[other])
                if collection.owner[other] is None:
                    stack.append(other)
        if how == "any":
            zero[axis] = any(states.values())
        else:
            zero[axis] = bool(given) and all(states.get(s, False) for s in given)
