"""Groups of interchangeable units, and the initializer axes that they run along."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .labels import Labels


@dataclass(frozen=True)
class Member:
    """One initializer axis that units of a group run along.

    `unit[i]` is the unit that index i belongs to, -1 where it is of another group. `use` is (node, input slot) for an
    initializer that several nodes read apart from each other, else None.
    """

    initializer: str
    axis: int
    role: str
    unit: Labels = field(repr=False)
    axis_id: int
    use: tuple[int, int] | None = None


@dataclass(frozen=True)
class Group:
    """The interchangeable units of one elementary axis.

    `roots[u]` identifies unit u in the analysis. Units lie in blocks, `block[u]`, of equal size: one, or one for every
    head where other head dims may go in every head. All blocks lose equally many, and `least` units of each stay.
    """

    id: str
    kind: str
    size: int
    exact: bool
    why_inexact: str | None
    members: tuple[Member, ...]
    roots: Labels = field(repr=False)
    nodes: tuple[str, ...]
    block: Labels = field(repr=False)
    least: int = 1

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return int(self.block.max(initial=0)) + 1

    @property
    def width(self) -> int:
        """Number of units in one block."""
        return self.size // self.blocks

    def is_balanced(self, removed: Sequence[int]) -> bool:
        """Say whether every block loses equally many of the units `removed`."""
        lost = np.bincount(self.block[np.asarray(removed, dtype=np.int64)], minlength=self.blocks)
        return bool((lost == lost[0]).all())

    def matches(self, globs: Iterable[str], *, consumers: bool = True) -> bool:
        """Say whether any glob matches the group's id, a member's initializer or a producing node.

        Without `consumers`, weights that only read the group's units do not count.
        """
        members = (m.initializer for m in self.members if consumers or m.role != "input")
        names = [self.id, *members, *self.nodes]
        return any(fnmatch.fnmatchcase(n, g) for g in globs for n in names)


@dataclass(frozen=True)
class Locked:
    """An initializer axis of which nothing may go, and why."""

    initializer: str
    axis: int
    size: int
    reason: str


_ROLE_ORDER = {"output": 0, "parameter": 1, "input": 2}


def canonical(member: Member, order: Mapping[str, int]) -> tuple[int, int, int]:
    """Rank members so that the first is the same however the nodes are ordered: producers by their initializers."""
    return _ROLE_ORDER[member.role], order[member.initializer], member.axis


def first_index(member: Member) -> Labels:
    """Give the first index of each unit along a member's axis, in unit order; a unit without one comes last."""
    index = np.flatnonzero(member.unit >= 0)
    first = np.full(int(member.unit.max(initial=0)) + 1, len(member.unit), dtype=np.int64)
    np.minimum.at(first, member.unit[index], index)
    return first


def outer_first(member: Member) -> tuple[int, int, list[int]]:
    """Order groups along one axis by where they begin; of two factors the outer one comes first."""
    first = sorted(first_index(member).tolist())
    return first[0], -first[1] if len(first) > 1 else 0, first


def make_group(
    id_: str,
    kind: str,
    members: list[Member],
    roots: Labels,
    block: Labels,
    inexact: list[str],
    least: int,
    nodes: tuple[str, ...],
) -> Group:
    """Make a group, numbering its units along its first member, and its blocks as they begin there."""
    first = np.full(len(roots), np.iinfo(np.int64).max)
    known = first_index(members[0])
    first[: len(known)] = known
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(roots), dtype=np.int64)
    rank[order] = np.arange(len(roots))
    renumbered = tuple(replace(m, unit=np.where(m.unit >= 0, rank[np.maximum(m.unit, 0)], -1)) for m in members)
    why = inexact[0] if inexact else None
    _, begin, part = np.unique(block[order], return_index=True, return_inverse=True)
    block = np.argsort(np.argsort(begin))[part]
    least = min(least, len(roots))
    return Group(id_, kind, len(roots), not inexact, why, renumbered, roots[order], nodes, block, least)


def by_signature(live: Labels, signature: np.ndarray[Any, np.dtype[np.uint64]]) -> list[Labels]:
    """Divide roots by signature, in the order of their first root; each part is sorted."""
    _, first, inverse = np.unique(signature, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    part = rank[inverse]
    order = np.argsort(part, kind="stable")
    return np.split(live[order], np.cumsum(np.bincount(part, minlength=len(first)))[:-1]) if len(live) else []
