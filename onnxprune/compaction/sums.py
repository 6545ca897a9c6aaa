"""Sums that no constant weight takes part in: products of two computed values, plain sums, ranges of a quantization.

Nothing can be folded there. A unit may go where its terms are zero, or where they only shift the rows of a Softmax.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet

import numpy as np

from ..axes.analysis import Analysis
from ..axes.labels import Labels
from ..axes.op import Op, Value
from ..axes.relations import Contract, Mix
from .facts import Facts, Step
from .known import Known
from .readers import Reader
from .transfer_state import GATES, read_weights, zero_states

_SHIFTED = frozenset(("Add", "Sub", "Cast", "Identity", "Dropout"))
_QUANTIZED_STATES = frozenset(("DynamicQuantizeLSTM",))
_MASKED_OUT = -1e4


def roots_on(analysis: Analysis, axis: int) -> Labels:
    """List the roots of all units that run along an axis, in every block."""
    cls = analysis.factors.class_of[axis]
    if cls not in analysis.factors.leaves:
        return np.zeros(0, dtype=np.int64)
    labeling = analysis.labeling
    rows = [labeling.root[labeling.offset[leaf] + labels] for leaf, labels in labeling.whole(cls)]
    return np.unique(np.concatenate(rows)) if rows else np.zeros(0, dtype=np.int64)


def mixed_roots(analysis: Analysis) -> dict[int, str]:
    """Give the roots that a statistic runs over, with the reason."""
    found: dict[int, str] = {}
    for r in analysis.collection.relations:
        if isinstance(r, Mix):
            for root in roots_on(analysis, r.axis).tolist():
                found.setdefault(root, f"{analysis.collection.node_label(r.node)}: {r.why}")
    return found


def blocked_roots(facts: Facts, readers: Iterable[Reader]) -> dict[int, str]:
    """Give the roots that add something to a sum no reader describes, with the reason."""
    analysis = facts.analysis
    collection = analysis.collection
    described = {(reader.op.index, reader.axis.id) for reader in readers}
    convolutions = {reader.op.index for reader in readers if reader.op.node.op in ("Conv", "FusedConv")}
    by_node: defaultdict[int, list[Contract]] = defaultdict(list)
    for r in collection.relations:
        if isinstance(r, Contract) and r.node not in convolutions and not {(r.node, r.a), (r.node, r.b)} & described:
            by_node[r.node].append(r)
    found: dict[int, str] = {}
    for node, relations in by_node.items():
        op = collection.ops[node]
        for r in relations:
            summed = roots_on(analysis, r.a)
            free = _without_effect(facts, op, summed, {r.a, r.b})
            for root in np.setdiff1d(summed, free).tolist():
                found.setdefault(root, f"{collection.node_label(node)} sums it with another computed value")
    for op in collection.ops:
        if op.node.op in GATES and _has_states(op) and (op.index, op.x(2)[2].id) not in described:
            for root in roots_on(analysis, op.x(2)[2].id).tolist():
                found.setdefault(root, f"{collection.node_label(op.index)} feeds it back into its gates")
        elif op.node.op in _QUANTIZED_STATES:
            why = (
                f"{collection.node_label(op.index)} rounds what is not zero by the range of all its states at the time"
            )
            for root in _moving_states(facts, op).tolist():
                found[root] = why
    for reader in readers:
        # Indices that differ from block to block along another axis are not told apart by a reader.
        if analysis.labeling.has_context_elsewhere(analysis.factors.class_of[reader.axis.id]):
            for root in roots_on(analysis, reader.axis.id).tolist():
                found.setdefault(
                    root, f"{collection.node_label(reader.op.index)} reads other units of it in every block"
                )
    return found


def _moving_states(facts: Facts, op: Op) -> Labels:
    """List the roots of a recurrent layer with quantized states that are not zero at every step."""
    step, hidden = Step(facts, op, facts.proto(op)), op.x(2)[1]
    weights = read_weights(step)
    if weights is None:
        return roots_on(facts.analysis, hidden.id)
    moves = ~zero_states(step, *weights).all(axis=0)
    roots = np.concatenate([row[moves] for row in facts.analysis.roots(hidden.id)])
    return np.unique(roots[roots >= 0])


def _without_effect(facts: Facts, op: Op, summed: Labels, axes: AbstractSet[int | None]) -> Labels:
    """List the roots among `summed` whose terms are zero on one side, or a shift that a Softmax takes back.

    `axes` are those that are summed away.
    """
    values = [
        v for v in (*op.inputs, *op.outputs) if v is not None and not v.constant and axes & {a.id for a in v.axes}
    ]
    free = [_all(facts, v, summed, facts.known(facts.before_rounding(v).name), uniform=None) for v in values]
    if op.node.op == "MatMul" and len(values) == 2 and _shifts_rows(facts, op):
        # A key that is the same at every position adds one number to all scores of a query.
        keys = values[1]
        if keys.ndim > 1:
            free.append(_all(facts, keys, summed, facts.known(keys.name), uniform=keys.ndim - 1))
    return np.unique(np.concatenate(free)) if free else np.zeros(0, dtype=np.int64)


def _all(facts: Facts, value: Value, roots: Labels, known: Known | None, *, uniform: int | None) -> Labels:
    """List the roots that run along a value and are zero in all of it; with `uniform`, the same along that axis."""
    present: list[Labels] = []
    spoiled: list[Labels] = []
    if uniform is not None:
        good = known.mask if known is not None and known.shape[uniform] == 1 else None
    else:
        good = known.zero if known is not None else None
    for places in unit_places(facts.analysis, value):
        inside = np.isin(places, roots)
        present.append(np.unique(places[inside]))
        if good is None:
            spoiled.append(present[-1])
        else:
            at, fine = np.broadcast_arrays(np.where(inside, places, -1), good)
            spoiled.append(np.unique(at[~fine & (at >= 0)]))
    if not present:
        return np.zeros(0, dtype=np.int64)
    return np.setdiff1d(np.concatenate(present), np.concatenate(spoiled))


def unit_places(analysis: Analysis, value: Value) -> Iterator[Labels]:
    """Give, per axis and layer of a value, the root of every index, shaped to be laid over the value.

    Where indices differ from block to block along another axis, it runs along both.
    """
    labeling, factors = analysis.labeling, analysis.factors
    for k, axis in enumerate(value.axes):
        cls = factors.class_of[axis.id]
        if axis.size <= 1 or cls not in factors.leaves:
            continue
        shape = [1] * value.ndim
        shape[k] = axis.size
        if not labeling.has_context_elsewhere(cls):
            for roots in analysis.roots(axis.id):
                yield roots.reshape(shape)
            continue
        outer = _context_axis(analysis, value, cls)
        if outer is None:
            continue
        heads = analysis.roots(value[outer].id)[0]
        rows = []
        for head in heads.tolist():
            alone = np.zeros(len(labeling.root), dtype=bool)
            alone[head] = True
            rows.append(labeling.roots(cls, axis.size, alone))
        shape[outer] = len(heads)
        for layer in range(len(rows[0])):
            table = np.stack([row[layer] for row in rows], axis=0 if outer < k else 1)
            yield table.reshape(shape)


def _context_axis(analysis: Analysis, value: Value, cls: int) -> int | None:
    """Find the axis of a value whose indices are the blocks of another's."""
    labeling, factors = analysis.labeling, analysis.factors
    contexts = {g for leaf in factors.leaves[cls] for g in labeling.contexts.get(leaf, ())}
    for k, axis in enumerate(value.axes):
        leaves = factors.leaves.get(factors.class_of[axis.id], ())
        if axis.size > 1 and len(contexts) == 1 and tuple(leaves) == tuple(contexts):
            return k
    return None


