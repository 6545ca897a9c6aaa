"""Every weight of a model that can be sparsified, as matrices (output, input, *kernel) whatever the stored layout.

A weight is found from the operator that multiplies with it: its slot is followed back, through nodes that only store
or rearrange it, to the tensor that holds it. Shapes of activations are not needed, and neither is any analysis.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..graph.model import Model
from .codes import Codes
from .layout import Layout
from .slots import EMBEDDING, PACKED, SLOTS, Slot

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

_INTEGERS = frozenset(
    getattr(TensorProto, name)
    for name in ("INT2", "UINT2", "INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16", "INT32", "INT64")
    if hasattr(TensorProto, name)
)
_NUMBERS = _INTEGERS | {v for n, v in TensorProto.DataType.items() if n.startswith(("FLOAT", "DOUBLE", "BFLOAT16"))}
_SAME = frozenset({"Identity", "Cast", "Dropout", "QuantizeLinear", "DequantizeLinear"})
_PIECES = frozenset({"Split", "Slice", "Concat"})
_THROUGH = _SAME | {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice"}
_SIZES_ONLY = frozenset({"Shape", "Size"})
_TO_OUTPUT = frozenset({
    "Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Softmax", "LogSoftmax", "Sigmoid",
    "Tanh", "Clip", "ArgMax", "QuantizeLinear", "DequantizeLinear",
})  # fmt: skip
_WITH_CONSTANT = frozenset({"Add", "Sub", "Mul", "Div"})


@dataclass(frozen=True)
class Source:
    """A tensor that holds one weight or several: `layout` leads from it to (matrices, output, input, *kernel).

    `codes` explains integers, and is None for floats.
    """

    tensor: str
    layout: Layout
    codes: Codes | None = None

    def values(self, model: Model) -> Array:
        """Give what the tensor stands for as floats of 32 bits or more, arranged as matrices."""
        array = model.array(self.tensor)
        if self.codes is not None:
            array = self.codes.values(model, array)
        elif array.dtype != np.float64:
            array = array.astype(np.float32, copy=False)
        return self.layout.view(array)

    def zero(self, model: Model) -> Array:
        """Give the stored number that stands for 0, broadcastable to the stored shape."""
        array = model.array(self.tensor)
        return np.zeros((), array.dtype) if self.codes is None else self.codes.zero(model, array)


@dataclass(frozen=True)
class Weight:
    """One matrix (output, input, *kernel) to be sparsified.

    `name` is its tensor's; where that holds several matrices (directions, experts) with the matrix's number, as
    `W[1]`. `node` and `op` are the first operator that multiplies with it, `reader` that node's number in the flat
    graph with the slot, and `data` the slot of what it is multiplied with. `makes_output` says that nothing but a bias
    or an activation lies between it and an output of the model.
    """

    name: str
    source: Source
    part: int
    n_parts: int
    shape: Shape
    kind: str
    node: str
    op: str
    reader: tuple[int, int]
    data: int | None
    nodes: tuple[str, ...]
    makes_output: bool = False
    dtype: str = "float32"
    groups: int = 1

    @property
    def tensor(self) -> str:
        """Name of the tensor that holds it."""
        return self.source.tensor

    @property
    def size(self) -> int:
        """Count of elements."""
        return int(np.prod(self.shape))

    def matches(self, globs: Iterable[str]) -> bool:
        """Say whether its name, its tensor's or that of a node that reads it fits one of the globs."""
        names = (self.name, self.tensor, *self.nodes)
        return any(fnmatch.fnmatchcase(name, glob) for glob in globs for name in names)

    def values(self, model: Model) -> Array:
        """Give its numbers as floats of 32 bits or more, in the shape `shape`."""
        values: Array = self.source.values(model)[self.part]
        return values


@dataclass(frozen=True)
class Refused:
    """A tensor that a weight slot reads, but that cannot be sparsified."""

    tensor: str
    node: str
    reason: str

    def matches(self, globs: Iterable[str]) -> bool:
        """Say whether its name or its node's fits one of the globs."""
        return any(fnmatch.fnmatchcase(name, glob) for glob in globs for name in (self.tensor, self.node))


@dataclass(frozen=True)
class Weights:
    """What can be sparsified, in the order the model computes, and what cannot, with reasons."""

    found: tuple[Weight, ...]
    refused: tuple[Refused, ...] = ()

    def names(self) -> list[str]:
        """List every name a glob can match."""
        return sorted({n for w in self.found for n in (w.name, w.tensor, *w.nodes)})


