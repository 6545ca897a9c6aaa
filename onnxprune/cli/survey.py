"""What `inspect` tells: the figures of a model, its groups, its locked axes and the nodes without a rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, unknown_name

if TYPE_CHECKING:
    from ..axes.analysis import Analysis
    from ..axes.groups import Group

Row = dict[str, Any]


def survey(
    analysis: Analysis, kinds: Sequence[str] | None, include: Sequence[str], exclude: Sequence[str]
) -> dict[str, Any]:
    """Build the document of `inspect --json`, less the command's name.

    Raises `UnknownNameError` for a kind or a glob that names nothing.
    """
    cost = analysis.cost
    return {
        "params": cost.params,
        "macs": cost.macs,
        "bytes": cost.bytes,
        "input_shapes": shapes_taken(analysis),
        "groups": [group_row(analysis, g) for g in shown_groups(analysis, kinds, include, exclude)],
        "locked": [locked_row(analysis, row) for row in analysis.locked],
        "without_rule": without_rule(analysis),
        "tried": tried(analysis),
    }


def shapes_taken(analysis: Analysis) -> dict[str, list[int]]:
    """Give the input shapes that the figures hold for; empty where every axis is fixed."""
    return {name: list(shape) for name, shape in analysis.collection.shapes.input_shapes.items()}


def shown_groups(
    analysis: Analysis, kinds: Sequence[str] | None, include: Sequence[str], exclude: Sequence[str]
) -> list[Group]:
    """Choose the groups asked about."""
    from ..api import eligible

    reasons = eligible(analysis, kinds=kinds, allow_inexact=True, include=include, exclude=exclude)
    return [g for g in analysis.groups if reasons[g.id] is None]


def group_row(analysis: Analysis, group: Group) -> Row:
    """Describe one group. `unit` is what removing its first unit saves, or its share of one unit in every block."""
    import numpy as np

    before = analysis.cost
    first_units = np.unique(group.block, return_index=True)[1].tolist()
    after = analysis.costs(analysis.alive({group.id: first_units}))
    spans = {(m.initializer, m.axis): m.role for m in group.members}
    first = group.members[0].initializer
    return {
        "id": group.id,
        "kind": group.kind,
        "size": group.size,
        "blocks": group.blocks,
        "exact": group.exact,
        "why_inexact": group.why_inexact,
        "unit": {
            "params": (before.params - after.params) // group.blocks,
            "macs": (before.macs - after.macs) // group.blocks,
            "bytes": (before.bytes - after.bytes) // group.blocks,
        },
        "spans": [{"initializer": name, "axis": axis, "role": role} for (name, axis), role in spans.items()],
        "layout": {"initializer": first, "axes": analysis.layout(first)},
        "nodes": list(group.nodes),
        "tried": leans_on(analysis, group),
    }


def leans_on(analysis: Analysis, group: Group) -> list[str]:
    """List the nodes without a rule that a group runs through: what they do was found by trying them."""
    import numpy as np

    collection = analysis.collection
    found = []
    for index in collection.probed:
        op = collection.ops[index]
        axes = [a for v in (*op.inputs, *op.outputs) if v is not None for a in v.axes if a.size > 1]
        if any(np.isin(roots, group.roots).any() for a in axes for roots in analysis.roots(a.id)):
            found.append(collection.node_label(index))
    return found


def locked_row(analysis: Analysis, row: Any) -> Row:
    """Describe one locked axis."""
    tensor = analysis.model.tensors[row.initializer]
    return {
        "initializer": row.initializer,
        "axis": row.axis,
        "size": row.size,
        "shape": list(tensor.dims),
        "params": math.prod(tensor.dims),
        "reason": row.reason,
    }


def without_rule(analysis: Analysis) -> list[Row]:
    """List the operators that no rule covers, with the nodes' names."""
    return [{"op": name, "nodes": nodes} for name, nodes in analysis.collection.nodes_without_rule().items()]


def tried(analysis: Analysis) -> list[Row]:
    """List those of them whose relations were found by running them."""
    return [{"op": name, "nodes": nodes} for name, nodes in analysis.collection.nodes_probed().items()]


def why(analysis: Analysis, name: str) -> dict[str, Any]:
    """Say for every axis of a tensor which groups run along it, or what freezes it.

    `name` is that of an initializer or any other value. Raises `UnknownNameError` with the nearest ones.
    """
    import numpy as np

    collection = analysis.collection
    values = [v for v in collection.parameters if v.name == name]
    value = values[0] if values else collection.values.get(name)
    if value is None:
        raise _unanswerable(analysis, name)
    owner = np.full(len(analysis.labeling.root), -1, dtype=np.int64)
    for k, group in enumerate(analysis.groups):
        owner[group.roots] = k
    axes = []
    for k in range(value.ndim):
        # An initializer that several nodes read apart has one set of axes for every use.
        rows = [_axis(analysis, owner, v.axes[k], k) for v in (values or [value])]
        axes.append(next((row for row in rows if row["groups"]), rows[0]))
    return {"name": name, "initializer": value.initializer, "shape": list(value.shape), "axes": axes}


def _axis(analysis: Analysis, owner: Any, axis: Any, k: int) -> Row:
    """Describe one axis: `prunable` counts its indices that a group can take away.

    An axis that is a product may be prunable along one factor and locked along another: then `chain` is given too.
    """
    import numpy as np

    on: set[int] = set()
    free = np.zeros(axis.size, dtype=bool)
    stuck = not analysis.roots(axis.id)
    for roots in analysis.roots(axis.id):
        groups = np.where(roots >= 0, owner[np.maximum(roots, 0)], -1)
        on.update(np.unique(groups).tolist())
        free |= groups >= 0
        stuck |= bool(((groups < 0) & (roots >= 0)).any())
    ids = [analysis.groups[g].id for g in sorted(on - {-1})]
    row: Row = {"axis": k, "size": axis.size, "groups": ids, "prunable": int(free.sum()), "chain": None}
    if stuck:
        chain = analysis.chain(axis.id)
        steps = [{"value": value, "axis": at, "through": node or None} for value, at, node in chain.steps]
        row["chain"] = {"steps": steps, "reason": chain.reason}
    return row


def _unanswerable(analysis: Analysis, name: str) -> OptionError:
    collection = analysis.collection
    if name in collection.values:
        return OptionError(
            f"the shape of {name!r} is unknown, so its axes cannot be followed; everything it touches is frozen"
        )
    known = {v.name for v in collection.parameters} | {n for n, v in collection.values.items() if v is not None}
    if name in analysis.model.tensors and name not in known:
        return OptionError(f"{name!r} is read by no node of the main graph, so nothing can be said about its axes")
    for group in analysis.groups:
        if group.id == name:
            weight = group.members[0].initializer
            return OptionError(f"{name!r} is a group, not a tensor; try: --why {weight}, or --include {name!r}")
    return unknown_name("initializer or value", name, known)