def _shifts_rows(facts: Facts, op: Op) -> bool:
    """Say whether adding one number to a whole row of the result changes nothing: a Softmax over rows comes next."""
    outputs = {t.name for t in facts.analysis.collection.view.graph.outputs}
    value = op.outputs[0]
    while value is not None:
        following = facts.uses.get(value.name, [])
        if len(following) != 1 or value.name in outputs:
            return False
        nxt, slot = following[0]
        kind = nxt.node.op
        if kind == "Softmax":
            rank = nxt.x().ndim
            return int(nxt.attr("axis", -1 if nxt.opset >= 13 else 1)) % rank == rank - 1
        if not (kind in _SHIFTED or (kind in ("Mul", "Div") and _is_number(nxt, slot)) or _masks(facts, nxt, slot)):
            return False
        value = nxt.outputs[0]
    return False


def _is_number(op: Op, slot: int) -> bool:
    other = op.x(1 - slot)
    return other.constant and int(np.prod(other.shape)) == 1 and not (op.node.op == "Div" and slot == 1)


def _masks(facts: Facts, op: Op, slot: int) -> bool:
    """Say whether a Where puts numbers in that no Softmax lets through."""
    if op.node.op != "Where" or slot == 0:
        return False
    other = facts.known(op.x(3 - slot).name)
    return other is not None and other.complete and bool((other.value <= _MASKED_OUT).all())


def _has_states(op: Op) -> bool:
    """Say whether the weights of a recurrent layer's states have the axes they must have."""
    return op.given(2) and op.x(2).ndim == 3
