"""What removing units cuts from each initializer, and which copies that takes.

An initializer that several nodes read apart from each other may be cut differently for each. The first use keeps the
name; every further version is called `NAME.onnxprune.K`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..planfile import Plan, PlanGroup, PlanSlice
from .analysis import Analysis, Keep
from .op import Value


@dataclass
class Version:
    """One version of an initializer: what stays along each axis that shrinks, and who reads it.

    `uses` are (node, input slot) pairs for an initializer read apart; empty when all readers share it.
    """

    initializer: str
    result: str
    keeps: dict[int, Keep]
    roles: dict[int, str]
    uses: list[tuple[int, int]] = field(default_factory=list)


def versions(analysis: Analysis, alive: Keep) -> list[Version]:
    """List the versions of every initializer that some removal reaches, in the order of the graph."""
    by_name: dict[str, list[Value]] = {}
    for value in analysis.collection.parameters:
        if not value.index_list:
            by_name.setdefault(value.name, []).append(value)
    found: list[Version] = []
    for name, values in by_name.items():
        rows: dict[tuple[tuple[int, bytes], ...], Version] = {}
        for value in values:
            keeps = {}
            for k, axis in enumerate(value.axes):
                keep = analysis.keep(axis.id, alive) if axis.size > 1 else np.ones(1, dtype=bool)
                if not keep.all():
                    keeps[k] = keep
            key = tuple((k, keep.tobytes()) for k, keep in keeps.items())
            if key not in rows:
                result = name if not rows else f"{name}.onnxprune.{len(rows)}"
                roles = {k: analysis.role(value.axes[k].id) for k in keeps}
                rows[key] = Version(name, result, keeps, roles)
            if value.use is not None:
                rows[key].uses.append(value.use)
        found += [v for v in rows.values() if v.keeps or len(rows) > 1]
    return found


def make_plan(
    analysis: Analysis, groups: Iterable[PlanGroup], input_shapes: dict[str, tuple[int, ...]] | None = None
) -> Plan:
    """Complete decisions about groups to a plan, with a slice for every initializer axis that shrinks."""
    rows = tuple(groups)
    alive = analysis.alive({g.id: g.removed for g in rows})
    slices = [
        PlanSlice(v.initializer, axis, v.roles[axis], removed_indices(keep), v.result)
        for v in versions(analysis, alive)
        for axis, keep in v.keeps.items()
    ]
    return Plan(analysis.model.sha256, rows, tuple(slices), input_shapes or {})


def removed_indices(keep: Keep) -> tuple[int, ...]:
    """Give the indices that do not stay."""
    return tuple(np.flatnonzero(~keep).tolist())
