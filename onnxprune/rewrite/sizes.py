"""The integers of a graph after a removal: which change, and how each is corrected.

A literal is rewritten. A number computed from shapes is evaluated at the new sizes first: most follow by themselves.
One that does not is replaced by a constant, or corrected in the graph where other elements of the same tensor depend
on sizes known only at run time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ..axes.analysis import Analysis, Keep
from ..axes.relations import DefaultBinding, IndexBinding, SizeBinding
from ..graph.integers import Expr

Slot = tuple[int, int]


@dataclass
class Correction:
    """How a computed size tensor is put right at run time: `old * numerator / denominator`, then `fixed` where set."""

    numerator: np.ndarray[Any, Any]
    denominator: np.ndarray[Any, Any]
    is_fixed: np.ndarray[Any, Any]
    fixed: np.ndarray[Any, Any]


class Refresh:
    """All corrections that one removal needs.

    `constants[(node, slot)]` is the new array of an integer input; `corrections[(node, slot)]` what a computed one
    needs; attributes are written by `write_attributes`, which leaves in `split_sizes` the sizes of Splits (node, array)
    that must be given as an input from now on.
    """

    def __init__(self, analysis: Analysis, alive: Keep) -> None:
        self._analysis = analysis
        self._alive = alive
        self.constants: dict[Slot, np.ndarray[Any, Any]] = {}
        self.corrections: dict[Slot, Correction] = {}
        self.split_sizes: list[tuple[int, np.ndarray[Any, Any]]] = []
        self._attributes: list[SizeBinding] = []
        self._defaults: list[DefaultBinding] = []
        by_slot: dict[Slot, list[SizeBinding]] = {}
        for b in analysis.collection.bindings:
            if isinstance(b, IndexBinding):
                self._remap(b)
            elif isinstance(b, DefaultBinding):
                self._defaults.append(b)
            elif isinstance(b.where, str):
                self._attributes.append(b)
            else:
                by_slot.setdefault((b.node, b.where), []).append(b)
        for slot, bindings in by_slot.items():
            self._refresh(slot, bindings)
        for node, slot_index in analysis.collection.pins:
            self._pin(node, slot_index)

    def _keep(self, axis: int) -> Keep:
        return self._analysis.keep(axis, self._alive)

    def _count(self, b: SizeBinding) -> int:
        return int(np.count_nonzero(self._keep(b.axis)[b.since : b.upto]))

    def _size(self, name: str, axis: int) -> int:
        value = self._analysis.collection.values.get(name)
        if value is None:
            shape = self._analysis.collection.shapes.sizes[name]
            assert shape is not None
            return shape[axis]
        return int(np.count_nonzero(self._keep(value.axes[axis].id)))

    def _remap(self, b: IndexBinding) -> None:
        """Renumber a constant list of indices into an axis that shrinks."""
        source, target = self._keep(b.source), self._keep(b.target)
        if source.all() and target.all():
            return
        op = self._analysis.collection.ops[b.node]
        index = op.constant_integers(b.where)
        assert index is not None
        kept = [int(np.count_nonzero(self._keep(axis.id))) for axis in op.x(b.where).axes]
        rank = np.cumsum(source) - 1
        self.constants[(b.node, b.where)] = rank[index.ravel()[target] % len(source)].reshape(kept)

    def _refresh(self, slot: Slot, bindings: list[SizeBinding]) -> None:
        collection = self._analysis.collection
        op = collection.ops[slot[0]]
        known = collection.shapes.integers.get(op.x(slot[1]).name)
        if known is None:
            return
        if not known.depends and all(self._keep(b.axis).all() for b in bindings):
            return
        now = [e.evaluate(self._size) for e in known.items]
        wrong: dict[int, int] = {}
        for b in bindings:
            k, count = b.item or 0, self._count(b)
            open_ended = now[k] == -1 and _is_target(op.node.op, slot[1])
            if now[k] == count or open_ended or self._copies(b, known.items[k]) or self._is_open_end(b, now[k]):
                continue
            if known.items[k].op == "lit" and self._keep(b.axis).all():
                continue
            wrong[k] = count
        if not wrong:
            return
        if not any(self._runtime(e) for e in known.items):
            new = [wrong.get(k, n) for k, n in enumerate(now)]
            self.constants[slot] = np.array(new, dtype=np.int64).reshape(known.shape)
            return
        shape, n = known.shape, len(now)
        one, zero = np.ones(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        fix = Correction(one, one.copy(), np.zeros(n, dtype=bool), zero)
        for k, count in wrong.items():
            if self._runtime(known.items[k]):
                common = math.gcd(count, int(now[k]))
                fix.numerator[k], fix.denominator[k] = count // common, int(now[k]) // common
            else:
                fix.is_fixed[k], fix.fixed[k] = True, count
        numerator, denominator = fix.numerator.reshape(shape), fix.denominator.reshape(shape)
        self.corrections[slot] = Correction(numerator, denominator, fix.is_fixed.reshape(shape), zero.reshape(shape))

    def _pin(self, node: int, slot: int) -> None:
        """Keep the present value of a number that was computed from a size that changes."""
        collection = self._analysis.collection
        name = collection.ops[node].node.inputs[slot].name
        known = collection.shapes.integers[name]
        if all(e.evaluate(self._size) == e.value for e in known.items):
            return
        dtype = onnx.helper.tensor_dtype_to_np_dtype(collection.shapes.types[name])
        values = [e.value for e in known.items]
        self.constants[(node, slot)] = np.array(values, dtype=dtype).reshape(known.shape)

    def _copies(self, b: SizeBinding, e: Expr) -> bool:
        """Say whether a 0 of a Reshape copies an input size that is right already."""
        op = self._analysis.collection.ops[b.node]
        if op.node.op != "Reshape" or e.value != 0 or op.attr("allowzero", 0):
            return False
        x = op.x(0)
        return (b.item or 0) < x.ndim and self._size(x.name, b.item or 0) == self._count(b)

    def _is_open_end(self, b: SizeBinding, now: float) -> bool:
        """Say whether a Slice end lies at or beyond the axis, and so stays where it is."""
        size = self._analysis.collection.sizes[b.axis]
        return b.upto == size and now >= size

    def _runtime(self, e: Expr) -> bool:
        shapes = self._analysis.collection.shapes
        return any(shapes.is_dynamic(name, k) for name, k in e.dims())

    def write_attributes(self, node: Callable[[int], onnx.NodeProto]) -> None:
        """Write the attributes that count kept indices, and those whose default would change."""
        lists: dict[tuple[int, str], list[SizeBinding]] = {}
        for b in self._attributes:
            proto = node(b.node)
            attribute = next((a for a in proto.attribute if a.name == b.where), None)
            if attribute is None and b.item is not None:
                lists.setdefault((b.node, str(b.where)), []).append(b)
            elif not self._keep(b.axis).all():
                self._write_attribute(proto, attribute, b)
        for (index, name), bindings in lists.items():
            if name == "split":
                self._write_even_split(node(index), index, bindings)
            elif not all(self._keep(b.axis).all() for b in bindings):
                sizes = [self._count(b) for b in sorted(bindings, key=lambda b: b.item or 0)]
                node(index).attribute.append(onnx.helper.make_attribute(name, sizes))
        for d in self._defaults:
            if not self._keep(d.axis).all():
                _write_number(node(d.node), d.where, d.value)

    def _write_attribute(self, proto: onnx.NodeProto, attribute: onnx.AttributeProto | None, b: SizeBinding) -> None:
        if attribute is None:
            proto.attribute.append(onnx.helper.make_attribute(str(b.where), self._count(b)))
        elif b.item is None:
            attribute.i = self._count(b)
        elif (b.upto is not None and self._is_open_end(b, attribute.ints[b.item])) or (
            proto.op_type == "Reshape" and attribute.ints[b.item] in (-1, 0)
        ):
            return
        else:
            attribute.ints[b.item] = self._count(b)

    def _write_even_split(self, proto: onnx.NodeProto, index: int, bindings: list[SizeBinding]) -> None:
        """Spell out the sizes of a Split without them, where they are no longer even."""
        sizes = [self._count(b) for b in sorted(bindings, key=lambda b: b.item or 0)]
        if sizes == _even_split(sum(sizes), len(sizes), uneven_last=self._analysis.collection.opset >= 18):
            return
        if self._analysis.collection.opset < 13:
            proto.attribute.append(onnx.helper.make_attribute("split", sizes))
            return
        for k, a in enumerate(proto.attribute):
            if a.name == "num_outputs":
                del proto.attribute[k]
                break
        self.split_sizes.append((index, np.array(sizes, dtype=np.int64)))


def _write_number(proto: onnx.NodeProto, name: str, value: float) -> None:
    """Write a float attribute, over one that is there and asks for the default."""
    kept = [a for a in proto.attribute if a.name != name]
    attributes = [*kept, onnx.helper.make_attribute(name, float(value))]
    copies = [onnx.AttributeProto.FromString(a.SerializeToString(deterministic=True)) for a in attributes]
    del proto.attribute[:]
    proto.attribute.extend(copies)


def _is_target(op: str, slot: int) -> bool:
    """Say whether -1 in this input means "what remains"."""
    return op in ("Reshape", "Expand") and slot == 1


def _even_split(total: int, n: int, *, uneven_last: bool) -> list[int] | None:
    """Give what a Split without sizes makes of `total`; from opset 18 on its last output may be smaller."""
    chunk = -(-total // n)
    if total % n and not uneven_last:
        return None
    return [min(chunk, total - chunk * k) for k in range(n)]