def find_weights(model: Model) -> Weights:
    """Enumerate the weights of a model. Tied weights are listed once, a table that a product reads too as linear."""
    return _Finder(model).run()


@dataclass
class _Use:
    """One way in which a tensor is read as a weight."""

    source: Source
    slot: Slot
    index: int
    node: onnx.NodeProto
    through: tuple[int, ...]


@dataclass
class _Finder:
    model: Model
    uses: dict[str, list[_Use]] = field(default_factory=dict)
    refused: dict[str, Refused] = field(default_factory=dict)

    def __post_init__(self) -> None:
        flat = self.model.flat
        self.nodes = flat.nodes
        self.tensors = flat.tensors
        self.producer = {out: k for k, node in enumerate(flat.nodes) for out in node.output if out}
        self.readers: dict[str, list[int]] = {}
        for k, node in enumerate(flat.nodes):
            for name in node.input:
                self.readers.setdefault(name, []).append(k)
        self.sparse = {t.values.name for t in self.model.skeleton.graph.sparse_initializer}
        self.constants = self._constants()

    def run(self) -> Weights:
        """Look at every node in order."""
        for index, node in enumerate(self.nodes):
            key = _key(node)
            if key in PACKED:
                self._refuse(node.input[PACKED[key]], node, "its codes are packed; sparsify before quantizing to them")
            taken = False
            for slot in SLOTS.get(key, ()):
                given = slot.index < len(node.input) and node.input[slot.index] in self.constants
                # Where either operand can be the weight, only one is: two constants make a constant.
                if given and not (taken and slot.data == 1 and key[1] != "Gather"):
                    taken = True
                    self._use(index, node, slot)
        makers = self._output_makers()
        found: list[tuple[tuple[int, int], list[Weight]]] = []
        for tensor, uses in self.uses.items():
            reason = self._other_use(tensor, uses)
            if reason is not None:
                self._refuse(tensor, uses[0].node, reason)
                continue
            rows = self._weights(tensor, uses, makers)
            found.append((rows[0].reader, rows))
        found.sort(key=lambda row: row[0])
        named = {w.tensor for _, rows in found for w in rows}
        return Weights(
            tuple(w for _, rows in found for w in rows), tuple(r for t, r in self.refused.items() if t not in named)
        )

    def _constants(self) -> set[str]:
        """Collect the values that depend on nothing but constants."""
        known = {*self.tensors, *self.sparse}
        for node in self.nodes:
            if node.op_type == "Constant" or (node.input and all(n in known for n in node.input if n)):
                known.update(o for o in node.output if o)
        return known

    def _refuse(self, tensor: str, node: onnx.NodeProto, reason: str) -> None:
        self.refused.setdefault(tensor, Refused(tensor, label(node), reason))

    def _use(self, index: int, node: onnx.NodeProto, slot: Slot) -> None:
        """Follow a slot back to the tensors it reads: several where they are put together."""
        waiting: list[tuple[str, tuple[int, ...]]] = [(node.input[slot.index], ())]
        while waiting:
            name, through = waiting.pop(0)
            if name in self.tensors:
                self._tensor(name, through, index, node, slot)
                continue
            k = self.producer.get(name)
            if k is not None and self.nodes[k].op_type == "Concat":
                waiting += [(part, (*through, k)) for part in self.nodes[k].input]
            elif k is not None and self._passes(k, name):
                waiting.append((self.nodes[k].input[0], (*through, k)))
            elif slot.kind != EMBEDDING:
                self._refuse(name, node, self._stop(name, k))

    def _tensor(self, name: str, through: tuple[int, ...], index: int, node: onnx.NodeProto, slot: Slot) -> None:
        tensor = self.tensors[name]
        # Tables of integers are looked up for sizes and positions everywhere.
        is_lookup = slot.kind == EMBEDDING and (len(tensor.dims) < 2 or (tensor.data_type in _INTEGERS and not through))
        if is_lookup or tensor.data_type not in _NUMBERS:
            return
        try:
            source = self._source(name, node, slot, through)
        except ValueError as error:
            if slot.kind != EMBEDDING:
                self._refuse(name, node, str(error))
            return
        self.uses.setdefault(name, []).append(_Use(source, slot, index, node, through))

    def _passes(self, k: int, output: str) -> bool:
        node = self.nodes[k]
        if _key(node)[1] not in _THROUGH or _key(node)[0] not in ("", "com.microsoft") or not node.input:
            return False
        return node.op_type == "Split" or list(node.output).index(output) == 0

    def _stop(self, name: str, k: int | None) -> str:
        if name in self.sparse:
            return "it is stored as a sparse tensor; store it dense first"
        if k is None:
            return "nothing is known about where it comes from"
        node = self.nodes[k]
        if node.op_type == "Constant":
            if any(a.name == "sparse_value" for a in node.attribute):
                return "it is stored as a sparse tensor; store it dense first"
            return "it is a constant inside a function, whose calls would all change"
        return f"it is computed by {node.op_type} {label(node)!r}; fold constants first"

    def _source(self, tensor: str, node: onnx.NodeProto, slot: Slot, through: Sequence[int]) -> Source:
        """Follow the way from a tensor to its slot; raises `ValueError` with what stands in it."""
        proto = self.tensors[tensor]
        layout, codes, requantized = Layout(tuple(proto.dims)), None, False
        if 0 in layout.stored:
            raise ValueError("it has no elements")
        partial = False
        for k in reversed(through):
            step = self.nodes[k]
            op = step.op_type
            if partial and op in ("Reshape", "Flatten"):
                raise ValueError(f"it is read in pieces that {op} rearranges")
            if op == "QuantizeLinear":
                requantized = True
            elif op == "DequantizeLinear" and not requantized:
                if partial:
                    raise ValueError("pieces of its codes are read apart")
                codes = self._codes(step, 1, 2, int(attributes_of(step).get("axis", 1)), layout)
            elif op in _PIECES:
                # Axes stay what they are: the whole tensor is arranged as its pieces would be.
                partial = True
            elif op not in _SAME:
                layout = self._moved(layout, step)
        if proto.data_type in _INTEGERS and codes is None:
            if slot.scale is None and slot.zero_point is None:
                raise ValueError("it holds integers without a scale")
            codes = self._codes(node, slot.scale, slot.zero_point, _code_axis(node, slot), layout)
            if codes.scale is None:
                codes = replace(codes, scale=self._later_scale(node))
        arranged = slot.arrange(layout, attributes_of(node))
        if partial and attributes_of(node).get("group", 1) != 1:
            raise ValueError("it is read in pieces by a grouped convolution")
        return Source(tensor, arranged, codes)

    def _codes(self, node: onnx.NodeProto, scale: int | None, zero: int | None, axis: int, layout: Layout) -> Codes:
        names = []
        for slot in (scale, zero):
            name = node.input[slot] if slot is not None and slot < len(node.input) else ""
            if name and name not in self.tensors:
                raise ValueError(f"its scale or zero point {name!r} is computed")
            names.append(name or None)
        return Codes(names[0], names[1], axis, int(attributes_of(node).get("block_size", 0)), layout)

    def _later_scale(self, node: onnx.NodeProto) -> str | None:
        """Find the scale that the sums of an integer product are multiplied with: Cast, then Mul with x's and its own.

        Source: what onnxruntime's quantize_dynamic writes.
        """
        name = node.output[0]
        for _ in range(2):
            readers = [self.nodes[k] for k in self.readers.get(name, ())]
            if len(readers) != 1:
                return None
            (reader,) = readers
            if reader.op_type == "Cast":
                name = reader.output[0]
                continue
            if reader.op_type != "Mul":
                return None
            others = [n for n in reader.input if n != name]
            maker = self.nodes[self.producer[others[0]]] if others and others[0] in self.producer else None
            if maker is not None and maker.op_type == "Mul":
                others = list(maker.input)
            return next((n for n in others if n in self.tensors and np.prod(self.tensors[n].dims) >= 1), None)
        return None

    def _moved(self, layout: Layout, node: onnx.NodeProto) -> Layout:
        """Go on with a node that rearranges; raises `ValueError` for sizes that are not known."""
        given, shape, op = attributes_of(node), layout.shape, node.op_type
        if op == "Transpose":
            return layout.transpose(*given.get("perm", range(len(shape))[::-1]))
        if op == "Flatten":
            axis = int(given.get("axis", 1)) % (len(shape) + 1)
            return layout.reshape(int(np.prod(shape[:axis])), -1)
        sizes = given.get("axes" if "queeze" in op else "shape")
        if sizes is None and len(node.input) > 1 and node.input[1]:
            if node.input[1] not in self.tensors:
                raise ValueError(f"the sizes {node.input[1]!r} that {op} gives it are computed")
            sizes = self.model.array(node.input[1]).ravel().tolist()
        if op == "Reshape":
            if sizes is None:
                raise ValueError("it is reshaped to unknown sizes")
            copies = [k for k, s in enumerate(sizes) if s == 0 and not given.get("allowzero", 0)]
            if copies and copies[-1] >= len(shape):
                raise ValueError(f"it is reshaped to {list(sizes)}, and has {len(shape)} axes")
            return layout.reshape(*(shape[k] if k in copies else s for k, s in enumerate(sizes)))
        if op == "Squeeze":
            gone = {a % max(1, len(shape)) for a in sizes} if sizes else {k for k, s in enumerate(shape) if s == 1}
            return layout.reshape(*(s for k, s in enumerate(shape) if k not in gone))
        added = list(sizes or ())
        rank = len(shape) + len(added)
        new, old = {a % rank for a in added}, iter(shape)
        if len(new) < len(added):
            raise ValueError(f"of the new axes {added} one is given twice")
        return layout.reshape(*(1 if k in new else next(old) for k in range(rank)))

    def _other_use(self, tensor: str, uses: Sequence[_Use]) -> str | None:
        """Say what else reads a tensor, where zeros would mean something else."""
        if tensor in self.model.flat.captured:
            return "a body that stays closed reads it too"
        if any(o.name == tensor for o in self.model.skeleton.graph.output):
            return "it is an output of the model"
        known = {u.index for u in uses} | {k for u in uses for k in u.through}
        for k in self.readers.get(tensor, ()):
            node = self.nodes[k]
            if k not in known and node.op_type not in _SIZES_ONLY:
                return f"{node.op_type} {label(node)!r} reads it too, not as a weight"
        return None

    def _weights(self, tensor: str, uses: Sequence[_Use], makers: set[int]) -> list[Weight]:
        first = next((u for u in uses if u.slot.kind != EMBEDDING), uses[0])
        n_parts, *shape = first.source.layout.shape
        nodes = tuple(dict.fromkeys(label(u.node) for u in uses))
        dtype = TensorProto.DataType.Name(self.tensors[tensor].data_type).lower()
        whole = Weight(
            name=tensor,
            source=first.source,
            part=0,
            n_parts=n_parts,
            shape=tuple(shape),
            kind=first.slot.kind,
            node=label(first.node),
            op=first.node.op_type,
            reader=(first.index, first.slot.index),
            data=first.slot.data,
            nodes=nodes,
            makes_output=any(u.index in makers for u in uses),
            dtype={"float": "float32", "double": "float64"}.get(dtype, dtype),
            groups=int(attributes_of(first.node).get("group", 1)) if first.slot.kind == "convolution" else 1,
        )
        if n_parts == 1:
            return [whole]
        return [replace(whole, name=f"{tensor}[{k}]", part=k) for k in range(n_parts)]

    def _output_makers(self) -> set[int]:
        """Collect the nodes whose product reaches an output through nothing but biases and activations."""
        makers: set[int] = set()
        waiting = [o.name for o in self.model.skeleton.graph.output]
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            k = self.producer.get(name)
            if name in seen or k is None:
                continue
            seen.add(name)
            node = self.nodes[k]
            if _key(node) in SLOTS:
                makers.add(k)
            elif node.op_type in _TO_OUTPUT:
                waiting.append(node.input[0])
            elif node.op_type in _WITH_CONSTANT and any(n in self.constants for n in node.input):
                waiting += [n for n in node.input if n not in self.constants]
        return makers


def label(node: onnx.NodeProto) -> str:
    """Name a node in messages: by its own name, else its first output."""
    return node.name or next((o for o in node.output if o), node.op_type)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Give a node's attributes by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}


def _key(node: onnx.NodeProto) -> tuple[str, str]:
    return ("" if node.domain == "ai.onnx" else node.domain), node.op_type


def _code_axis(node: onnx.NodeProto, slot: Slot) -> int:
    return 0 if attributes_of(node).get("transB") else slot.axis
