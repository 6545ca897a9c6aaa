"""Undo storage: find the nodes that stand for a stored weight by what they compute, whatever they are called by now."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...graph.model import Model
from ...rewrite.edited import Edited
from .bits import Array, Pieces, put_together
from .masked import MASKABLE
from .packed import COUNT_TABLE, RANK_TABLE


def unpack(model: Model) -> Model:
    """Give a copy in which packed, sparse and masked weights are dense initializers again; the model if it has none.

    It is the inverse of `store`, to the bit; what a mask hides becomes zero. Nodes and tables go with their last
    reader. Constants inside functions stay.
    """
    found = _stored(model)
    if not found:
        return model
    edited = Edited(model)
    removed = {f.last for f in found}
    for f in found:
        place = model.flat.places[f.last]
        assert place is not None
        if f.masked:
            edited.write(f.masked, f.masked, f.array)
            edited.underive(place, f.masked)
        else:
            edited.hold(place, f.array, f.carrier)
    _clear(model, edited, removed, found)
    return edited.finish()


def stored_weights(model: Model) -> tuple[str, ...]:
    """Name what `unpack` would make dense, in the order of the nodes: the values that other nodes read."""
    return tuple(model.flat.nodes[f.last].output[0] for f in _stored(model))


def _stored(model: Model) -> list[_Found]:
    finder = _Finder(model)
    return [f for k in range(len(model.flat.nodes)) if (f := finder.find(k)) is not None]


@dataclass(frozen=True)
class _Found:
    """An encoded weight: the flat node that gives it, what it holds, all nodes and tensors behind it.

    `carrier` is the tensor that carries the weight's doc string and metadata; `masked` names the one that a mask hides
    a part of, which stays and is written.
    """

    last: int
    array: Array
    carrier: onnx.TensorProto
    nodes: frozenset[int] = frozenset()
    tensors: frozenset[str] = frozenset()
    masked: str = ""


class _OtherError(Exception):
    """The nodes are not those that stand for a stored weight."""


class _Finder:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.nodes = model.flat.nodes
        self.producer = {o: k for k, node in enumerate(self.nodes) for o in node.output if o}
        self.readers = Counter(n for node in self.nodes for n in node.input)
        self.readers.update(o.name for o in model.skeleton.graph.output)
        self.seen_nodes: set[int] = set()
        self.seen_tensors: set[str] = set()
        self.lines: dict[tuple[str, str, int], Array] = {}

    def find(self, k: int) -> _Found | None:
        """Give the stored weight that flat node `k` gives, None if it is no last node of one."""
        node, place = self.nodes[k], self.model.flat.places[k]
        if place is None or place[0] in self.model.flat.function_bodies or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Constant":
            return next((_sparse(k, a.sparse_tensor) for a in node.attribute if a.name == "sparse_value"), None)
        if node.op_type not in ("Reshape", "Where", "Cast"):
            return None
        self.seen_nodes, self.seen_tensors = set(), set()
        name = ""
        try:
            if node.op_type == "Reshape":
                array, carrier = self._packed(node.output[0])
            else:
                array, name = self._masked(node.output[0])
                carrier = self.model.tensors[name]
        except _OtherError:
            return None
        return _Found(k, array, carrier, frozenset(self.seen_nodes), frozenset(self.seen_tensors), name)

    def _masked(self, output: str) -> tuple[Array, str]:
        """Give what is left of a weight that has a mask, and the weight's name; see `masked`."""
        is_wide = self._op(output) == "Cast"
        masked = self._inputs(output, "Cast", 1)[0] if is_wide else output
        mask, name, filler = self._inputs(masked, "Where", 3)
        if is_wide:
            name = self._inputs(name, "Cast", 1)[0]
        keep, fill = self._array(mask), self._array(filler)
        _demand(name in self.model.tensors and self.readers[name] == 1)
        array, place = self.model.array(name), self.model.flat.tensor_places[name]
        last = self.model.flat.places[self.producer[output]]
        _demand(last is not None and last[0] == place[0])
        wide = helper.np_dtype_to_tensor_dtype(fill.dtype)
        _demand(MASKABLE.get(helper.np_dtype_to_tensor_dtype(array.dtype)) == wide)
        _demand(keep.dtype == np.bool_ and keep.shape == array.shape and self.readers[output] > 0)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        _demand(not is_wide or _attributes(self.nodes[self.producer[output]]).get("to") == kind)
        _demand(fill.ndim <= array.ndim)
        _demand(all(n in (1, d) for n, d in zip(fill.shape[::-1], array.shape[::-1], strict=False)))
        return np.where(keep, array, fill.astype(array.dtype)), name

    def _packed(self, name: str) -> tuple[Array, onnx.TensorProto]:
        """Follow the decoder back from its output, as `packed` draws it."""
        made, shape = self._inputs(name, "Reshape", 2)
        _demand(bool((self._array(shape) >= 0).all()))
        part = None
        if self._op(made) == "Split":
            made, part = self._part(made)
        size = None
        if self._op(made) == "Slice":
            made, first, end = self._inputs(made, "Slice", 3)
            _demand(self._array(first).tolist() == [0] and self._array(end).shape == (1,))
            size = int(self._array(end)[0])
        if self._op(made) == "Reshape":
            made, minus_one = self._inputs(made, "Reshape", 2)
            _demand(self._array(minus_one).tolist() == [-1])
        values, index = self._inputs(made, "Gather", 2)
        is_kept, place, zero = self._inputs(index, "Where", 3)
        start, rank = self._inputs(place, "Add", 2)
        before, column = self._inputs(start, "Reshape", 2)
        counts, axis = self._inputs(before, "CumSum", 2)
        _demand(_attributes(self.nodes[self.producer[before]]) == {"exclusive": 1})
        _demand(self._array(zero).tolist() == 0 and self._array(axis).tolist() == 0)
        _demand(self._array(column).tolist() == [-1, 1])
        codes = set()
        for looked_up, table in ((is_kept, RANK_TABLE), (rank, RANK_TABLE), (counts, COUNT_TABLE)):
            rows, code = self._inputs(looked_up, "Gather", 2)
            _demand(np.array_equal(self._array(self._inputs(rows, "Cast", 1)[0]), table))
            codes.add(code)
        _demand(len(codes) == 1)
        mask = self._inputs(codes.pop(), "Cast", 1)[0]
        size = 8 * self._array(mask).size if size is None else size
        line = self._line(mask, values, size)[part or slice(None)]
        _demand(line.size == int(np.prod(self._array(shape))))
        return line.reshape(self._array(shape)), self.model.tensors[values]

    def _line(self, mask: str, values: str, size: int) -> Array:
        """Put the elements together; tensors of a group share them."""
        if (mask, values, size) not in self.lines:
            bits, held = self._array(mask), self._array(values)
            _demand(bits.dtype == np.uint8 and bits.ndim == held.ndim == 1 and 0 <= size <= 8 * bits.size)
            _demand(np.unpackbits(bits, count=size, bitorder="little").sum() == held.size - 1)
            self.lines[mask, values, size] = put_together(Pieces((size,), bits, held))
        self.seen_tensors |= {mask, values}
        return self.lines[mask, values, size]

    def _part(self, name: str) -> tuple[str, slice]:
        """Give what a Split takes apart, and which part of it is called `name`."""
        source, *sizes = self._inputs(name, "Split")
        node = self.nodes[self.producer[name]]
        lengths = self._array(sizes[0]).tolist() if sizes else _attributes(node).get("split")
        _demand(isinstance(lengths, list) and _attributes(node).get("axis", 0) == 0)
        assert isinstance(lengths, list)
        k = list(node.output).index(name)
        return source, slice(sum(lengths[:k]), sum(lengths[: k + 1]))

    def _op(self, name: str) -> str:
        k = self.producer.get(name)
        return self.nodes[k].op_type if k is not None else ""

    def _inputs(self, name: str, op: str, count: int | None = None) -> list[str]:
        """Give the inputs of the node that makes a value: one of `op`, with `count` of them."""
        k = self.producer.get(name)
        _demand(k is not None and self.nodes[k].op_type == op)
        assert k is not None
        _demand(count in (None, len(self.nodes[k].input)))
        self.seen_nodes.add(k)
        return list(self.nodes[k].input)

    def _array(self, name: str) -> Array:
        _demand(name in self.model.tensors)
        self.seen_tensors.add(name)
        return self.model.array(name)


