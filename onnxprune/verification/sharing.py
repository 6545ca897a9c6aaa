"""Which use of a shared initializer reads which of its results in the pruned model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import PlanError
from ..graph.model import Model
from ..planfile import PlanSlice
from .tensors import Array, Scope, Use, held_tensors, named_graphs, named_node


class Readers:
    """What the input slots of a pruned model read, found by the nodes' outputs and names, which pruning keeps."""

    def __init__(self, pruned: Model) -> None:
        self.known = frozenset(held_tensors(pruned.skeleton))
        self._by_output: dict[tuple[Scope, str], Sequence[str]] = {}
        self._by_name: dict[tuple[Scope, str], Sequence[str]] = {}
        for scope, graph, names in named_graphs(pruned.skeleton):
            for site in graph.node:
                node = named_node(site, names)
                if node.output:
                    self._by_output[scope, node.output[0]] = node.input
                if node.name:
                    self._by_name[scope, node.name] = node.input

    def tensor(self, use: Use) -> str | None:
        """Give the tensor in the same slot of the same node, None when it cannot be found."""
        inputs = self._by_output.get((use.scope, use.node.output[0]))
        if inputs is None:
            inputs = self._by_name.get((use.scope, use.node.name), ())
        name = inputs[use.slot] if len(inputs) > use.slot else None
        return name if name in self.known else None


def assign_results(
    array: Array, name: str, versions: Mapping[str, Sequence[PlanSlice]], uses: Sequence[Use], readers: Readers | None
) -> list[str]:
    """Give the result name that each use of the initializer `name`, which holds `array`, reads.

    A name outside `versions` means that the use keeps the whole tensor. In this order:
    1. by the pruned model: the node of the same first output, else of the same name, and its input slot;
    2. a single result under the initializer's own name is read by all;
    3. one result per use, in order: the first keeps the name, the K-th other takes `NAME.onnxprune.K`;
    4. results that differ only where the tensor is zero already: any of them.
    Raises `PlanError` when none of these decides.
    """
    if readers is not None:
        found = [readers.tensor(use) for use in uses]
        if all(found):
            return [result or name for result in found]
    if set(versions) == {name}:
        return [name] * len(uses)
    ordered = _ordered(name, versions)
    if len(ordered) == len(uses):
        return ordered
    if _differ_in_zeros_only(array, versions, whole=name not in versions):
        return [next(iter(versions))] * len(uses)
    raise PlanError(
        f"{name!r} is shared by {len(uses)} nodes and becomes {len(ordered)} tensors; "
        "the plan alone does not say which node reads which. Give the pruned model too"
    )


def _ordered(name: str, versions: Mapping[str, Sequence[PlanSlice]]) -> list[str]:
    """List the names the uses take, first the initializer's own, up to the last numbered one."""
    numbers = [re.fullmatch(re.escape(name) + r"\.onnxprune\.(\d+)", result) for result in versions]
    last = max((int(m.group(1)) for m in numbers if m), default=0)
    return [name, *(f"{name}.onnxprune.{k}" for k in range(1, last + 1))]


def _differ_in_zeros_only(array: Array, versions: Mapping[str, Sequence[PlanSlice]], *, whole: bool) -> bool:
    masks = []
    for rows in versions.values():
        removed = np.zeros(array.shape, dtype=bool)
        for row in rows:
            removed[tuple([slice(None)] * row.axis + [list(row.removed)])] = True
        masks.append(removed)
    everywhere = np.logical_and.reduce(masks) & (not whole)
    stake = np.logical_or.reduce(masks) & ~everywhere
    return not np.any(array[stake] != 0)
