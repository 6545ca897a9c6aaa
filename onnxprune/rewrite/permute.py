"""Put units of a group in another order everywhere they occur: the model computes the same function.

Units change places together on every axis they lie on. Let `s_a` be the permutation that follows for axis a: the new
index i holds what lay at `s_a[i]`. The model stays the same function, up to the order in which sums are taken, when

1. tied and contracted axes have the same permutation: they have the same units, so it is;
2. both sides of a regrouping, taken as one flat axis, have the same permutation;
3. a selection of `index` from a into b meets `index[s_b] == s_a[index]`, or its constant index list can be renumbered;
4. frozen indices stay where they are, among them every axis of the graph's inputs and outputs;
5. a statistic is taken over a moving axis as a whole, and no operator tells positions of a moving axis apart.

Rules state the relations that 2 to 4 are checked on, for the very permutation asked for; 5 is a list of operators.
Where a unit lies on one axis several times, its k-th index there goes to the place of the other unit's k-th one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..axes.analysis import Analysis
from ..axes.collect import rule_name
from ..axes.groups import Group
from ..axes.labels import Labels
from ..axes.op import Value
from ..axes.relations import Freeze, IndexBinding, Mix, Regroup, Relation, Select
from ..errors import OptionError
from ..graph.model import Model
from .edited import Array, Edited
from .positions import ALIKE, STATISTICS

# Classes are found by exchanging one unit with one of every class; a group that falls into more is left alone.
MAX_ORBITS = 32


@dataclass(frozen=True)
class Orbits:
    """Which units of a group may change places: any order inside each of `classes`, which are sorted.

    Units that stay where they are lie in no class. `reason` says what keeps them there, None where nothing does.
    """

    group: str
    classes: tuple[tuple[int, ...], ...]
    reason: str | None


class Symmetries:
    """What may change places in one analyzed model. Everything is read-only and found on demand."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self._orbits: dict[str, Orbits] = {}

    def orbits(self, group_id: str) -> Orbits:
        """Find the units of a group that may change places; raises `UnknownNameError` for no such group."""
        if group_id not in self._orbits:
            self._orbits[group_id] = self._find_orbits(self.analysis.group(group_id))
        return self._orbits[group_id]

    def reason_against(self, permutations: Mapping[str, Sequence[int]]) -> str | None:
        """Say why the units of some groups cannot be put in these orders, by group id; None where they can.

        The unit at position k of the new order is the old unit `permutation[k]`. Raises `OptionError` for what is no
        permutation of a group's units.
        """
        return self.movement(permutations).reason()

    def movement(self, permutations: Mapping[str, Sequence[int]]) -> Movement:
        """Work out where everything would go; see `reason_against`."""
        target = np.arange(len(self.analysis.labeling.root))
        for group_id, given in permutations.items():
            group = self.analysis.group(group_id)
            order = np.asarray(given, dtype=np.int64)
            if order.shape != (group.size,) or (np.sort(order) != np.arange(group.size)).any():
                raise OptionError(
                    f"the order given for group {group_id!r} is no permutation of its {group.size} units; "
                    f"give every number from 0 to {group.size - 1} once"
                )
            target[group.roots] = group.roots[order]
        return Movement(self, target, self._carried(target))

    def _carried(self, target: Labels) -> Labels:
        """Let whole blocks move: where heads change places, their own head dims go along."""
        labeling = self.analysis.labeling
        result: Labels = target.copy()
        for leaf, context in sorted(labeling.contexts.items()):
            sources = [self._source_labels(outer, target) for outer in context]
            if all((s == np.arange(len(s))).all() for s in sources):
                continue
            sizes = tuple(len(s) for s in sources)
            block = np.ravel_multi_index(np.meshgrid(*sources, indexing="ij"), sizes).ravel()
            width = self.analysis.factors.leaf_size[leaf]
            labels = labeling.offset[leaf] + np.arange(len(block) * width).reshape(len(block), width)
            result[labeling.root[labels]] = target[labeling.root[labels[block]]]
        return result

    def _source_labels(self, leaf: int, target: Labels) -> Labels:
        """Give the label of a leaf that comes to the place of each; all stay where they cannot be told."""
        labeling, size = self.analysis.labeling, self.analysis.factors.leaf_size[leaf]
        roots = labeling.root[labeling.offset[leaf] + np.arange(size)]
        order = np.argsort(roots)
        source = order[np.minimum(np.searchsorted(roots[order], target[roots]), size - 1)]
        found = (roots[source] == target[roots]).all()
        return np.asarray(source if found else np.arange(size))

    def _find_orbits(self, group: Group) -> Orbits:
        """Take blocks whole where a cycle and an exchange show that every order is fine; else exchange unit by unit."""
        classes: list[list[int]] = []
        reason: str | None = None
        for block in range(group.blocks):
            units = np.flatnonzero(group.block == block)
            against = next(filter(None, (self._against(group, units, p) for p in _generators(len(units)))), None)
            if against is None:
                classes.append(units.tolist())
            else:
                reason = reason or against
                classes += self._exchangeable(group, units)
        movable = tuple(tuple(c) for c in classes if len(c) > 1)
        return Orbits(group.id, movable, reason)

    def _against(self, group: Group, units: Labels, permutation: Labels) -> str | None:
        order = np.arange(group.size)
        order[units] = units[permutation]
        return self.reason_against({group.id: order.tolist()})

    def _exchangeable(self, group: Group, units: Labels) -> list[list[int]]:
        """Divide units into classes in which any two may be exchanged."""
        classes: list[list[int]] = []
        for unit in units.tolist():
            for members in classes:
                if self._against(group, np.array([members[0], unit]), np.array([1, 0])) is None:
                    members.append(unit)
                    break
            else:
                if len(classes) == MAX_ORBITS:
                    return []
                classes.append([unit])
        return classes

    # --- what a movement touches ---

    @cached_property
    def classes_of_root(self) -> tuple[Labels, Labels]:
        """Roots, sorted, and the class of axes that each lies on: one pair for every class a root is on."""
        labeling, rows = self.analysis.labeling, []
        for cls in sorted(self.analysis.factors.leaves):
            on = np.concatenate([labeling.root[labeling.offset[leaf] + lab] for leaf, lab in labeling.whole(cls)])
            roots = np.unique(on)
            rows.append((roots, np.full(len(roots), cls)))
        if not rows:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        roots, classes = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        order = np.argsort(roots, kind="stable")
        return roots[order], classes[order]

    @cached_property
    def relations(self) -> Mapping[int, list[int]]:
        """Numbers of the relations that speak of each class; ties need no look."""
        class_of, found = self.analysis.factors.class_of, defaultdict(list)
        for k, relation in enumerate(self.all_relations):
            for cls in {class_of[a] for a in _axes(relation)}:
                found[cls].append(k)
        return found

    @cached_property
    def all_relations(self) -> list[Relation]:
        """The relations, with the freezes that the factorization adds."""
        return [*self.analysis.collection.relations, *self.analysis.factors.conflicts]

    @cached_property
    def nodes(self) -> Mapping[int, list[int]]:
        """Nodes that read or make values on each class."""
        class_of, found = self.analysis.factors.class_of, defaultdict(list)
        for op in self.analysis.collection.ops:
            values = [v for v in (*op.inputs, *op.outputs) if v is not None]
            for cls in sorted({class_of[a.id] for v in values for a in v.axes if a.size > 1}):
                found[cls].append(op.index)
        return found

    @cached_property
    def index_lists(self) -> Mapping[tuple[int, int, int], IndexBinding]:
        """Constant index lists, by (node, source axis, target axis)."""
        bindings = (b for b in self.analysis.collection.bindings if isinstance(b, IndexBinding))
        return {(b.node, b.source, b.target): b for b in bindings}


