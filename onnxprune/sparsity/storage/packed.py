"""Packed: the kept elements and one bit per element, put together again by standard operators when the model loads.

For every byte of the mask, tables of 256 rows say how many elements it keeps and which of them each bit is:

    code  = Cast(mask)                                            (b,)      mask bytes as indices
    start = CumSum(Gather(count, code), exclusive)                (b, 1)    elements kept before this byte
    index = Where(Gather(kept, code), start + Gather(rank, code), 0)   (b, 8)
    W     = Reshape(Gather(values, index), shape)                           values[0] is the filler

Every input is constant and every operator has an output of known shape, so onnxruntime folds the whole into one
initializer before it looks for fusions (NonZero with ScatterElements would be shorter, but is not folded). Loading
takes about 35 ns and up to 24 bytes of scratch memory per element. CumSum asks for opset 11, nothing for a later one.

Tensors of the main graph below `GROUPED_BELOW` elements are packed end to end, and Split after decoding: ten nodes of
their own could take more than their zeros do.

A fixed number of kept elements per group (N:M) would allow smaller masks, 216 combinations of three 2:4 groups in one
byte: 0.67 instead of 1 bit per element, which is 2 % of a float32 file. It is not worth a second decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...rewrite.edited import Edited
from .bits import Array, take_apart
from .form import Form, tensor

FIRST_OPSET = 11
FIRST_OPSET_BFLOAT16 = 13
FIRST_OPSET_SPLIT_INPUT = 13
GROUPED_BELOW = 65536
_MAX_ELEMENTS = 2**31 - 1  # indices are int32: int64 would take twice the scratch memory
_KINDS = (
    "FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT16", "UINT16",
    "INT32", "UINT32", "INT64", "UINT64", "BOOL",
)  # fmt: skip
PACKABLE = frozenset(TensorProto.DataType.Value(name) for name in _KINDS)

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
COUNT_TABLE: Array = _BITS.sum(axis=1).astype(np.uint8)
RANK_TABLE: Array = (np.cumsum(_BITS, axis=1) * _BITS).astype(np.uint8)
"""(256,) and (256, 8), uint8: elements a byte keeps; which of them, from 1, every bit is, 0 for one not kept."""


def why_not(kind: int, shape: tuple[int, ...], opset: int) -> str:
    """Say why a tensor of this data type and shape cannot be packed, or "" if it can."""
    if kind not in PACKABLE:
        return f"onnxruntime's Gather does not take {TensorProto.DataType.Name(kind)}"
    needed = FIRST_OPSET_BFLOAT16 if kind == TensorProto.BFLOAT16 else FIRST_OPSET
    if opset < needed:
        return f"decoding needs opset {needed} and the model has {opset}"
    size = int(np.prod(shape, dtype=np.int64))
    if not size or size > _MAX_ELEMENTS:
        return "it has no elements" if not size else "it has more elements than 32-bit indices reach"
    return ""


class Packer:
    """Forms for the tensors of one model, which share the tables."""

    def __init__(self, edited: Edited, opset: int) -> None:
        self._edited = edited
        self._opset = opset
        self._names = {
            key: edited.fresh(f"unpack.{key}")
            for key in ("counts", "ranks", "count", "rank", "kept", "0", "column", "line", "first")
        }
        self._n_packed = 0

    def shared(self, forms: Iterable[Form]) -> Form:
        """Give what these forms read in common, for the main graph."""
        n = self._names
        nodes = (
            helper.make_node("Cast", [n["counts"]], [n["count"]], to=TensorProto.INT32),
            helper.make_node("Cast", [n["ranks"]], [n["rank"]], to=TensorProto.INT32),
            helper.make_node("Cast", [n["ranks"]], [n["kept"]], to=TensorProto.BOOL),
        )
        tensors = [
            tensor(n["counts"], COUNT_TABLE),
            tensor(n["ranks"], RANK_TABLE),
            tensor(n["0"], np.array(0, np.int32)),
            tensor(n["column"], np.array([-1, 1], np.int64)),
        ]
        read = {name for form in forms for node in form.nodes for name in node.input}
        tensors += [
            tensor(n[key], np.array([k], np.int64)) for key, k in (("line", -1), ("first", 0)) if n[key] in read
        ]
        return Form(nodes, tuple(tensors))

    def form(self, name: str, array: Array) -> Form:
        """Pack the new content of the tensor `name`."""
        local = self._edited.local(name)
        made = self._decoder(array, local)
        if array.size % 8:
            made = self._cut(made, array.size, local)
        return self._shaped(made, local, array.shape)

    def group(self, contents: Mapping[str, Array]) -> tuple[Form, dict[str, Form]]:
        """Pack the contents of tensors of one data type and filler end to end: what decodes them, and each alone."""
        line = np.concatenate([array.reshape(-1) for array in contents.values()])
        near = self._edited.fresh(f"unpack.{self._n_packed + 1}")
        made = self._decoder(line, near)
        made = self._cut(made, line.size, near) if line.size % 8 else self._step(made, "Reshape", self._names["line"])
        sizes = np.array([array.size for array in contents.values()], np.int64)
        parts = [self._edited.fresh(f"{near}.{k}") for k in range(len(sizes))]
        tensors = made.tensors
        if self._opset < FIRST_OPSET_SPLIT_INPUT:
            split = helper.make_node("Split", [made.output], parts, split=sizes.tolist())
        else:
            tensors = (*tensors, tensor(self._edited.fresh(f"{near}.sizes"), sizes))
            split = helper.make_node("Split", [made.output, tensors[-1].name], parts)
        # Kept elements are counted for each tensor; the mask takes one bit per element of them all.
        item = line.itemsize
        own = {}
        for part, (name, array) in zip(parts, contents.items(), strict=True):
            kept = (take_apart(array).values.size - 1) * item + -(-array.size // 8)
            own[name] = replace(
                self._shaped(Form((), ()), self._edited.local(name), array.shape, part), data_bytes=kept
            )
        data = sum(form.data_bytes for form in own.values())
        return Form((*made.nodes, split), tensors, data_bytes=-data), own

    def _decoder(self, array: Array, near: str) -> Form:
        """Give the nodes whose last output, (b, 8), has the elements of an array in order."""
        pieces, n, nodes = take_apart(array), self._names, list[onnx.NodeProto]()
        mask, values = self._edited.fresh(f"{near}.bits"), self._edited.fresh(f"{near}.values")
        self._n_packed += 1

        def make(op: str, *inputs: str, **attributes: int) -> str:
            made = self._edited.fresh(f"unpack.{self._n_packed}.{len(nodes)}")
            node = helper.make_node(op, inputs, [made])
            node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
            nodes.append(node)
            return made

        code = make("Cast", mask, to=TensorProto.INT32)
        before = make("CumSum", make("Gather", n["count"], code), n["0"], exclusive=1)
        start = make("Reshape", before, n["column"])
        index = make("Add", start, make("Gather", n["rank"], code))
        index = make("Where", make("Gather", n["kept"], code), index, n["0"])
        make("Gather", values, index)
        return Form(tuple(nodes), (tensor(values, pieces.values), tensor(mask, pieces.mask)))

    def _cut(self, form: Form, size: int, near: str) -> Form:
        """Put the elements in a line and cut off what fills the last byte."""
        end = tensor(self._edited.fresh(f"{near}.size"), np.array([size], np.int64))
        line = self._step(form, "Reshape", self._names["line"])
        line = self._step(line, "Slice", self._names["first"], end.name)
        return replace(line, tensors=(*form.tensors, end))

    def _step(self, form: Form, op: str, *more: str) -> Form:
        made = self._edited.fresh(f"unpack.{self._n_packed}.{len(form.nodes)}")
        return replace(form, nodes=(*form.nodes, helper.make_node(op, [form.output, *more], [made])))

    def _shaped(self, form: Form, local: str, shape: tuple[int, ...], source: str = "") -> Form:
        sizes = tensor(self._edited.fresh(f"{local}.shape"), np.array(shape, np.int64))
        node = helper.make_node("Reshape", [source or form.output, sizes.name], [local])
        return replace(form, nodes=(*form.nodes, node), tensors=(*form.tensors, sizes))
