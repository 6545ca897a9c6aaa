"""Rewrite: cut the initializers and refresh every size that depends on them, in a copy of the proto.

Nothing that nobody asked to change is touched: edits go to single initializers, attributes, node inputs and
value_info dimensions of the original proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from .._version import __version__
from ..axes.analysis import Analysis, Keep
from ..axes.cuts import Version, make_plan, versions
from ..axes.op import Value
from ..errors import PlanError
from ..graph.model import Model
from ..planfile import Plan
from .sizes import Refresh

FIRST_IR_WITH_PRIVATE_INITIALIZERS = 4


def apply_plan(analysis: Analysis, plan: Plan) -> Model:
    """Give a smaller copy of the analysed model. An empty plan gives the model itself.

    Raises `PlanError` when the plan was made for another model.
    """
    model = analysis.model
    check_plan(analysis, plan)
    if plan.empty:
        return model
    alive = analysis.alive({g.id: g.removed for g in plan.groups})
    smaller = _Rewriter(analysis, alive).run(plan)
    return Model(smaller, model.path, prefers_external_data=model.has_external_data or model.prefers_external_data)


def check_plan(analysis: Analysis, plan: Plan) -> None:
    """Refuse a plan whose groups or slices are not those of this model."""
    label = analysis.model.label
    if plan.source_sha256 != analysis.model.sha256:
        raise PlanError(f"the plan was made for another file than {label} (its sha256 differs)")
    sizes = {g.id: g.size for g in analysis.groups}
    for group in plan.groups:
        if sizes.get(group.id) != group.size and group.removed:
            raise PlanError(f"the plan's group {group.id!r} of {group.size} units is none of {label}")
        if len(group.removed) >= group.size:
            raise PlanError(f"the plan removes every unit of group {group.id!r}; one always stays")
    if make_plan(analysis, plan.groups).slices != plan.slices:
        raise PlanError(f"the plan's slices do not follow from its groups for {label}")


class _Rewriter:
    """One rewrite of one model."""

    def __init__(self, analysis: Analysis, alive: Keep) -> None:
        self.analysis = analysis
        self.alive = alive
        self.source = analysis.model
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(analysis.model.proto)
        self.graph = self.proto.graph
        self.positions = analysis.collection.view.positions
        self.constants = _constant_positions(self.graph)

    def run(self, plan: Plan) -> onnx.ModelProto:
        refresh = Refresh(self.analysis, self.alive)
        for version in versions(self.analysis, self.alive):
            self._write_version(version)
        self._write_integers(refresh)
        refresh.write_attributes(self.node)
        for index, sizes in refresh.split_sizes:
            self._give_split_sizes(self.node(index), sizes)
        self._insert_nodes(refresh)
        self._write_value_info()
        stamp(self.proto, self.source.sha256, plan.sha256)
        return self.proto

    def node(self, index: int) -> onnx.NodeProto:
        """Give the proto of analysed node `index`."""
        node: onnx.NodeProto = self.graph.node[self.positions[index]]
        return node

    def _tensor(self, name: str) -> onnx.TensorProto:
        """Give the tensor called `name` in the copy: an initializer, or the value of a Constant node."""
        kind, k = self.constants[name]
        tensor: onnx.TensorProto
        if kind == "initializer":
            tensor = self.graph.initializer[k]
        else:
            tensor = next(a.t for a in self.graph.node[k].attribute if a.name == "value")
        return tensor

    def _write_version(self, version: Version) -> None:
        if not version.keeps and version.result == version.initializer:
            return
        array = self.source.array(version.initializer)
        for axis, keep in version.keeps.items():
            array = np.compress(keep, array, axis=axis)
        self._write_tensor(version.initializer, version.result, array)
        if version.result != version.initializer:
            for node, slot in version.uses:
                self.node(node).input[slot] = version.result

    def _write_tensor(self, name: str, result: str, array: np.ndarray[Any, Any]) -> None:
        old = self._tensor(name) if name in self.constants else onnx.TensorProto()
        new = numpy_helper.from_array(np.asarray(array, order="C"), result)
        new.doc_string = old.doc_string
        new.metadata_props.extend(old.metadata_props)
        if name == result and name in self.constants:
            if self.constants[name][0] == "constant":
                new.name = old.name
            old.CopyFrom(new)
        else:
            self.graph.initializer.append(new)
            self.constants[result] = ("initializer", len(self.graph.initializer) - 1)

    def _write_integers(self, refresh: Refresh) -> None:
        """Write the integer constants that change: in place for all readers alike, as copies otherwise."""
        readers: dict[str, list[tuple[int, int]]] = {}
        for op in self.analysis.collection.ops:
            for slot, t in enumerate(op.node.inputs):
                if t.name in self.constants:
                    readers.setdefault(t.name, []).append((op.index, slot))
        by_name: dict[str, dict[tuple[int, int], np.ndarray[Any, Any]]] = {}
        for (node, slot), array in refresh.constants.items():
            by_name.setdefault(self.analysis.collection.ops[node].x(slot).name, {})[(node, slot)] = array
        outputs = {o.name for o in self.graph.output}
        for name, changes in by_name.items():
            if name not in self.constants:
                for k, ((node, slot), array) in enumerate(changes.items(), start=1):
                    self._write_tensor(name, f"{name}.onnxprune.{k}", array)
                    self.node(node).input[slot] = f"{name}.onnxprune.{k}"
                continue
            contents: dict[bytes, str] = {}
            original = self.source.array(name)
            pinned = name in outputs or name in self.analysis.collection.captured
            if pinned:
                contents[original.tobytes()] = name
            for use in readers[name]:
                array = changes.get(use, original)
                key = array.tobytes() + str(array.shape).encode() if array is not original else original.tobytes()
                if key not in contents:
                    contents[key] = name if not contents else f"{name}.onnxprune.{len(contents)}"
                    if array is not original or contents[key] != name:
                        self._write_tensor(name, contents[key], array.astype(original.dtype))
                if contents[key] != name:
                    self.node(use[0]).input[use[1]] = contents[key]

    def _give_split_sizes(self, node: onnx.NodeProto, sizes: np.ndarray[Any, Any]) -> None:
        taken = {o for n in self.graph.node for o in n.output} | set(self.constants)
        name = _fresh(f"{node.output[0]}.onnxprune.split", taken)
        self._write_tensor(name, name, sizes)
        node.input.append(name)

    def _write_value_info(self) -> None:
        """Bring the declared shapes of values up to date; declarations of weights follow their tensors."""
        values = self.analysis.collection.values
        for info in [*self.graph.value_info, *self.graph.input]:
            if not info.type.tensor_type.HasField("shape"):
                continue
            if info.name in self.constants:
                sizes: list[int] = list(self._tensor(info.name).dims)
            elif values.get(info.name) is not None:
                sizes = self._kept_sizes(values[info.name])
            else:
                continue
            for dim, size in zip(info.type.tensor_type.shape.dim, sizes, strict=False):
                if dim.HasField("dim_value") and dim.dim_value > size > 0:
                    dim.dim_value = size
        if self.proto.ir_version < FIRST_IR_WITH_PRIVATE_INITIALIZERS:
            declared = {v.name for v in self.graph.input}
            for t in self.graph.initializer:
                if t.name not in declared:
                    self.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))

    def _kept_sizes(self, value: Value | None) -> list[int]:
        axes = value.axes if value is not None else ()
        return [int(np.count_nonzero(self.analysis.keep(a.id, self.alive))) for a in axes]

    def _insert_nodes(self, refresh: Refresh) -> None:
        """Correct sizes that are computed at run time, right before the node that reads them."""
        if not refresh.corrections:
            return
        before: dict[int, list[onnx.NodeProto]] = {}
        self.taken = {o for n in self.graph.node for o in n.output} | set(self.constants)
        for (node, slot), fix in refresh.corrections.items():
            proto = self.node(node)
            rows = before.setdefault(self.positions[node], [])
            name = proto.input[slot]
            made = name
            if (fix.numerator != fix.denominator).any():
                made = self._made(rows, "Mul", name, [made, self._constant(name, fix.numerator)])
                made = self._made(rows, "Div", name, [made, self._constant(name, fix.denominator)])
            if fix.is_fixed.any():
                fixed = [self._constant(name, fix.is_fixed), self._constant(name, fix.fixed)]
                made = self._made(rows, "Where", name, [*fixed, made])
            proto.input[slot] = made
        nodes = [n for k, node in enumerate(self.graph.node) for n in [*before.get(k, ()), node]]
        copies = [onnx.NodeProto.FromString(n.SerializeToString(deterministic=True)) for n in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)
        self.constants = _constant_positions(self.graph)

    def _constant(self, near: str, array: np.ndarray[Any, Any]) -> str:
        name = _fresh(f"{near}.onnxprune.1", self.taken)
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _made(self, rows: list[onnx.NodeProto], op: str, near: str, inputs: list[str]) -> str:
        output = _fresh(f"{near}.onnxprune.{op}", self.taken)
        rows.append(onnx.helper.make_node(op, inputs, [output], name=output))
        return output


def _constant_positions(graph: onnx.GraphProto) -> dict[str, tuple[str, int]]:
    found = {t.name: ("initializer", k) for k, t in enumerate(graph.initializer)}
    for k, node in enumerate(graph.node):
        if node.op_type == "Constant" and any(a.name == "value" for a in node.attribute):
            found[node.output[0]] = ("constant", k)
    return found


def _fresh(name: str, taken: set[str]) -> str:
    k, unique = 2, name
    while unique in taken:
        unique, k = f"{name}.{k}", k + 1
    taken.add(unique)
    return unique


def stamp(proto: onnx.ModelProto, source_sha256: str, plan_sha256: str) -> None:
    """Write where a model comes from into its `metadata_props`, replacing earlier entries of the same keys."""
    entries: Mapping[str, str] = {
        "onnxprune.version": __version__,
        "onnxprune.source_sha256": source_sha256,
        "onnxprune.plan_sha256": plan_sha256,
    }
    kept = [p for p in proto.metadata_props if p.key not in entries]
    copies = [(p.key, p.value) for p in kept] + list(entries.items())
    del proto.metadata_props[:]
    for key, text in copies:
        proto.metadata_props.add(key=key, value=text)
