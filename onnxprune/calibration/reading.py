"""`read`: which tensors the rows of a node's data come from, and how they are arranged. One entry per operator.

The features of a view are in the order of the weight's logical (output, input, *kernel) layout, groups aside, so that
`weight.reshape(outputs, -1)` and a Gram matrix fit each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from ..errors import OptionError
from ..graph.flatten import Flat
from ..graph.shapes import Shapes
from .statistics import Wanted
from .views import Arranged, Lookups, Patches, Source, States, Steps, View

HIDDEN = "onnxprune/hidden"
RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
_CODES = frozenset((2, 3, 4, 5, 6, 7, 12, 13, 21, 22))
_QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear")


class Unreadable(Exception):  # noqa: N818  an answer about one tensor, not an error of the caller
    """Raised while reading, with the reason why no rows can be given."""


@dataclass(frozen=True)
class Site:
    """A flat node with what a reading needs to know about its surroundings."""

    index: int
    node: onnx.NodeProto
    slot: int
    flat: Flat
    shapes: Shapes

    def attribute(self, name: str, default: Any = None) -> Any:
        """Give an attribute, or the default."""
        found = next((a for a in self.node.attribute if a.name == name), None)
        if found is None:
            return default
        value = onnx.helper.get_attribute_value(found)
        return value.decode() if isinstance(value, bytes) else value

    def name(self, slot: int) -> str:
        """Give the name of an input, "" for one that is left out."""
        return self.node.input[slot] if slot < len(self.node.input) else ""

    def shape(self, slot: int) -> tuple[int, ...]:
        """Give the shape of an input; raises `Unreadable` when it is not known."""
        shape = self.shapes.sizes.get(self.name(slot))
        if shape is None:
            raise Unreadable(f"the shape of {self.name(slot)!r} is unknown")
        return shape

    def source(self, slot: int, scale: int | None = None, zero_point: int | None = None) -> Source:
        """Give the data of an input slot, decoded where the slots of scale and zero point are given.

        Codes without a scale are read before they were quantized, where a quantizer made them.
        """
        name = self.name(slot)
        if scale is not None:
            return Source(name, self.name(scale), self.name(zero_point) if zero_point is not None else "")
        if self.shapes.types.get(name) in _CODES:
            maker = next((n for n in self.flat.nodes if name in n.output), None)
            if maker is None or maker.op_type not in _QUANTIZERS:
                raise Unreadable(f"{name!r} holds integers of unknown scale")
            return Source(maker.input[0])
        return Source(name)


def reads_state(node: onnx.NodeProto, slot: int) -> bool:
    """Say whether an input slot stands for the hidden state of a recurrent layer."""
    return slot == 5 and node.op_type in RECURRENT


Reader = Callable[[Site], View]


def read(wanted: Wanted, node: onnx.NodeProto, flat: Flat, shapes: Shapes) -> View | str:
    """Give the view of what is wanted of `node`, or the reason why there is none.

    Raises `OptionError` when the node has no such input.
    """
    site = Site(wanted.node, node, wanted.slot, flat, shapes)
    if not site.name(wanted.slot) and not reads_state(node, wanted.slot):
        what = f"{node.op_type} {node.name or node.output[0]!r}"
        raise OptionError(f"{what} has no input {wanted.slot}; its inputs are {list(node.input)}")
    if wanted.axis is not None:
        return Arranged(Source(site.name(wanted.slot)), (wanted.axis,))
    reader = _READERS.get((node.op_type, wanted.slot))
    if reader is None:
        return f"input {wanted.slot} of {node.op_type!r} is no data that a weight of it multiplies"
    try:
        return reader(site)
    except Unreadable as reason:
        return str(reason)


# --- products ---


def _product(data: int, weight: int, scale: int | None = None, zero_point: int | None = None) -> Reader:
    """Read an operand of MatMul: (..., m, k) on the left, (..., k, n) on the right; a stack of weights makes groups."""

    def reader(site: Site) -> View:
        which, is_left = ("A", True) if data < weight else ("B", False)
        if site.attribute(f"transBatch{which}", 0) or site.attribute(f"transBatch{'B' if is_left else 'A'}", 0):
            raise Unreadable("the axes of its operands are transposed around the batch")
        transposed = bool(site.attribute(f"trans{which}", 0))
        axis = -1 if is_left != transposed else -2
        stack = site.shape(weight)[:-2]
        places = [k for k, d in enumerate(stack) if d > 1]
        if len(places) > 1:
            raise Unreadable("its weight is stacked along more than one axis")
        groups = tuple(k - len(stack) - 2 for k in places)
        return Arranged(site.source(data, scale, zero_point), (axis,), groups, math.prod(stack))

    return reader


def _matrix(data: int, transpose: str, *, left: bool, scale: int | None = None, zp: int | None = None) -> Reader:
    """Read an operand of Gemm: (m, k) on the left, (k, n) on the right, or transposed."""

    def reader(site: Site) -> View:
        is_last = left != bool(site.attribute(transpose, 0))
        return Arranged(site.source(data, scale, zp), (-1 if is_last else -2,))

    return reader


def _last_axis(scale: int | None = None, zero_point: int | None = None) -> Reader:
    """Read features along the last axis."""
    return lambda site: Arranged(site.source(site.slot, scale, zero_point), (-1,))


def _packed_attention(site: Site) -> View:
    """Read the input of com.microsoft's Attention, whose weight makes q, k and v; the standard one has no weight."""
    if site.node.domain in ("", "ai.onnx"):
        raise Unreadable("the standard Attention has no weight")
    return Arranged(site.source(0), (-1,))