def _demand(condition: bool) -> None:
    if not condition:
        raise _OtherError


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.i or a.name != "reverse"}


def _sparse(k: int, value: onnx.SparseTensorProto) -> _Found:
    """Read a sparse constant; positions are row-major, or one row of indices per element."""
    shape = tuple(value.dims)
    kept, where = numpy_helper.to_array(value.values), numpy_helper.to_array(value.indices)
    array = np.zeros(shape, kept.dtype)
    if where.ndim == 2:
        where = np.ravel_multi_index(tuple(where.T), shape)
    array.reshape(-1)[where] = kept
    return _Found(k, array, value.values)


def _clear(model: Model, edited: Edited, removed: set[int], found: list[_Found]) -> None:
    """Take out the nodes and tensors of decoders that nothing else reads."""
    flat = model.flat
    kept_names = {o.name for o in model.skeleton.graph.output} | flat.captured
    waiting = set[int]().union(*(f.nodes for f in found)) - removed
    tensors = set[str]().union(*(f.tensors for f in found))
    while True:
        read = kept_names | {n for k, node in enumerate(flat.nodes) if k not in removed for n in node.input}
        unread = {k for k in waiting if not read & set(flat.nodes[k].output)}
        if not unread:
            break
        removed |= unread
        waiting -= unread
    first = {f.last for f in found}
    for k in sorted(removed - first):
        place = flat.places[k]
        assert place is not None
        edited.remove(place)
    for name in sorted(tensors - read):
        edited.drop(name)
