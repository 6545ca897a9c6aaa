"""Pooling and resampling: channels pass, windows move over the rest."""

from __future__ import annotations

from ..axes.collect import op_rule
from ..axes.op import Op, Unruly
from .convolution import WINDOW


@op_rule("MaxPool", "AveragePool", "LpPool")
def pool(op: Op) -> None:
    """x: (n, c, ...)  y: (n, c, ...).

    Tie n and c. The index output counts through the channels: it freezes them.
    """
    x, y = op.x(), op.y()
    op.otherwise = WINDOW
    op.ties(x.axes[:2], y.axes[:2])
    if len(op.outputs) > 1 and op.outputs[1] is not None:
        op.freeze(x[1], "the indices MaxPool gives count through the channels")
    op.zeros("all", 0)


@op_rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(op: Op) -> None:
    """x: (n, c, ...)  y: (n, c, 1...).

    Tie n and c; the rest is reduced away.
    """
    x, y = op.x(), op.y()
    op.ties(x.axes[:2], y.axes[:2])
    for axis in x.axes[2:]:
        op.mix(axis, f"{op.node.op} reduces it")
    op.zeros("all", 0)


@op_rule("Resize", "Upsample")
def resize(op: Op) -> None:
    """x: (a...)  y: (s*a...).

    Tie axes that keep their size under scale one; windows move over the others.
    """
    x, y = op.x(), op.y()
    op.otherwise = "it is resampled"
    slots = [3] if op.node.op == "Resize" and op.given(3) else []
    for slot in range(1, len(op.inputs)):
        if op.given(slot):
            op.reads_sizes(slot)
            op.plain_integers(slot)
    axes = [int(a) % x.ndim for a in op.attr("axes", range(x.ndim))]
    for k, axis in enumerate(x.axes):
        if axis.size == y.shape[k]:
            op.tie(axis, y[k])
            if k >= 2:
                op.freeze(axis, op.otherwise)
    for slot in slots:
        sizes = op.ints(slot)
        if sizes is None:
            raise Unruly("the sizes of Resize are computed from data")
        for item, k in enumerate(axes):
            op.size(slot, y[k], item=item)
    op.zeros("all", 0)


@op_rule("GridSample", "RoiAlign")
def sample(op: Op) -> None:
    """x: (n, c, ...)  y: (n or rois, c, ...), sampled at places that are computed.

    Tie c, and n where the grid has one per sample; windows move over the rest.
    """
    x, y = op.x(), op.y()
    op.otherwise = "it is sampled"
    op.tie(x[1], y[1])
    if op.node.op == "GridSample":
        op.tie(x[0], y[0])
        op.tie(op.x(1)[0], y[0])
    op.zeros("all", 0)