def _einsum(site: Site) -> View:
    """Read an operand of an Einsum of two: contracted letters are features, kept common ones are groups."""
    equation = str(site.attribute("equation")).replace(" ", "")
    left, arrow, output = equation.partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != 2 or "." in equation or any(len(set(t)) != len(t) for t in terms):
        raise Unreadable(f"its equation {equation!r} is none of two operands with distinct letters")
    own, other = terms[site.slot], terms[1 - site.slot]
    contracted = [c for c in other if c in own and c not in output]
    common = [c for c in other if c in own and c in output]
    shape = site.shape(1 - site.slot)
    axes = {c: k - len(own) for k, c in enumerate(own)}
    n_groups = math.prod(shape[other.index(c)] for c in common)
    return Arranged(
        site.source(site.slot), tuple(map(axes.__getitem__, contracted)), tuple(map(axes.__getitem__, common)), n_groups
    )


# --- convolutions ---


def _convolution(weight: int, scale: int | None = None, zero_point: int | None = None) -> Reader:
    def reader(site: Site) -> View:
        last = site.node.op_type.startswith("Nhwc")
        kernel = tuple(site.attribute("kernel_shape", ())) or site.shape(weight)[2:]
        return _patches(site, site.source(0, scale, zero_point), kernel, channels_last=last)

    return reader


def _patches(site: Site, source: Source, kernel: tuple[int, ...], *, channels_last: bool = False) -> Patches:
    rank = len(kernel)
    auto_pad = site.attribute("auto_pad", "NOTSET")
    pads = (0,) * 2 * rank if auto_pad != "NOTSET" else tuple(site.attribute("pads", (0,) * 2 * rank))
    return Patches(
        source,
        int(site.attribute("group", 1)),
        kernel,
        tuple(site.attribute("strides", (1,) * rank)),
        tuple(site.attribute("dilations", (1,) * rank)),
        pads,
        auto_pad if auto_pad.startswith("SAME") else "",
        channels_last=channels_last,
    )


def _transposed_convolution(site: Site) -> View:
    plain = _patches(site, site.source(0), tuple(site.attribute("kernel_shape", ())) or site.shape(1)[2:])
    rank = len(plain.kernel)
    return Patches(
        plain.source,
        plain.group,
        plain.kernel,
        (1,) * rank,
        plain.dilations,
        plain.pads,
        plain.auto_pad,
        plain.strides,
        tuple(site.attribute("output_shape", ())),
        tuple(site.attribute("output_padding", (0,) * rank)),
    )


# --- recurrent layers and tables ---


def _sequence(site: Site) -> View:
    return Steps(site.source(0), site.name(4), bool(site.attribute("layout", 0)))


def _states(site: Site) -> View:
    output = site.node.output[0] or f"{HIDDEN}/{site.index}"
    batch_first = bool(site.attribute("layout", 0))
    return States(output, site.name(5), site.name(4), batch_first, str(site.attribute("direction", "forward")))


def _lookup(table: int, axis_name: str = "axis") -> Reader:
    """Read indices into the axis of a table."""

    def reader(site: Site) -> View:
        return Lookups(site.name(site.slot), site.shape(table)[int(site.attribute(axis_name, 0))])

    return reader


_READERS: Mapping[tuple[str, int], Reader] = {
    ("MatMul", 0): _product(0, 1),
    ("MatMul", 1): _product(1, 0),
    ("FusedMatMul", 0): _product(0, 1),
    ("FusedMatMul", 1): _product(1, 0),
    ("GemmFastGelu", 0): _product(0, 1),
    ("DynamicQuantizeMatMul", 0): _product(0, 1),
    ("MatMulInteger", 0): _product(0, 1),
    ("MatMulInteger", 1): _product(1, 0),
    ("MatMulIntegerToFloat", 0): _product(0, 1, 2, 4),
    ("QLinearMatMul", 0): _product(0, 3, 1, 2),
    ("QLinearMatMul", 3): _product(3, 0, 4, 5),
    ("Gemm", 0): _matrix(0, "transA", left=True),
    ("Gemm", 1): _matrix(1, "transB", left=False),
    ("FusedGemm", 0): _matrix(0, "transA", left=True),
    ("QGemm", 0): _matrix(0, "transA", left=True, scale=1, zp=2),
    ("MatMulNBits", 0): _last_axis(),
    ("Attention", 0): _packed_attention,
    ("QAttention", 0): _last_axis(3, 6),
    ("Einsum", 0): _einsum,
    ("Einsum", 1): _einsum,
    ("Conv", 0): _convolution(1),
    ("FusedConv", 0): _convolution(1),
    ("NhwcConv", 0): _convolution(1),
    ("NhwcFusedConv", 0): _convolution(1),
    ("ConvInteger", 0): _convolution(1),
    ("QLinearConv", 0): _convolution(3, 1, 2),
    ("ConvTranspose", 0): _transposed_convolution,
    **{(op, slot): r for op in RECURRENT for slot, r in ((0, _sequence), (5, _states))},
    ("Gather", 1): _lookup(0),
    ("GatherBlockQuantized", 1): _lookup(0, "gather_axis"),
    ("EmbedLayerNormalization", 0): _lookup(2),
    ("EmbedLayerNormalization", 1): _lookup(4),
}