class Movement:
    """Where the indices of every axis come from, when root `target[r]` comes to the place of root r.

    `asked` is the same without the units that their blocks take along.
    """

    def __init__(self, symmetries: Symmetries, asked: Labels, target: Labels) -> None:
        self._symmetries = symmetries
        self._analysis = symmetries.analysis
        self._target = target
        roots, classes = symmetries.classes_of_root
        unmoved = np.arange(len(target))
        moving: list[int] = np.unique(classes[(target != unmoved)[roots]]).tolist()
        inside: set[int] = set(np.unique(classes[(asked != unmoved)[roots]]).tolist())
        labeling = self._analysis.labeling
        # Where other units go in every head, one order for the axis of head dims alone does not exist. Where heads
        # only take their head dims along, that axis stays as it is.
        elsewhere = {c for c in moving if labeling.has_context_elsewhere(c)}
        self._varying = elsewhere & inside
        self.classes = [c for c in moving if c not in elsewhere or c in inside]
        self._stuck: set[int] = set()
        self._sources: dict[int, Labels] = {}
        for cls in self.classes:
            if cls not in self._varying:
                source = self._source(cls)
                if source is None:
                    self._stuck.add(cls)
                else:
                    self._sources[cls] = source
        self.index_lists: dict[tuple[int, int], Labels] = {}

    def source(self, axis: int) -> Labels | None:
        """Give, for every index of an axis, the index it takes its content from; None where all stay."""
        return self._sources.get(self._analysis.factors.class_of[axis])

    def _source(self, cls: int) -> Labels | None:
        """Match the units that come to each index with the units that lie on each; None where they do not match."""
        layers = self._analysis.roots(cls)
        old = np.stack(layers)
        new = np.where(old >= 0, self._target[np.maximum(old, 0)], -1)
        # Sorting is stable: among the indices of one unit, the k-th goes to the k-th.
        before, after = np.lexsort(old), np.lexsort(new)
        if (old[:, before] != new[:, after]).any():
            return None
        source = np.empty(old.shape[1], dtype=np.int64)
        source[after] = before
        return source

    def reason(self) -> str | None:
        """Say what stands against the movement, the first thing in the order of the graph; None where nothing does."""
        for cls in sorted(self._stuck):
            return f"on {self._where(cls)} they do not lie alike, or carry units of other groups that differ"
        numbers = sorted({k for cls in self.classes for k in self._symmetries.relations.get(cls, ())})
        for k in numbers:
            found = self._against(self._symmetries.all_relations[k])
            if found:
                return found
        for node in sorted({n for cls in self.classes for n in self._symmetries.nodes.get(cls, ())}):
            op = self._analysis.collection.ops[node].node
            if op.op != "Constant" and rule_name(op.domain, op.op) not in ALIKE:
                return f"{self._label(node)} may tell positions apart"
        return None

    def _against(self, relation: Relation) -> str | None:
        if isinstance(relation, Select):
            return self._against_select(relation)
        if isinstance(relation, Regroup):
            return self._against_regroup(relation)
        if isinstance(relation, Mix):
            op = self._analysis.collection.ops[relation.node].node
            if rule_name(op.domain, op.op) not in STATISTICS:
                return f"{self._label(relation.node)}: {relation.why}, in their order"
        if isinstance(relation, Freeze):
            source = self.source(relation.axis)
            index = np.arange(self._size(relation.axis)) if relation.index is None else relation.index
            if self._varies(relation.axis) or (source is not None and (source[index] != index).any()):
                return f"{self._label(relation.node)}: {relation.why}"
        return None

    def _against_select(self, relation: Select) -> str | None:
        why = f"{self._label(relation.node)} treats them differently: what it picks does not move alike"
        if self._varies(relation.source) or self._varies(relation.target):
            return why
        whole, part = self._full_source(relation.source), self._full_source(relation.target)
        if (relation.index[part] == whole[relation.index]).all():
            return None
        binding = self._symmetries.index_lists.get((relation.node, relation.source, relation.target))
        if binding is None:
            return why
        self.index_lists[binding.node, binding.where] = np.argsort(whole)[relation.index[part]]
        return None

    def _against_regroup(self, relation: Regroup) -> str | None:
        sizes, factors = self._analysis.collection.sizes, self._analysis.factors
        for left, right in _chunks(sizes, relation):
            if not any(factors.class_of[a] in self.classes for a in (*left, *right)):
                continue
            if any(self._varies(a) for a in (*left, *right)):
                sides = [[leaf for a in s for leaf in factors.leaves[factors.class_of[a]]] for s in (left, right)]
                same = sides[0] == sides[1]
            else:
                same = bool((self._flat(left) == self._flat(right)).all())
            if not same:
                return f"{self._label(relation.node)} regroups them in a way that does not move alike"
        return None

    def _flat(self, axes: Sequence[int]) -> Labels:
        """Give the permutation of several axes taken as one, row-major."""
        flat = np.zeros(1, dtype=np.int64)
        for axis in axes:
            flat = (flat[:, None] * self._size(axis) + self._full_source(axis)).ravel()
        return flat

    def _full_source(self, axis: int) -> Labels:
        source = self.source(axis)
        return np.arange(self._size(axis)) if source is None else source

    def _varies(self, axis: int) -> bool:
        return self._analysis.factors.class_of[axis] in self._varying

    def _size(self, axis: int) -> int:
        return self._analysis.collection.sizes[axis]

    def _label(self, node: int) -> str:
        return self._analysis.collection.node_label(node)

    def _where(self, cls: int) -> str:
        """Name a class of axes in messages, by its first axis that belongs to a value."""
        class_of = self._analysis.factors.class_of
        for axis in range(cls, len(class_of)):
            owner = self._analysis.collection.axis_value(axis)
            if class_of[axis] == cls and owner is not None:
                return f"axis {owner[1]} of {owner[0].name!r}"
        return "an axis inside a node"


