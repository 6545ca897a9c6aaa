"""Rewrite: cut the initializers and refresh every size that depends on them, in a copy of the proto.

Nothing that nobody asked to change is touched: edits go to single initializers, attributes, node inputs and
value_info dimensions of the original proto.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from .._version import __version__
from ..axes.analysis import Analysis, Keep
from ..axes.cuts import Version, make_plan, versions
from ..errors import PlanError, RuleDefect
from ..graph.flatten import Place
from ..graph.model import Model
from ..planfile import REPAIRED, Plan
from .edited import Array, Edited
from .sizes import Refresh, Slot


def apply_plan(analysis: Analysis, plan: Plan, values: Mapping[str, Array] | None = None) -> Model:
    """Give a smaller copy of the analysed model. An empty plan gives the model itself.

    `values` are new contents of initializers by name, in the shapes of the original; what the plan removes is cut out
    of them as well. Raises `PlanError` when the plan was made for another model.
    """
    model = analysis.model
    check_plan(analysis, plan)
    if plan.empty:
        return model
    alive = analysis.alive({g.id: g.removed for g in plan.groups})
    return _Rewriter(analysis, alive, values or {}).run(plan)


def check_plan(analysis: Analysis, plan: Plan) -> None:
    """Refuse a plan whose groups or slices are not those of this model."""
    label = analysis.model.label
    if plan.source_sha256 != analysis.model.sha256:
        raise PlanError(f"the plan was made for another file than {label} (its sha256 differs)")
    groups = {g.id: g for g in analysis.groups}
    for group in plan.groups:
        found = groups.get(group.id)
        if group.removed and (found is None or found.size != group.size):
            raise PlanError(f"the plan's group {group.id!r} of {group.size} units is none of {label}")
        if found is not None and group.removed and found.width - len(group.removed) // found.blocks < found.least:
            raise PlanError(f"the plan leaves too little of group {group.id!r}; {found.least} units always stay")
        if found is not None and not found.is_balanced(group.removed):
            raise PlanError(f"the plan takes unequal numbers from the {found.blocks} blocks of group {group.id!r}")
    emptied = analysis.emptied(analysis.alive({g.id: g.removed for g in plan.groups}))
    if emptied is not None:
        owner = analysis.collection.axis_value(emptied)
        where = f"{owner[0].name!r} axis {owner[1]}" if owner else "an axis"
        raise PlanError(f"the plan's groups together remove every index of {where}; one always stays")
    if make_plan(analysis, plan.groups).slices != plan.slices:
        raise PlanError(f"the plan's slices do not follow from its groups for {label}")


class _Rewriter:
    """One rewrite of one model."""

    def __init__(self, analysis: Analysis, alive: Keep, values: Mapping[str, Array]) -> None:
        self.analysis = analysis
        self.alive = alive
        self.values = values
        self.source = analysis.model
        self.edited = Edited(analysis.model)
        self.places = analysis.collection.view.places

    def run(self, plan: Plan) -> Model:
        refresh = Refresh(self.analysis, self.alive)
        found = versions(self.analysis, self.alive)
        for version in found:
            self._write_version(version)
        cut = {version.initializer for version in found}
        for name in sorted(self.values.keys() - cut):
            self.edited.write(name, name, self.values[name])
        self._write_integers(refresh)
        refresh.write_attributes(self.node)
        for index, sizes in refresh.split_sizes:
            node = self.node(index)
            node.input.append(self.edited.constant(self._place(index), f"{node.output[0]}.sizes", sizes))
        self._correct_sizes(refresh)
        self._write_declarations()
        model = self.edited.finish()
        stamp(model.skeleton, self.source.sha256, plan.sha256, repaired=bool(self.values))
        return model

    def _place(self, index: int) -> Place:
        place = self.places[index]
        if place is None:
            raise RuleDefect(f"{self.analysis.collection.node_label(index)} has no place that could be edited")
        return place

    def node(self, index: int) -> onnx.NodeProto:
        """Give the proto of analysed node `index`."""
        return self.edited.node(self._place(index))

    def _write_version(self, version: Version) -> None:
        if not version.keeps and version.result == version.initializer:
            return
        array = self.values.get(version.initializer)
        if array is None:
            self.edited.cut(version.initializer, version.result, version.keeps)
        else:
            for axis, keep in version.keeps.items():
                array = np.compress(keep, array, axis=axis)
            self.edited.write(version.initializer, version.result, array)
        if version.result != version.initializer:
            for node, slot in version.uses:
                self.node(node).input[slot] = version.result

    def _write_integers(self, refresh: Refresh) -> None:
        """Write the integer constants that change: in place for all readers alike, as copies otherwise."""
        readers: dict[str, list[Slot]] = {}
        for op in self.analysis.collection.ops:
            for slot, t in enumerate(op.node.inputs):
                if self.edited.holds(t.name):
                    readers.setdefault(t.name, []).append((op.index, slot))
        by_name: dict[str, dict[Slot, Array]] = {}
        for use, array in refresh.constants.items():
            by_name.setdefault(self.analysis.collection.ops[use[0]].x(use[1]).name, {})[use] = array
        for name, changes in by_name.items():
            if self.edited.holds(name):
                self._write_shared(name, readers[name], changes)
            else:
                for (node, slot), array in changes.items():
                    self.node(node).input[slot] = self.edited.constant(self._place(node), name, array)

    def _write_shared(self, name: str, readers: list[Slot], changes: dict[Slot, Array]) -> None:
        """Give every reader of an integer constant the content it needs; the first content keeps the name."""
        original = self.source.array(name)
        contents: dict[tuple[bytes, tuple[int, ...]], str] = {}
        if name in self.analysis.collection.captured:
            contents[original.tobytes(), original.shape] = name
        for use in readers:
            array = changes[use].astype(original.dtype) if use in changes else original
            in_function = self._place(use[0])[0] in self.source.flat.function_bodies
            if in_function and use in changes:
                self.node(use[0]).input[use[1]] = self.edited.constant(self._place(use[0]), name, array)
                continue
            key = array.tobytes(), array.shape
            if key not in contents:
                contents[key] = name if not contents else self.edited.fresh(f"{name}.onnxprune.{len(contents)}")
                if use in changes or contents[key] != name:
                    self.edited.write(name, contents[key], array)
            if contents[key] != name:
                self.node(use[0]).input[use[1]] = contents[key]

    def _write_declarations(self) -> None:
        """Bring the declared shapes of values up to date; declarations of weights follow their tensors."""
        values = self.analysis.collection.values
        for name, info in self.edited.declarations():
            value = values.get(name)
            sizes = self.edited.dims(name)
            if sizes is None:
                if value is None:
                    continue
                sizes = [int(np.count_nonzero(self.analysis.keep(a.id, self.alive))) for a in value.axes]
            for dim, size in zip(info.type.tensor_type.shape.dim, sizes, strict=False):
                if dim.HasField("dim_value") and dim.dim_value > size > 0:
                    dim.dim_value = size

    def _correct_sizes(self, refresh: Refresh) -> None:
        """Correct sizes that are computed at run time, right before the node that reads them."""
        for (node, slot), fix in refresh.corrections.items():
            proto, place = self.node(node), self._place(node)
            near = made = proto.input[slot]
            if (fix.numerator != fix.denominator).any():
                for op, factor in (("Mul", fix.numerator), ("Div", fix.denominator)):
                    made = self.edited.insert(place, op, near, [made, self.edited.constant(place, near, factor)])
            if fix.is_fixed.any():
                fixed = [self.edited.constant(place, near, a) for a in (fix.is_fixed, fix.fixed)]
                made = self.edited.insert(place, "Where", near, [*fixed, made])
            proto.input[slot] = made


def stamp(proto: onnx.ModelProto, source_sha256: str, plan_sha256: str, *, repaired: bool = False) -> None:
    """Write where a model comes from into its `metadata_props`, replacing earlier entries of the same keys.

    `repaired` says that what stays of the weights is not bit for bit what it was.
    """
    entries: dict[str, str] = {
        "onnxprune.version": __version__,
        "onnxprune.source_sha256": source_sha256,
        "onnxprune.plan_sha256": plan_sha256,
        **({REPAIRED: "yes"} if repaired else {}),
    }
    kept = [p for p in proto.metadata_props if p.key not in (*entries, REPAIRED)]
    copies = [(p.key, p.value) for p in kept] + list(entries.items())
    del proto.metadata_props[:]
    for key, text in copies:
        proto.metadata_props.add(key=key, value=text)
