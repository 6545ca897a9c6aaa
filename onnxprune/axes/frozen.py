"""Why an axis is frozen: the chain of nodes from it to what freezes it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .relations import Contract, Freeze, Regroup, Select, Tie, overlapping

if TYPE_CHECKING:
    from .collect import Collection


@dataclass(frozen=True)
class Chain:
    """`steps` are (value, axis, node) from the axis asked about to the frozen one; `reason` is what freezes that."""

    steps: tuple[tuple[str, int, str], ...]
    reason: str

    def __str__(self) -> str:
        path = " -> ".join(f"{value}[{axis}]" for value, axis, _ in self.steps)
        return f"{path}: {self.reason}"


Links = dict[int, list[tuple[int, int]]]
Frozen = dict[int, tuple[str, int]]


def freezing_chain(collection: Collection, graph: tuple[Links, Frozen], axis: int) -> Chain:
    """Find the nearest freeze along relations, breadth first. An axis that nothing freezes says so."""
    links, frozen = graph
    came_from: dict[int, tuple[int, int]] = {axis: (-1, -1)}
    queue = deque([axis])
    while queue:
        a = queue.popleft()
        if a in frozen:
            why, node = frozen[a]
            return Chain(tuple(_path(collection, came_from, a)), f"{why} ({collection.node_label(node)})")
        for other, node in links.get(a, ()):
            if other not in came_from:
                came_from[other] = (a, node)
                queue.append(other)
    reason = "a single unit" if collection.sizes[axis] <= 1 else "no weight runs along it that could be cut"
    return Chain(tuple(_path(collection, came_from, axis)), reason)


def _path(collection: Collection, came_from: dict[int, tuple[int, int]], end: int) -> list[tuple[str, int, str]]:
    path: list[tuple[str, int, str]] = []
    a = end
    while a != -1:
        previous, node = came_from[a]
        owner = collection.axis_value(a)
        if owner is not None:
            path.append((owner[0].name, owner[1], collection.node_label(node) if node >= 0 else ""))
        a = previous
    return path[::-1]


def freeze_graph(collection: Collection) -> tuple[Links, Frozen]:
    """Link axes that constrain each other: (other axis, node); and list the frozen ones: (why, node).

    What freezes an axis whole goes before what freezes some of it.
    """
    links: Links = {}
    frozen: Frozen = {}
    partial: set[int] = set()

    def link(a: int, b: int, node: int) -> None:
        links.setdefault(a, []).append((b, node))
        links.setdefault(b, []).append((a, node))

    for r in collection.relations:
        if isinstance(r, Freeze):
            if r.index is None and r.axis in partial:
                del frozen[r.axis]
                partial.discard(r.axis)
            if r.index is not None and r.axis not in frozen:
                partial.add(r.axis)
            frozen.setdefault(r.axis, (r.why, r.node))
        elif isinstance(r, (Tie, Contract)):
            if r.b is not None:
                link(r.a, r.b, r.node)
        elif isinstance(r, Select):
            link(r.source, r.target, r.node)
        elif isinstance(r, Regroup):
            for a, b in overlapping(collection.sizes, r):
                link(a, b, r.node)
    return links, frozen
