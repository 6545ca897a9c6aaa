"""Which removals are exact: what stays zero in the masked model, and where statistics are taken.

The masked model has zeros in every removed slice of every weight. A sum over a removed index adds nothing where its
terms are zero there: beside a weight always, between two computed values only if zeros reach one of them.
"""

from __future__ import annotations

from collections import defaultdict

from .collect import Collection
from .relations import Contract, Freeze, Mix, Regroup, Relation, Select, Tie, overlapping

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
    # Nothing goes from a frozen axis, so whatever is said about its removed indices holds.
    frozen = {r.axis for r in collection.relations if isinstance(r, Freeze) and r.index is None}
    for axis_id in frozen:
        zero[axis_id] = True
    unowned = _contracted_locals(collection)
    for op in collection.ops:
        mode = collection.zero_modes.get(op.index)
        if mode is None and op.index not in unowned:
            continue
        edges = _edges(collection, by_node[op.index])
        for local in unowned.get(op.index, ()):
            zero[local] = _inputs_are_zero(collection, op.index, local, edges, zero)
        if mode is not None:
            _follow_zeros(collection, op.index, mode, edges, zero, frozen)
    found = []
    for r in collection.relations:
        if isinstance(r, Mix):
            found.append((r.axis, f"{collection.node_label(r.node)}: {r.why}", r.node))
        elif isinstance(r, Contract) and not (zero[r.a] or (r.b is not None and zero[r.b])):
            why = f"{collection.node_label(r.node)} sums over it, and zeros do not reach there"
            found.append((r.a, why, r.node))
    return found


def _contracted_locals(collection: Collection) -> dict[int, list[int]]:
    """List, per node, the contracted axes that belong to no value: factors of its inputs' axes."""
    found: dict[int, list[int]] = defaultdict(list)
    for r in collection.relations:
        if isinstance(r, Contract):
            found[r.node] += [a for a in (r.a, r.b) if a is not None and collection.owner[a] is None]
    return found


def _inputs_are_zero(collection: Collection, node: int, local: int, edges: Edges, zero: bytearray) -> bool:
    """Say whether zeros reach a factor: through every input axis that it is a part of."""
    inputs = {a.id for x in collection.ops[node].inputs if x is not None for a in x.axes}
    reached: set[int] = set()
    seen, stack = {local}, [local]
    while stack:
        for other in edges.get(stack.pop(), ()):
            if other not in seen:
                seen.add(other)
                if other in inputs:
                    reached.add(other)
                elif collection.owner[other] is None:
                    stack.append(other)
    return bool(reached) and all(zero[a] for a in reached)


def _edges(collection: Collection, relations: list[Relation]) -> Edges:
    edges: Edges = defaultdict(list)
    for r in relations:
        if isinstance(r, Tie):
            pairs = [(r.a, r.b)]
        elif isinstance(r, Select):
            pairs = [(r.source, r.target)]
        elif isinstance(r, Regroup):
            pairs = overlapping(collection.sizes, r)
        else:
            continue
        for a, b in pairs:
            edges[a].append(b)
            edges[b].append(a)
    return edges


def _follow_zeros(
    collection: Collection,
    node: int,
    mode: tuple[str, tuple[int, ...]],
    edges: Edges,
    zero: bytearray,
    frozen: set[int],
) -> None:
    op = collection.ops[node]
    how, slots = mode
    owner_slot: dict[int, set[int]] = defaultdict(set)
    for slot in slots:
        value = op.inputs[slot] if slot < len(op.inputs) else None
        for a in value.axes if value is not None else ():
            owner_slot[a.id].add(slot)
    given = [s for s in slots if op.given(s)]
    outputs = {a.id for y in op.outputs if y is not None for a in y.axes} - frozen
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
        if how == "always":
            zero[axis] = True
        elif how == "any":
            zero[axis] = any(states.values())
        else:
            zero[axis] = bool(given) and all(states.get(s, False) for s in given)