def permute_units(analysis: Analysis, permutations: Mapping[str, Sequence[int]]) -> Model:
    """Give a copy of the model with the units of groups in another order, by group id: the same function.

    The unit at position k is the old unit `permutation[k]`, on every axis of every initializer, in biases,
    normalizations and quantization parameters, and in constant index lists. Sizes stay. Orders that change nothing
    give the model itself. Raises `OptionError` where the order of units matters, and says why.
    """
    movement = Symmetries(analysis).movement(permutations)
    reason = movement.reason()
    if reason is not None:
        names = ", ".join(repr(g) for g in permutations)
        raise OptionError(f"the units of {names} cannot change places like this: {reason}. See `orbits` for what can")
    if not movement.classes:
        return analysis.model
    return _write(analysis, movement)


def orbits(analysis: Analysis, group_id: str) -> Orbits:
    """Find which units of a group may change places; raises `UnknownNameError` for no such group."""
    return Symmetries(analysis).orbits(group_id)


def _write(analysis: Analysis, movement: Movement) -> Model:
    model, edited = analysis.model, Edited(analysis.model)
    places = analysis.collection.view.places
    by_name: dict[str, list[Value]] = {}
    for value in analysis.collection.parameters:
        if not value.index_list:
            by_name.setdefault(value.name, []).append(value)
    for name, values in by_name.items():
        original = model.array(name) if any(_moves(movement, v) for v in values) else None
        written: dict[bytes, str] = {}
        for value in values if original is not None else ():
            assert original is not None
            array = _reordered(movement, value, original)
            key = array.tobytes()
            if key not in written:
                written[key] = name if not written else edited.fresh(f"{name}.onnxprune.{len(written)}")
                edited.write(name, written[key], array)
            if value.use is not None and written[key] != name:
                place = places[value.use[0]]
                assert place is not None
                edited.node(place).input[value.use[1]] = written[key]
    for (node, slot), numbers in movement.index_lists.items():
        place, value = places[node], analysis.collection.ops[node].x(slot)
        assert place is not None
        fresh = edited.constant(place, value.name, numbers.reshape(value.shape))
        edited.node(place).input[slot] = fresh
    return edited.finish()


