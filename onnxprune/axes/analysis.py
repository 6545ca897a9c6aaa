"""The result of analysis: groups of interchangeable units, frozen axes with reasons, sizes and cost.

Everything here is read-only and depends on the graph alone, never on the weights' values.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import RuleDefect, unknown_name
from ..graph.model import Model
from ..graph.shapes import LENGTHS
from .blame import blame
from .blocks import find_contexts
from .collect import Collection
from .costs import Cost, Costs
from .exactness import inexact_axes
from .factors import Factorization, factorize
from .frozen import Chain, Frozen, Links, freeze_graph, freezing_chain
from .groups import Group, Locked, Member, by_signature, canonical, make_group, outer_first
from .labels import Labels
from .layers import Labeling, label
from .layout import layout
from .naming import group_ids, kind_of
from .sizes import check_sizes

Keep = np.ndarray[Any, np.dtype[np.bool_]]
SHORT_LENGTHS = (8, 4)
NORMALIZATIONS = frozenset(
    {"BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization"}
)


class Analysis:
    """What can go together in one model, at the sizes of one analysis.

    `lengths` are sizes to try for dynamic axes that `input_shapes` leaves open.
    """

    def __init__(
        self,
        model: Model,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        lengths: Sequence[int | None] = (None, *LENGTHS),
    ) -> None:
        self.model = model
        self.collection = Collection(model, input_shapes, lengths)
        c = self.collection
        self.factors: Factorization = factorize(c.sizes, c.relations)
        c.relations.extend(check_sizes(c, self.factors))
        self.labeling: Labeling = label(self.factors, c.relations, find_contexts(c, self.factors))
        self._roots: dict[int, list[Labels]] = {}
        self.groups: tuple[Group, ...] = self._find_groups()

    # --- axes ---

    def roots(self, axis: int) -> list[Labels]:
        """Give the roots that every index of an axis belongs to, one array per layer (-1 for none)."""
        cls = self.factors.class_of[axis]
        if cls not in self._roots:
            small = self.collection.sizes[axis] <= 1
            self._roots[cls] = [] if small else self.labeling.roots(cls, self.collection.sizes[axis])
        return self._roots[cls]

    def keep(self, axis: int, alive: Keep) -> Keep:
        """Give which indices of an axis stay when the roots not `alive` go.

        Where they differ from block to block along another axis, they are those of the first block that stays.
        """
        stays = np.ones(self.collection.sizes[axis], dtype=bool)
        cls = self.factors.class_of[axis]
        varies = len(stays) > 1 and self.labeling.has_context_elsewhere(cls)
        for roots in self.labeling.roots(cls, len(stays), alive) if varies else self.roots(axis):
            stays &= (roots < 0) | alive[np.maximum(roots, 0)]
        return stays

    def emptied(self, alive: Keep) -> int | None:
        """Give an axis of which nothing stays, None where there is none."""
        return next((axis for axis in self._one_axis_per_class if not self.keep(axis, alive).any()), None)

    @cached_property
    def _one_axis_per_class(self) -> tuple[int, ...]:
        """One axis of every class that a group runs along."""
        first: dict[int, int] = {}
        for axis, cls in enumerate(self.factors.class_of):
            if self.collection.sizes[axis] > 1:
                first.setdefault(cls, axis)
        return tuple(axis for axis in first.values() if self._numbers_on(self._group_of_root, axis))

    def groups_on(self, axis: int) -> list[Group]:
        """List the groups whose units run along an axis."""
        return [self.groups[k] for k in self._numbers_on(self._group_of_root, axis)]

    def all_alive(self) -> Keep:
        """Give the state in which nothing is removed."""
        return np.ones(len(self.labeling.root), dtype=bool)

    def alive(self, removed: Mapping[str, Sequence[int]]) -> Keep:
        """Give the state after removing units, by group id."""
        alive = self.all_alive()
        for group in self.groups:
            if removed.get(group.id):
                alive[group.roots[np.asarray(removed[group.id], dtype=np.int64)]] = False
        return alive

    # --- groups ---

    def _find_groups(self) -> tuple[Group, ...]:
        root, frozen = self.labeling.root, self.labeling.frozen
        signature = self.labeling.signatures()
        live = np.flatnonzero((root == np.arange(len(root))) & ~frozen)
        unit_lists = by_signature(live, signature[live])
        group_of = np.full(len(root), -1, dtype=np.int64)
        unit_of = np.zeros(len(root), dtype=np.int64)
        for g, roots in enumerate(unit_lists):
            group_of[roots] = g
            unit_of[roots] = np.arange(len(roots))
        members = self._members(group_of, unit_of)
        least = self._per_group(group_of, self.collection.least)
        crowded = {g for axis, _ in self.collection.least for g in self._shared(group_of, axis)}
        inexact = self._per_group(group_of, ((axis, why) for axis, why, _ in inexact_axes(self.collection)))
        hints = self._hints(group_of)
        order = {name: k for k, name in enumerate(self.model.tensors)}
        chosen: dict[int, list[Member]] = {}
        for g, units in enumerate(unit_lists):
            if len(units) > 1 and any(self._carries_weight(m) for m in members.get(g, ())):
                chosen[g] = sorted(members[g], key=lambda m: canonical(m, order))
        ranked = sorted(chosen, key=lambda g: (canonical(chosen[g][0], order), outer_first(chosen[g][0])))
        kinds = {g: kind_of(hints.get(g, []), bool(inexact.get(g))) for g in ranked}
        ids = group_ids(self.collection, {g: chosen[g] for g in ranked}, kinds)
        return tuple(
            make_group(
                ids[g],
                kinds[g],
                chosen[g],
                unit_lists[g],
                self.labeling.block[unit_lists[g]],
                inexact.get(g, []),
                len(unit_lists[g]) if g in crowded else max(least.get(g, [1])),
                tuple(dict.fromkeys(self.collection.ops[n].node.name for _, n in hints.get(g, []))),
            )
            for g in ranked
        )

    def _members(self, group_of: Labels, unit_of: Labels) -> dict[int, list[Member]]:
        found: dict[int, list[Member]] = {}
        for value in self.collection.parameters:
            for k, axis in enumerate(value.axes):
                if axis.size == 1 or value.index_list:
                    continue
                role = self.role(axis.id)
                for roots in self.roots(axis.id):
                    at = np.maximum(roots, 0)
                    groups = np.where(roots >= 0, group_of[at], -1)
                    for g in np.unique(groups[groups >= 0]).tolist():
                        unit = np.where(groups == g, unit_of[at], -1)
                        found.setdefault(g, []).append(Member(value.name, k, role, unit, axis.id, value.use))
        return found

    def role(self, axis: int) -> str:
        """Give what an initializer's axis is for; weights behind arithmetic take the role of what they become."""
        return self._roles.get(axis, "parameter")

    @cached_property
    def _roles(self) -> dict[int, str]:
        """Carry the roles that rules state back through nodes that only weights flow into."""
        roles = dict(self.collection.roles)
        class_of = self.factors.class_of
        for op in reversed(self.collection.ops):
            outputs = [y for y in op.outputs if y is not None and y.constant]
            carried = {class_of[a.id]: roles[a.id] for y in outputs for a in y.axes if a.id in roles and a.size > 1}
            if not carried:
                continue
            for x in op.inputs:
                if x is None or sum(d > 1 for d in x.shape) < 2:
                    continue
                for axis in x.axes:
                    role = carried.get(class_of[axis.id])
                    if role and roles.get(axis.id, "parameter") == "parameter":
                        roles[axis.id] = role
        return roles

    def _per_group(self, group_of: Labels, statements: Iterable[tuple[int, Any]]) -> dict[int, list[Any]]:
        """File statements about axes under the groups that run along them."""
        result: dict[int, list[Any]] = {}
        known: dict[int, list[int]] = {}
        for axis, statement in statements:
            cls = self.factors.class_of[axis]
            if cls not in known:
                known[cls] = self._numbers_on(group_of, axis)
            for g in known[cls]:
                result.setdefault(g, []).append(statement)
        return result

    def _shared(self, group_of: Labels, axis: int) -> list[int]:
        """List the groups on an axis that several run along: what stays of it is no count of one group."""
        on = self._numbers_on(group_of, axis)
        return on if len(on) > 1 else []

    def _numbers_on(self, group_of: Labels, axis: int) -> list[int]:
        on: set[int] = set()
        for roots in self.roots(axis):
            on.update(np.unique(group_of[roots[roots >= 0]]).tolist())
        return sorted(on - {-1})

    def _hints(self, group_of: Labels) -> dict[int, list[tuple[str, int]]]:
        flat = [(axis, hint) for axis, hints in self.collection.hints.items() for hint in hints]
        return self._per_group(group_of, sorted(flat, key=lambda row: row[1][1]))

    def group(self, name: str) -> Group:
        """Give a group by id; raises `UnknownNameError` with the nearest ids."""
        for group in self.groups:
            if group.id == name:
                return group
        raise unknown_name("group", name, (g.id for g in self.groups))

    @cached_property
    def _group_of_root(self) -> Labels:
        """Give the group of every root, -1 for none."""
        group_of = np.full(len(self.labeling.root), -1, dtype=np.int64)
        for k, group in enumerate(self.groups):
            group_of[group.roots] = k
        return group_of

    def kind_at(self, leaf: int, labels: Labels) -> Labels:
        """Give the index into `groups` for labels of a leaf, -1 where they are locked."""
        return np.asarray(self._group_of_root[self.labeling.root[self.labeling.offset[leaf] + labels]])

    def layout(self, name: str) -> str:
        """Spell the axes of an initializer or another value: `embedding=48, (3 heads=4 head_dim=12)`."""
        weights = self.collection.parameters
        found = next((v for v in weights if v.name == name), None) or self.collection.values.get(name)
        if found is None:
            raise unknown_name("value", name, [*self.collection.values, *(v.name for v in weights)])
        return layout(self, found)

    # --- what stays ---

    @cached_property
    def locked(self) -> tuple[Locked, ...]:
        """Initializer axes of which nothing may go."""
        on_groups = {m.axis_id for g in self.groups for m in g.members}
        rows = []
        for value in self.collection.parameters:
            if not self._is_weight(value.name) or value.use is not None:
                continue
            for k, axis in enumerate(value.axes):
                if axis.size > 1 and axis.id not in on_groups:
                    rows.append(Locked(value.name, k, axis.size, self.chain(axis.id).reason))
        return tuple(rows)

    def _carries_weight(self, member: Member) -> bool:
        """Say whether a member is more than a vector that goes along with a layer."""
        dims = self.model.tensors[member.initializer].dims
        return self._is_weight(member.initializer) and (member.role != "parameter" or sum(d > 1 for d in dims) > 1)

    def _is_weight(self, name: str) -> bool:
        tensor = self.model.tensors.get(name)
        return tensor is not None and tensor.data_type in (1, 2, 3, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23)

    def chain(self, axis: int) -> Chain:
        """Give the chain of nodes that freezes an axis."""
        return freezing_chain(self.collection, self._freeze_graph, axis)

    @cached_property
    def _freeze_graph(self) -> tuple[Links, Frozen]:
        return freeze_graph(self.collection)

    @cached_property
    def scale_vectors(self) -> frozenset[str]:
        """Initializers that a normalization multiplies by, channel by channel."""
        found = (op.x(1) for op in self.collection.ops if op.node.op in NORMALIZATIONS and op.given(1))
        return frozenset(value.name for value in found if value.initializer)

    # --- cost ---

    @cached_property
    def costs(self) -> Costs:
        """Cost as a function of what stays."""
        return Costs(self)

    @cached_property
    def cost(self) -> Cost:
        """Cost of the model as it is."""
        return self.costs(self.all_alive())


def analyze_model(model: Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Analysis:
    """Analyze a model: see `Analysis`.

    Where the usual sizes of dynamic axes contradict each other, such as a length beyond a table of positions, small
    ones are tried. Raises `ModelError` when the model contradicts itself, `RuleDefect` when a rule does.
    """
    from .. import rules  # noqa: F401  registers the built-in rules

    first: RuleDefect | None = None
    for _ in range(2):
        with _garbage_uncollected():
            for lengths in ((None, *LENGTHS), *((n,) for n in SHORT_LENGTHS)):
                try:
                    return Analysis(model, input_shapes, lengths)
                except RuleDefect as defect:  # noqa: PERF203  at most three times
                    first = first or defect
        if not model.flat.value_info:
            break
        # What is declared behind operators that tell no shapes may be stale, and is not needed: unknown is frozen.
        model.flat.value_info = []
    assert first is not None
    blame(model, input_shapes, first)
    raise first


@contextlib.contextmanager
def _garbage_uncollected() -> Iterator[None]:
    """Keep Python from looking for garbage, of which there is none: it looks again as often as the graph has grown."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
