"""Convolutions: channels in, channels out, and the groups both are divided into."""

from __future__ import annotations

from ..axes.collect import op_rule
from ..axes.op import Op

WINDOW = "a window moves over it"


@op_rule("Conv")
def conv(op: Op) -> None:
    """x: (n, g*i, ...)  w: (g*o, i, ...)  b: (g*o)  y: (n, g*o, ...).

    Tie n; split x's channels into (g i) and y's into (g o); contract i.
    """
    convolve(op)
    op.zeros("all", 1, *([2] if op.given(2) else []))


def convolve(op: Op, weight: int = 1, bias: int = 2, channel: int = 1, inner: int = 1) -> None:
    """Describe a convolution of input 0 with the weight and bias in these slots.

    `channel` is the channel axis of x and y, `inner` the weight's axis of input channels. Zeros are left to the caller.
    """
    x, w, y = op.x(0), op.x(weight), op.y()
    g = int(op.attr("group", 1))
    op.otherwise = WINDOW
    op.tie(x[0], y[0])
    if g == 1:
        op.contract(x[channel], w[inner])
    else:
        group, i, o = op.local(g, w.shape[inner], w.shape[0] // g)
        op.regroup([x[channel]], [group, i])
        op.regroup([w[0]], [group, o])
        op.contract(i, w[inner])
        op.size("group", group)
        if i.size > 1 or o.size > 1:
            op.hint(group, "groups")
    op.tie(w[0], y[channel])
    op.role(w[inner], "input")
    op.role(w[0], "output")
    op.hint(y[channel], "channels")
    op.parameter(bias, y[channel])
    op.macs(*y.axes, *w.axes[1:])


@op_rule("ConvTranspose")
def conv_transpose(op: Op) -> None:
    """x: (n, g*i, ...)  w: (g*i, o, ...)  b: (g*o)  y: (n, g*o, ...).

    Tie n; contract x's channels with w's rows; y's channels are (g o).
    """
    x, w, y = op.x(0), op.x(1), op.y()
    g = int(op.attr("group", 1))
    op.otherwise = WINDOW
    op.tie(x[0], y[0])
    op.contract(x[1], w[0])
    op.role(w[0], "input")
    if g == 1:
        op.tie(w[1], y[1])
    else:
        group, i, o = op.local(g, w.shape[0] // g, w.shape[1])
        op.regroup([w[0]], [group, i])
        op.regroup([y[1]], [group, o])
        op.tie(o, w[1])
        op.size("group", group)
        if i.size > 1 or o.size > 1:
            op.hint(group, "groups")
        if w.shape[1] == 1:
            op.role(w[0], "output")
    op.role(w[1], "output")
    op.hint(y[1], "channels")
    op.parameter(2, y[1])
    op.zeros("all", 1, *([2] if op.given(2) else []))
    op.macs(*x.axes, *w.axes[1:])
