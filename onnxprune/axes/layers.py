"""Which leaf labels an index of an axis belongs to: it stays while all of them stay.

An index of a product axis has one label per leaf. Where a plain axis is a concatenation of products (fused QKV cut
into heads), its indices take over the labels of the product they are selected into: the plain leaf is covered there.
Selections between plain axes join labels one to one.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ModelError, RuleDefect
from .blocks import Contexts
from .factors import Factorization
from .labels import Labels, connected_components
from .relations import Freeze, Relation, Select

Layer = tuple[int, Labels]
Alive = np.ndarray[Any, np.dtype[np.bool_]]
MAX_DEPTH = 16


@dataclass
class Labeling:
    """Labels of every leaf in one number space: label j of leaf f is `offset[f] + j`.

    A leaf with a context has labels of its own in every block: block b, label j is `offset[f] + b * leaf_size[f] + j`.
    `root[label]` is the smallest label of the labels it must go with; `frozen[root]` says that it may not go, and
    `block[root]` numbers the blocks that must lose equally many, -1 for none.
    """

    factors: Factorization
    contexts: Contexts
    offset: Labels = field(init=False)
    covers: dict[int, list[Layer]] = field(default_factory=dict)
    root: Labels = field(init=False)
    frozen: np.ndarray[tuple[int], np.dtype[np.bool_]] = field(init=False)
    block: Labels = field(init=False)

    def __post_init__(self) -> None:
        sizes = [self.blocks(leaf) * n for leaf, n in enumerate(self.factors.leaf_size)]
        self.offset = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def blocks(self, leaf: int) -> int:
        """Count the blocks of a leaf: 1 without a context."""
        return math.prod(self.factors.leaf_size[g] for g in self.contexts.get(leaf, ()))

    def layers(self, cls: int, index: Labels, alive: Alive | None = None) -> list[Layer]:
        """Give, for indices of a class, the labels per leaf: (leaf, label or -1 where it has none of that leaf).

        Where a leaf's context lies on another axis, they are those of its first block, or of its first one `alive`.
        """
        result: list[Layer] = []
        leaves = self.factors.leaves[cls]
        parts = np.unravel_index(index, [self.factors.leaf_size[leaf] for leaf in leaves])
        for k, leaf in enumerate(leaves):
            label = parts[k].astype(np.int64)
            if leaf in self.contexts:
                label += self._block(leaf, leaves[:k], parts[:k], alive) * self.factors.leaf_size[leaf]
            result += self._resolved(leaf, label, 0)
        return result

    def has_context_elsewhere(self, cls: int) -> bool:
        """Say whether a leaf of the class has a context that is not part of the class."""
        leaves = self.factors.leaves[cls]
        return any(g not in leaves for leaf in leaves for g in self.contexts.get(leaf, ()))

    def _block(
        self, leaf: int, outer: tuple[int, ...], parts: tuple[Labels, ...], alive: Alive | None
    ) -> Labels | np.int64:
        """Number the block that indices lie in, by the leaves outside of theirs in the same axis."""
        context = self.contexts[leaf]
        sizes = [self.factors.leaf_size[g] for g in context]
        place = []
        for g, size in zip(context, sizes, strict=True):
            if g in outer:
                place.append(parts[outer.index(g)])
            else:
                place.append(np.array(0 if alive is None else self._first_alive(g, size, alive)))
        return np.asarray(np.ravel_multi_index(tuple(np.broadcast_arrays(*place)), sizes), dtype=np.int64)

    def _first_alive(self, leaf: int, size: int, alive: Alive) -> int:
        stays = np.ones(size, dtype=bool)
        for other, lab in self._resolved(leaf, np.arange(size, dtype=np.int64), 0):
            stays &= (lab < 0) | alive[self.root[self.offset[other] + np.maximum(lab, 0)]]
        return int(np.argmax(stays))

    def whole(self, cls: int) -> list[Layer]:
        """Give all labels of a class, per leaf, in every block."""
        result = []
        for leaf in self.factors.leaves[cls]:
            every = np.arange(self.blocks(leaf) * self.factors.leaf_size[leaf], dtype=np.int64)
            result += [(f, lab[lab >= 0]) for f, lab in self._resolved(leaf, every, 0)]
        return result

    def _resolved(self, leaf: int, label: Labels, depth: int) -> list[Layer]:
        covers = self.covers.get(leaf)
        if covers is None or depth > MAX_DEPTH:
            return [(leaf, label)]
        at = np.where(label >= 0, label, 0)
        plain = label >= 0
        result: list[Layer] = []
        for other, table in covers:
            taken = np.where(label >= 0, table[at], -1)
            plain &= taken < 0
            if (taken >= 0).any():
                result += self._resolved(other, taken, depth + 1)
        if plain.any():
            result.append((leaf, np.where(plain, label, -1)))
        return result

    def roots(self, cls: int, size: int, alive: Alive | None = None) -> list[Labels]:
        """Give, for every index of a class, the roots it belongs to: one array per layer, -1 for none."""
        every = np.arange(size, dtype=np.int64)
        layers = self.layers(cls, every, alive)
        return [np.where(lab >= 0, self.root[self.offset[leaf] + lab], -1) for leaf, lab in layers]

    def signatures(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Hash, per root, which leaves its labels lie on: units of one signature are interchangeable."""
        x = np.arange(1, len(self.factors.leaf_size) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        per_label = np.repeat(x ^ (x >> np.uint64(31)), np.diff(self.offset))
        total = np.zeros(len(per_label), dtype=np.uint64)
        np.add.at(total, self.root, per_label)
        return total


# Real models have up to some hundred thousand.
MAX_LABELS = 1 << 25


def label(factors: Factorization, relations: list[Relation], contexts: Contexts) -> Labeling:
    """Join labels through all selections, and mark those that are frozen.

    A leaf whose blocks turn out not to be free of each other, or not alike, is labeled without its context.
    """
    edges = _edges(factors, relations)
    while True:
        labeling = Labeling(factors, contexts)
        if labeling.offset[-1] > MAX_LABELS:
            raise ModelError(f"its axes have {labeling.offset[-1]} indices in all; up to {MAX_LABELS} are followed")
        _cover(labeling, edges)
        a: list[Labels] = []
        b: list[Labels] = []
        stuck: list[Labels] = []
        for source, index, target in edges:
            _link(labeling, labeling.layers(source, index), labeling.layers(target, np.arange(len(index))), a, b, stuck)
        labeling.root = connected_components(int(labeling.offset[-1]), a, b)
        _freeze(labeling, relations, stuck)
        tied = _number_blocks(labeling)
        if not tied:
            return labeling
        contexts = {leaf: context for leaf, context in contexts.items() if leaf not in tied}


def _number_blocks(labeling: Labeling) -> set[int]:
    """Number the blocks of the roots; give the leaves whose blocks are joined, frozen in part, or of several groups."""
    labeling.block = np.full(len(labeling.root), -1, dtype=np.int64)
    signature = labeling.signatures() if labeling.contexts else np.zeros(0, dtype=np.uint64)
    tied: set[int] = set()
    used = 0
    for leaf in sorted(labeling.contexts):
        blocks, start, end = labeling.blocks(leaf), labeling.offset[leaf], labeling.offset[leaf + 1]
        root = labeling.root[start:end].reshape(blocks, -1)
        frozen = labeling.frozen[root]
        live = root[:, ~frozen[0]]
        if (frozen != frozen[0]).any() or len(np.unique(live)) < live.size or len(np.unique(signature[live])) > 1:
            tied.add(leaf)
            continue
        known = labeling.block[live]
        if (known < 0).all():
            labeling.block[live] = used + np.arange(blocks)[:, None]
            used += blocks
        elif not _same_parts(known, labeling.block):
            tied.add(leaf)
    return tied


def _same_parts(known: Labels, block: Labels) -> bool:
    """Say whether the rows of `known` are different blocks, each of them whole."""
    first = known[:, 0]
    if (known != first[:, None]).any() or first.min() < 0 or len(np.unique(first)) < len(first):
        return False
    return bool((np.bincount(block[block >= 0])[first] == known.shape[1]).all())


def _edges(factors: Factorization, relations: list[Relation]) -> list[tuple[int, Labels, int]]:
    """List the distinct selections between classes."""
    seen: set[tuple[int, int, bytes]] = set()
    edges = []
    for r in relations:
        if isinstance(r, Select):
            s, t = factors.class_of[r.source], factors.class_of[r.target]
            if not (factors.leaves.get(s) and factors.leaves.get(t)):
                raise RuleDefect("a selection joins axes that other relations give one index")
            key = (s, t, r.index.tobytes())
            if key not in seen:
                seen.add(key)
                edges.append((s, r.index, t))
    return edges


def _cover(labeling: Labeling, edges: list[tuple[int, Labels, int]]) -> None:
    """Let plain classes take over the labels of the products that their indices are selected into or from."""
    leaves = labeling.factors.leaves
    touching: dict[int, list[int]] = {}
    for k, (s, _, t) in enumerate(edges):
        touching.setdefault(leaves[s][-1], []).append(k)
        touching.setdefault(leaves[t][-1], []).append(k)
    queue, queued = deque(range(len(edges))), set(range(len(edges)))
    while queue:
        k = queue.popleft()
        queued.discard(k)
        s, index, t = edges[k]
        own = np.arange(len(index), dtype=np.int64)
        for giver, given, taker, taken in ((s, index, t, own), (t, own, s, index)):
            if len(leaves[taker]) == 1 and _take_over(labeling, giver, given, leaves[taker][0], taken):
                for other in touching[leaves[taker][0]]:
                    if other not in queued:
                        queue.append(other)
                        queued.add(other)


def _take_over(labeling: Labeling, giver: int, given: Labels, leaf: int, taken: Labels) -> bool:
    """Cover the indices `taken` of a plain leaf with the giver's labels where those are products."""
    layers = labeling.layers(giver, given)
    if len(layers) < 2:
        return False
    counts = sum((lab >= 0).astype(np.int64) for _, lab in layers)
    covers = labeling.covers.setdefault(leaf, [])
    size = labeling.factors.leaf_size[leaf]
    covered = np.zeros(size, dtype=bool)
    for _, table in covers:
        covered |= table >= 0
    new = (counts >= 2) & ~covered[taken]
    if not new.any() or any(f == leaf for f, _ in layers):
        if not covers:
            del labeling.covers[leaf]
        return False
    tables = dict(covers)
    for f, lab in layers:
        table = tables.setdefault(f, np.full(size, -1, dtype=np.int64))
        use = new & (lab >= 0)
        table[taken[use]] = lab[use]
    labeling.covers[leaf] = list(tables.items())
    return True


def _link(
    labeling: Labeling, one: list[Layer], two: list[Layer], a: list[Labels], b: list[Labels], stuck: list[Labels]
) -> None:
    """Join the labels of two descriptions of the same indices; labels without a partner are stuck."""
    offset = labeling.offset
    has_one = {f: lab >= 0 for f, lab in one}
    has_two = {f: lab >= 0 for f, lab in two}
    n = len(one[0][1])
    if len(one) == len(two) == 1:
        if one[0][0] != two[0][0] or (one[0][1] != two[0][1]).any():
            a.append(offset[one[0][0]] + one[0][1])
            b.append(offset[two[0][0]] + two[0][1])
        return
    pattern = np.zeros(n, dtype=np.int64)
    for bit, mask in enumerate([*has_one.values(), *has_two.values()]):
        pattern |= mask.astype(np.int64) << bit
    for value in np.unique(pattern):
        rows = pattern == value
        left = [(f, lab[rows]) for f, lab in one if lab[rows][0] >= 0]
        right = [(f, lab[rows]) for f, lab in two if lab[rows][0] >= 0]
        for x, y in _matched(left, right):
            if x is None or y is None:
                lone = x or y
                assert lone is not None
                stuck.append(offset[lone[0]] + lone[1])
            elif x[0] != y[0] or (x[1] != y[1]).any():
                a.append(offset[x[0]] + x[1])
                b.append(offset[y[0]] + y[1])


def _matched(left: list[Layer], right: list[Layer]) -> list[tuple[Layer | None, Layer | None]]:
    """Pair layers: the same leaf with itself, the rest so that the finest classes survive."""
    left, right = list(left), list(right)
    pairs: list[tuple[Layer | None, Layer | None]] = []
    for x in list(left):
        same = next((y for y in right if y[0] == x[0]), None)
        if same is not None:
            pairs.append((x, same))
            _drop(left, x)
            _drop(right, same)
    if len(left) == len(right) == 1:
        return [*pairs, (left[0], right[0])]
    while left and right:
        best = max(((_fineness(x[1], y[1]), -i, -j) for i, x in enumerate(left) for j, y in enumerate(right)))
        x, y = left[-best[1]], right[-best[2]]
        pairs.append((x, y))
        _drop(left, x)
        _drop(right, y)
    return pairs + [(x, None) for x in left] + [(None, y) for y in right]


def _drop(layers: list[Layer], layer: Layer) -> None:
    layers[:] = [other for other in layers if other is not layer]


def _fineness(x: Labels, y: Labels) -> int:
    """Count the classes that remain when labels of x and y that occur together are joined."""
    ux, ix = np.unique(x, return_inverse=True)
    uy, iy = np.unique(y, return_inverse=True)
    roots = connected_components(len(ux) + len(uy), [ix], [iy + len(ux)])
    return len(np.unique(roots))


def _freeze(labeling: Labeling, relations: list[Relation], stuck: list[Labels]) -> None:
    labeling.frozen = np.zeros(len(labeling.root), dtype=bool)
    factors = labeling.factors
    whole: set[int] = set()
    for r in [*relations, *factors.conflicts]:
        if not isinstance(r, Freeze):
            continue
        cls = factors.class_of[r.axis]
        if cls not in factors.leaves:
            continue
        if r.index is None:
            whole.add(cls)
        else:
            for leaf, lab in labeling.layers(cls, r.index):
                labeling.frozen[labeling.root[labeling.offset[leaf] + lab[lab >= 0]]] = True
    for cls in sorted(whole):
        for leaf, lab in labeling.whole(cls):
            labeling.frozen[labeling.root[labeling.offset[leaf] + lab]] = True
    for labels in stuck:
        labeling.frozen[labeling.root[labels]] = True