def _moves(movement: Movement, value: Value) -> bool:
    return any(movement.source(a.id) is not None for a in value.axes)


def _reordered(movement: Movement, value: Value, array: Array) -> Array:
    for k, axis in enumerate(value.axes):
        source = movement.source(axis.id)
        if source is not None:
            array = np.take(array, source, axis=k)
    return np.asarray(array, order="C")


def _generators(n: int) -> tuple[Labels, ...]:
    """Give an exchange and a cycle of n things, from which every order of them can be made."""
    if n < 2:
        return ()
    exchange = np.arange(n)
    exchange[:2] = 1, 0
    return exchange, np.roll(np.arange(n), 1)


def _axes(relation: Relation) -> Iterable[int]:
    if isinstance(relation, Regroup):
        return (*relation.left, *relation.right)
    if isinstance(relation, Select):
        return relation.source, relation.target
    return (relation.axis,) if isinstance(relation, (Mix, Freeze)) else ()


def _chunks(sizes: Sequence[int], relation: Regroup) -> Iterable[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Divide a regrouping into the smallest ones it consists of, side by side."""
    left, right = list(relation.left), list(relation.right)
    while left or right:
        a: list[int] = []
        b: list[int] = []
        while True:
            n, m = (math.prod(sizes[k] for k in part) for part in (a, b))
            if n == m and (a or b):
                break
            (a if n <= m and left else b).append((left if n <= m and left else right).pop(0))
        yield tuple(a), tuple(b)
