"""Classes of tied axes, and the coarsest factorization of each that all regroupings agree on.

A class is a set of axes that are one and the same. A class such as (heads head_dim) is a product of elementary
axes, called leaves here; leaves that meet in a regrouping are one leaf.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import RuleDefect
from .relations import Contract, Freeze, Regroup, Relation, Tie


class DisjointSets:
    """Union-find over 0..n-1; the root of a set is its smallest member."""

    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def find(self, i: int) -> int:
        """Give the root of i's set."""
        parent = self.parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def union(self, a: int, b: int) -> None:
        """Join the sets of a and b."""
        a, b = self.find(a), self.find(b)
        if a != b:
            self.parent[max(a, b)] = min(a, b)


@dataclass
class Factorization:
    """`class_of[axis]` is the root axis of its class; `leaves[class]` its leaves, row-major, with `leaf_size[leaf]`.

    `conflicts` are freezes of axes whose regroupings do not nest.
    """

    class_of: list[int]
    leaves: dict[int, tuple[int, ...]] = field(default_factory=dict)
    leaf_size: list[int] = field(default_factory=list)
    conflicts: list[Freeze] = field(default_factory=list)


def factorize(sizes: Sequence[int], relations: Sequence[Relation]) -> Factorization:
    """Find classes, factors and leaves. Raises `RuleDefect` when tied axes differ in size."""
    sets = DisjointSets(len(sizes))
    for r in relations:
        if isinstance(r, (Tie, Contract)) and r.b is not None:
            if sizes[r.a] != sizes[r.b]:
                raise RuleDefect(f"tied axes of sizes {sizes[r.a]} and {sizes[r.b]} at node {r.node}")
            sets.union(r.a, r.b)
    class_of = [sets.find(i) for i in range(len(sizes))]
    factors: dict[int, tuple[int, ...]] = {c: (sizes[c],) for c in set(class_of) if sizes[c] > 1}
    regroups = [r for r in relations if isinstance(r, Regroup)]
    sides = [(tuple(class_of[a] for a in r.left), tuple(class_of[a] for a in r.right)) for r in regroups]
    conflicting = _refine(factors, sides)
    result = Factorization(class_of)
    first: dict[int, int] = {}
    for c in sorted(factors):
        first[c] = len(result.leaf_size)
        result.leaf_size.extend(factors[c])
    same = DisjointSets(len(result.leaf_size))
    for k, (left, right) in enumerate(sides):
        segments = [[(first[c] + j, f) for c in side for j, f in enumerate(factors[c])] for side in (left, right)]
        for a, b in _aligned(*segments):
            same.union(a, b)
        if k in conflicting:
            why = "two regroupings of it do not nest"
            result.conflicts += [Freeze(a, why, regroups[k].node) for a in (*regroups[k].left, *regroups[k].right)]
    for c, fs in factors.items():
        result.leaves[c] = tuple(same.find(first[c] + j) for j in range(len(fs)))
    return result


def _refine(factors: dict[int, tuple[int, ...]], sides: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> set[int]:
    """Split factors until both sides of every regrouping have the same sequence; give the ones that cannot."""
    touching: dict[int, list[int]] = {}
    for k, (left, right) in enumerate(sides):
        for c in {*left, *right}:
            touching.setdefault(c, []).append(k)
    conflicting: set[int] = set()
    queue, queued = deque(range(len(sides))), set(range(len(sides)))
    while queue:
        k = queue.popleft()
        queued.discard(k)
        left, right = sides[k]
        parts = _common([f for c in left for f in factors[c]], [f for c in right for f in factors[c]])
        if parts is None:
            conflicting.add(k)
            continue
        for side, split in zip((left, right), parts, strict=True):
            position = 0
            for c in side:
                n = len(factors[c])
                new = tuple(p for piece in split[position : position + n] for p in piece)
                position += n
                if new != factors[c]:
                    if math.prod(new) != math.prod(factors[c]):
                        raise RuleDefect(f"axis {c}: factors {factors[c]} became {new}")
                    factors[c] = new
                    for other in touching[c]:
                        if other not in queued:
                            queue.append(other)
                            queued.add(other)
                    break
            else:
                continue
            break
    return conflicting


def _common(left: list[int], right: list[int]) -> tuple[list[list[int]], list[list[int]]] | None:
    """Split two factor lists of one product into the same parts; None where they do not nest."""
    out: tuple[list[list[int]], list[list[int]]] = ([[] for _ in left], [[] for _ in right])
    i = j = 0
    a, b = (left[0] if left else 1), (right[0] if right else 1)
    while i < len(left) and j < len(right):
        step = min(a, b)
        if a % step or b % step:
            return None
        out[0][i].append(step)
        out[1][j].append(step)
        a, b = a // step, b // step
        if a == 1:
            i += 1
            a = left[i] if i < len(left) else 1
        if b == 1:
            j += 1
            b = right[j] if j < len(right) else 1
    return out


def _aligned(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pair the leaves of both sides where their running products and sizes meet."""
    pairs, i, j, p, q = [], 0, 0, 1, 1
    while i < len(left) and j < len(right):
        if p == q and left[i][1] == right[j][1]:
            pairs.append((left[i][0], right[j][0]))
        np_, nq = p * left[i][1], q * right[j][1]
        if np_ <= nq:
            i, p = i + 1, np_
        if nq <= np_:
            j, q = j + 1, nq
    return pairs
