"""Operators that onnxruntime's optimizers fuse: a layer with its bias, activation or residual in one node."""

from __future__ import annotations

from ..axes.collect import op_rule
from ..axes.op import Op, Unruly, Value
from ..axes.relations import Axis
from .contraction import linear, product
from .convolution import convolve
from .elementwise import unary_keeping_zero
from .indexing import pad
from .shapes import triangle

MS = "com.microsoft"
ZERO_AT_ZERO = frozenset(("", "Relu", "LeakyRelu", "Tanh", "Elu", "Selu", "Softsign", "ThresholdedRelu", "HardSwish"))

op_rule("Gelu", "QuickGelu", domain=MS)(unary_keeping_zero)
op_rule("Trilu", domain=MS)(triangle)
op_rule("Pad", domain=MS)(pad)


@op_rule("FusedConv", domain=MS)
def fused_conv(op: Op) -> None:
    """x: (n, g*i, ...)  w: (g*o, i, ...)  b: (g*o)  z, y: (n, g*o, ...).

    As Conv; the residual z is tied to y. An activation follows.
    """
    convolve(op)
    if op.given(3):
        op.broadcast(slots=[3])
    if _keeps_zero(op):
        op.zeros("all", *(s for s in (1, 2, 3) if op.given(s)))


@op_rule("FusedGemm", domain=MS)
def fused_gemm(op: Op) -> None:
    """a: (m, k) or transposed  b: (k, n) or transposed  c: broadcast to (m, n)  y: (m, n).

    As Gemm. An activation follows.
    """
    linear(op, 1, 2, keeps_zero=_keeps_zero(op))


def _keeps_zero(op: Op) -> bool:
    """Say whether the activation of a fused node maps zero to zero."""
    name = op.attr("activation", "")
    if name == "Clip":
        low, high = (*op.attr("activation_params", ()), 1.0, -1.0)[:2]
        return bool(low <= 0 <= high)
    return name in ZERO_AT_ZERO


@op_rule("FusedMatMul", domain=MS)
def fused_matmul(op: Op) -> None:
    """a: (..., m, k), transposed, or with m before the batch axes  b: (..., k, n), likewise  y: (..., m, n).

    As MatMul, with the axes put in order first.
    """
    a, b = op.x(0), op.x(1)
    product(op, a, b, _in_order(op, a, "A"), _in_order(op, b, "B"))
    op.zeros("any", 0, 1)


def _in_order(op: Op, operand: Value, which: str) -> list[Axis]:
    """Put an operand's axes in the order of a product: the batch axes, then the two of the matrix."""
    axes = list(operand.axes)
    if len(axes) > 1 and op.attr(f"transBatch{which}", 0):
        axes.insert(len(axes) - 2, axes.pop(0))
    if len(axes) > 1 and op.attr(f"trans{which}", 0):
        axes[-2:] = axes[:-3:-1]
    return axes


@op_rule("GemmFastGelu", domain=MS)
def gemm_fast_gelu(op: Op) -> None:
    """a: (..., m, k)  b: (..., k, n)  bias: (n)  y: (..., m, n).

    As MatMul; the bias runs along n.
    """
    product(op, op.x(0), op.x(1))
    op.parameter(2, op.y()[-1])
    if op.given(2):
        op.zeros("all", 1, 2)
    else:
        op.zeros("any", 0, 1)


@op_rule("FastGelu", "BiasGelu", "BiasAdd", "BiasDropout", domain=MS)
def biased(op: Op) -> None:
    """x: (..., c)  bias: (c)  residual: (..., c)  y: (..., c).

    Tie every axis. Zero where all operands are.
    """
    slots = [s for s in (0, 1, 2) if op.given(s)]
    for k, y in enumerate(op.outputs):
        if y is not None:
            op.broadcast(slots=slots, output=k)
    for axis in op.x(1).axes if op.given(1) and op.x(1).constant else ():
        op.role(axis, "parameter")
    op.zeros("all", *slots)


@op_rule("BiasSplitGelu", domain=MS)
def bias_split_gelu(op: Op) -> None:
    """x: (..., 2*c)  bias: (2*c)  y: (..., c); the second half gates the first.

    Split x's last axis into (2 c); tie c.
    """
    x, y = op.x(), op.y()
    halves, c = op.local(2, y.shape[-1])
    op.ties(x.axes[:-1], y.axes[:-1])
    op.regroup([x[-1]], [halves, c])
    op.freeze(halves, "one half gates the other")
    op.tie(c, y[-1])
    op.parameter(1, x[-1])
    op.zeros("all", 0, 1)


@op_rule("BiasSoftmax", domain=MS)
def bias_softmax(op: Op) -> None:
    """x: (...)  bias: broadcast to x  y: (...); the axes from `axis` on are compared.

    Tie every axis; mixing over those.
    """
    x, bias = op.x(), op.x(1)
    if bias.ndim != x.ndim and bias.shape != x.shape[x.ndim - bias.ndim :]:
        raise Unruly("the bias is stretched over inner axes")
    op.broadcast(slots=[0, 1])
    for axis in x.axes[int(op.attr("axis", 1)) % x.ndim :]:
        op.mix(axis, "BiasSoftmax compares the indices along it")


@op_rule("GroupNorm", "SkipGroupNorm", domain=MS)
def group_norm(op: Op) -> None:
    """x, y: (n, ..., g*c), or with channels second  gamma, beta, bias: (g*c)  skip, sum: as x, or (n, g*c).

    Split channels into (g c); statistics run over c and the spatial axes. Whole groups go exactly.
    """
    x = op.x()
    at = x.ndim - 1 if op.attr("channels_last", 1) else 1
    for k, y in enumerate(op.outputs):
        if y is not None:
            op.broadcast(slots=[0], output=k)
    g = int(op.attr("groups"))
    group, c = op.local(g, x.shape[at] // g)
    op.regroup([x[at]], [group, c])
    for k, axis in enumerate(x.axes):
        if k not in (0, at):
            op.mix(axis, f"{op.node.op} takes statistics over it")
    op.mix(c, f"{op.node.op} takes statistics over it")
    for slot in (1, 2, 4):
        op.parameter(slot, x[at])
    if op.given(3):
        skip = op.x(3)
        pairs = zip(skip.axes, (x[0], x[at]) if skip.ndim == 2 else x.axes, strict=True)
        for a, b in pairs:
            if a.size == b.size:
                op.tie(a, b)
    op.hint(group, "groups")
    op.size("groups", group)
    op.zeros("all", *(s for s in range(5) if op.given(s)) if op.node.op == "SkipGroupNorm" else (1, 2))


@op_rule("NhwcConv", "NhwcFusedConv", domain=MS)
def nhwc_conv(op: Op) -> None:
    """x: (n, ..., g*i)  w: (g*o, ..., i) or (g*o, i, ...)  b: (g*o)  z, y: (n, ..., g*o).

    As Conv, with channels last. The weight's input channels are the axis of their size.
    """
    x, w = op.x(0), op.x(1)
    i = x.shape[-1] // int(op.attr("group", 1))
    places = [k for k in (1, w.ndim - 1) if w.shape[k] == i]
    if len(places) != 1:
        raise Unruly("the weight's layout is not clear from its shape")
    convolve(op, channel=x.ndim - 1, inner=places[0])
    if op.given(3):
        op.broadcast(slots=[3])
    if _keeps_zero(op):
        op.zeros("all", *(s for s in (1, 2, 3) if op.given(s)))
