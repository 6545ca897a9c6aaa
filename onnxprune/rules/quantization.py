"""Quantized operators: scales and zero points run along the axes of what they describe.

An index of a quantized value counts as zero where its codes are at the zero point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..axes.collect import op_rule
from ..axes.op import Op, Unruly, Value
from ..axes.relations import Axis
from .contraction import linear, product
from .convolution import WINDOW, convolve
from .indexing import join
from .recurrent import layer, stack_gates

MS = "com.microsoft"
ONE_BLOCK = "the elements of a block share their scale"


@op_rule("QuantizeLinear", "DequantizeLinear")
@op_rule("QuantizeLinear", "DequantizeLinear", domain=MS)
def quantize(op: Op) -> None:
    """x, y: (a..., k*c, b...)  scale, zero point: one number, (c) along `axis`, or (a..., k, b...) in blocks of c.

    Tie every axis. Vectors run along `axis`; of a blocked axis whole blocks go.
    """
    x, y = op.x(), op.y()
    op.ties(x.axes, y.axes)
    at = int(op.attr("axis", 1))
    at = min(at, x.ndim - 1) if at >= 0 else at % x.ndim
    for slot in (1, 2):
        if op.given(slot):
            _parameters(op, slot, x, at)
    if op.node.op == "DequantizeLinear":
        _codes(op, 0, 1, 2, at)
    op.zeros("all", 0)


def _parameters(op: Op, slot: int, x: Value, at: int) -> None:
    """Describe scales or zero points of x: a vector along axis `at`, or blocks of it."""
    value = op.x(slot)
    if math.prod(value.shape) == 1 or value.ndim == 1:
        op.parameter(slot, x[at])
        return
    if value.ndim != x.ndim:
        raise Unruly(f"{value} does not fit {x}")
    for k, (a, b) in enumerate(zip(value.axes, x.axes, strict=True)):
        op.role(a, "parameter")
        if a.size == b.size:
            op.tie(a, b)
        elif k != at:
            raise Unruly(f"{value} does not fit {x}")
        elif x.constant:
            _blocks(op, b, a, int(op.attr("block_size", 0)))
        else:
            for axis in (a, b):
                op.freeze(axis, "computed values are quantized in blocks along it")


def _blocks(op: Op, axis: Axis, blocks: Axis, size: int) -> None:
    """Divide an axis into whole blocks of elements that share a scale; a shorter last block keeps it whole."""
    if blocks.size == 1:
        op.free(axis, blocks)
    elif blocks.size * size == axis.size:
        (within,) = op.local(size)
        op.regroup([axis], [blocks, within])
        op.freeze(within, ONE_BLOCK)
    else:
        for a in (axis, blocks):
            op.freeze(a, "its last block is shorter than the others")


def _codes(op: Op, slot: int, scale: int | None, zero_point: int | None, at: int) -> None:
    """State how the codes in an input are read: numbers, vectors along axis `at`, or parameters of the same rank."""
    x = op.x(slot)
    shapes = [op.x(s).shape for s in (scale, zero_point) if s is not None and op.given(s)]
    vector = next((s for s in shapes if len(s) and max(s) > 1), ())
    spread: Sequence[int] | None = None
    if len(vector) == 1:
        spread = [vector[0] if k == at % x.ndim else 1 for k in range(x.ndim)]
    elif vector:
        spread = vector
    op.codes(slot, scale, zero_point, spread)


@op_rule("DynamicQuantizeLinear")
def dynamic_quantize(op: Op) -> None:
    """x, y: (...)  scale, zero point: one number each, from the range of x.

    Tie every axis. The range takes in zero: leaving out zeros does not change it, anything else may.
    """
    op.ties(op.x().axes, op.y().axes)
    _ranges(op, op.x())
    op.zeros("all", 0)


def _ranges(op: Op, x: Value) -> None:
    """State that the largest and smallest element of x are taken, and zero."""
    for axis in x.axes:
        op.contract(axis)


# --- products and convolutions ---


@op_rule("QLinearConv")
def qlinear_conv(op: Op) -> None:
    """x: (n, g*i, ...)  w: (g*o, i, ...)  w's scale, w's zero point, b: (g*o)  y: (n, g*o, ...).

    As Conv. The scales of x and y are numbers.
    """
    convolve(op, weight=3, bias=8)
    for slot in (4, 5):
        op.parameter(slot, op.x(3)[0])
    _codes(op, 3, 4, 5, 0)
    op.zeros("all", 3, *([8] if op.given(8) else []))


@op_rule("ConvInteger")
def conv_integer(op: Op) -> None:
    """x: (n, g*i, ...)  w: (g*o, i, ...)  w's zero point: (g*o)  y: (n, g*o, ...).

    As Conv.
    """
    convolve(op, weight=1, bias=3)
    _codes(op, 1, None, 3, 0)
    op.zeros("all", 1)


@op_rule("QLinearMatMul")
def qlinear_matmul(op: Op) -> None:
    """a: (..., m, k)  b: (..., k, n)  a's scale, zero point: (m)  b's scale, zero point: (n)  y: (..., m, n).

    As MatMul.
    """
    _quantized_product(op, (0, 1, 2), (3, 4, 5))
    op.zeros("any", 0, 3)


@op_rule("MatMulInteger")
def matmul_integer(op: Op) -> None:
    """a: (..., m, k)  b: (..., k, n)  a's zero point: (m)  b's zero point: (n)  y: (..., m, n).

    As MatMul.
    """
    _quantized_product(op, (0, None, 2), (1, None, 3))
    op.zeros("any", 0, 1)


@op_rule("MatMulIntegerToFloat", domain=MS)
def matmul_integer_to_float(op: Op) -> None:
    """a: (..., m, k)  b: (..., k, n)  a's scale, zero point: (m)  b's scale, zero point, bias: (n)  y: (..., m, n).

    As MatMul; the bias runs along n.
    """
    _quantized_product(op, (0, 2, 4), (1, 3, 5))
    _add_bias(op, 1, 6)


@op_rule("DynamicQuantizeMatMul", domain=MS)
def dynamic_quantize_matmul(op: Op) -> None:
    """a: (..., m, k)  b: (..., k, n)  b's scale, zero point, bias: (n)  y: (..., m, n).

    As MatMul. a is quantized by its range.
    """
    _quantized_product(op, (0, None, None), (1, 2, 3))
    _ranges(op, op.x(0))
    _add_bias(op, 1, 4)


def _quantized_product(op: Op, a: tuple[int, int | None, int | None], b: tuple[int, int | None, int | None]) -> None:
    """Describe a product of operands given as (codes, scale, zero point): rows of a and columns of b have their own."""
    for (codes, scale, zero_point), at in ((a, -2), (b, -1)):
        operand = op.x(codes)
        for slot in (scale, zero_point):
            if slot is None or not op.given(slot):
                continue
            value = op.x(slot)
            if value.ndim < 2:
                op.parameter(slot, operand[max(at, -operand.ndim)])
                continue
            for s, t in zip(reversed(value.axes), reversed(operand.axes), strict=False):
                if s.size == t.size:
                    op.tie(s, t)
                    op.role(s, "parameter")
        _codes(op, codes, scale, zero_point, max(at, -operand.ndim))
    product(op, op.x(a[0]), op.x(b[0]))


def _add_bias(op: Op, weight: int, bias: int) -> None:
    """Add a vector along the last axis; zero where the weight and the bias are."""
    op.parameter(bias, op.y()[-1])
    if op.given(bias):
        op.zeros("all", weight, bias)
    else:
        op.zeros("any", 0, weight)


@op_rule("QGemm", domain=MS)
def qgemm(op: Op) -> None:
    """a: (m, k) or transposed  b: (k, n) or transposed  b's scale, zero point: (n)  c: broadcast to (m, n)  y: (m, n).

    As Gemm.
    """
    n = linear(op, 3, 6)
    for slot in (4, 5):
        op.parameter(slot, n)
    _codes(op, 3, 4, 5, 0 if op.attr("transB", 0) else 1)


# --- weights in blocks of few bits ---


@op_rule("MatMulNBits", domain=MS)
def matmul_nbits(op: Op) -> None:
    """a: (..., k*c)  b: (n, k, bytes of c)  scales: (n*k) or (n, k)  zero points: as scales, or packed  y: (..., n).

    Contract k; rows n are free, and whole blocks of c columns go, as many at a time as share a byte of zero points.
    """
    a, b, y = op.x(0), op.x(1), op.y()
    bits, block = int(op.attr("bits", 4)), int(op.attr("block_size"))
    n, k = b[0], b[1]
    op.otherwise = "codes are packed along it"
    op.ties(a.axes[:-1], y.axes[:-1])
    op.tie(n, y[-1])
    _blocks(op, a[-1], k, block)
    op.contract(k)
    for slot in (2, 3):
        if op.given(slot):
            packed = slot == 3 and op.x(slot).shape not in (b.shape[:2], (n.size * k.size,))
            _block_parameters(op, op.x(slot), n, k, 8 // bits if packed else 1)
    if op.given(4):
        op.freeze(a[-1], "a list names the block of every index")
    op.parameter(5, n)
    op.role(n, "output")
    op.role(k, "input")
    op.hint(n, "features")
    op.size("N", y[-1])
    op.size("K", a[-1])
    op.codes(1, 2, 3, (n.size, k.size, 1), bits, 1 << (bits - 1))
    op.zeros("all", 1, *([5] if op.given(5) else []))
    op.macs(*a.axes, n)


def _block_parameters(op: Op, value: Value, n: Axis, k: Axis, per_byte: int) -> None:
    """Tie parameters of blocks, (n, k) or flat, to rows and blocks; `per_byte` blocks have theirs in one byte."""
    (bytes_,) = (k,) if per_byte == 1 else op.local(-(-k.size // per_byte))
    if bytes_.size * per_byte == k.size:
        if per_byte > 1:
            (within,) = op.local(per_byte)
            op.regroup([k], [bytes_, within])
            op.freeze(within, "their zero points lie in one byte")
    else:
        for axis in (k, bytes_):
            op.freeze(axis, "zero points are packed along it")
    op.regroup(value.axes, [n, bytes_])
    for axis in value.axes:
        op.role(axis, "parameter")


@op_rule("GatherBlockQuantized", domain=MS)
def gather_block_quantized(op: Op) -> None:
    """table: (v, ..., k*c)  i: (j...)  scales, zero points: (v, ..., k)  y: (j..., ..., k*c).

    Tie j and what lies behind v; v is a vocabulary. Of the quantized axis whole blocks go.
    """
    x, index, scales, y = op.x(0), op.x(1), op.x(2), op.y()
    at, q = int(op.attr("gather_axis", 0)) % x.ndim, int(op.attr("quantize_axis", 1)) % x.ndim
    op.freeze(x[at], "it is a table's vocabulary")
    op.ties(index.axes, y.axes[at : at + index.ndim])
    behind = [*y.axes[:at], None, *y.axes[at + index.ndim :]]
    for slot in (2, 3):
        if op.given(slot) and op.x(slot).shape == scales.shape:
            op.ties(op.x(slot).axes, scales.axes)
        elif op.given(slot):
            op.freeze(scales[q], "zero points are packed along it")
            op.otherwise = "zero points are packed along it"
    for k, (a, s, t) in enumerate(zip(x.axes, scales.axes, behind, strict=True)):
        op.role(s, "parameter")
        if k != q:
            op.tie(a, s)
            if t is not None:
                op.tie(a, t)
        elif t is None:
            op.freeze(s, "it is a table's vocabulary")
        else:
            block = t.size // s.size if t.size % s.size == 0 else 0
            _blocks(op, t, s, block)
            _blocks(op, a, s, block * a.size // t.size)
            op.role(a, "output")
            op.hint(t, "embedding")
    op.zeros("all", 0)


# --- element by element, pools and joins ---


@op_rule("QLinearAdd", "QLinearMul", domain=MS)
def qlinear_binary(op: Op) -> None:
    """a: (...)  b: (...)  y: broadcast of both; scales and zero points are numbers.

    Tie every axis. A sum is zero where both operands are, a product where any is.
    """
    op.broadcast(slots=[0, 3])
    for slot in (0, 3):
        _codes(op, slot, slot + 1, slot + 2, 0)
        if op.x(slot).constant:
            for axis in op.x(slot).axes:
                op.role(axis, "parameter")
    op.zeros("all" if op.node.op == "QLinearAdd" else "any", 0, 3)


@op_rule("QLinearWhere", domain=MS)
def qlinear_where(op: Op) -> None:
    """condition, a, b: (...)  y: broadcast of the three; scales and zero points are numbers.

    Tie every axis. Zero where both branches are.
    """
    op.broadcast(slots=[0, 1, 4])
    op.zeros("all", 1, 4)


@op_rule("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", domain=MS)
def qlinear_unary(op: Op) -> None:
    """x: (...)  y: (...); scales and zero points are numbers.

    Tie every axis; a softmax mixes along its own.
    """
    x = op.x()
    op.broadcast(slots=[0])
    if op.node.op == "QLinearLeakyRelu":
        op.zeros("all", 0)
    elif op.node.op == "QLinearSoftmax":
        at = int(op.attr("axis", -1)) % x.ndim
        for axis in x.axes[at:] if int(op.attr("opset", 13)) < 13 else [x[at]]:
            op.mix(axis, "QLinearSoftmax compares the indices along it")


@op_rule("QLinearConcat", domain=MS)
def qlinear_concat(op: Op) -> None:
    """x_i: (..., c_i, ...)  y: (..., sum c_i, ...); scales and zero points are numbers.

    As Concat.
    """
    join(op, range(2, len(op.inputs), 3))


@op_rule("QLinearAveragePool", "QLinearGlobalAveragePool", "NhwcMaxPool", domain=MS)
def qlinear_pool(op: Op) -> None:
    """x: (n, c, ...)  y: (n, c, ...), or with c last; scales and zero points are numbers.

    Tie n and c; windows move over the rest.
    """
    x, y = op.x(), op.y()
    last = op.node.op == "NhwcMaxPool" or op.attr("channels_last", 0)
    op.otherwise = WINDOW
    op.tie(x[0], y[0])
    op.tie(x[-1 if last else 1], y[-1 if last else 1])
    op.zeros("all", 0)


# --- recurrent ---


@op_rule("DynamicQuantizeLSTM", domain=MS)
def dynamic_quantize_lstm(op: Op) -> None:
    """x: (t, n, i)  w: (d, i, 4*h)  r: (d, h, 4*h)  scales, zero points: (d) or (d, 4*h)  y: (t, d, n, h).

    As LSTM, with the gates on the last axis of the weights. x and the hidden state are quantized by their ranges.
    onnxruntime takes the hidden state's range over the rows that share a thread, and shares rows out by the hidden
    size: with several threads and rows, a narrower layer rounds in other places.
    """
    hidden = layer(op, 4, rows=2, columns=1)
    for slot in range(8, 12):
        if op.given(slot) and op.x(slot).ndim == 2:
            stack_gates(op, op.x(slot)[1], [4], hidden)
            op.role(op.x(slot)[1], "parameter")
    for slot in (1, 2):
        scale = op.x(8 if slot == 1 else 10)
        op.codes(slot, 8 if slot == 1 else 10, 9 if slot == 1 else 11, (scale.shape[0], 1, *(scale.shape[1:] or (1,))))
    _ranges(op, op.x(0))
    for y in op.outputs[:2]:
        if y is not None:
            op.contract(y[-1])
