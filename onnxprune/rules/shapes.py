"""Operators that read or make shapes: the sizes they carry are followed apart from the axes."""

from __future__ import annotations

import numpy as np

from ..axes.collect import op_rule
from ..axes.op import Op, Unruly


@op_rule("Shape", "Size")
def shape(op: Op) -> None:
    """x: (...)  y: the sizes of x.

    Every axis of x may shrink: what the numbers are used for decides, where they are used.
    """
    op.free(*op.x().axes)
    op.otherwise = "it lists sizes, one per axis"


@op_rule("ConstantOfShape")
def constant_of_shape(op: Op) -> None:
    """s: sizes  y: (...), filled with one number.

    Every axis of y shrinks on its own; the integers are sizes. Zero everywhere when filled with zero.
    """
    fill = op.attr("value")
    if fill is None or not np.asarray(fill.values).any():
        op.zeros("always")
    op.plain_integers(0)
    op.reads_sizes(0)
    sizes = op.ints(0)
    if sizes is None:
        raise Unruly("its shape is computed from data")
    for k, axis in enumerate(op.y().axes):
        op.free(axis)
        op.size(0, axis, item=k)


@op_rule("Trilu")
def triangle(op: Op) -> None:
    """x, y: (..., n, m); one triangle of each matrix is set to zero.

    Tie the leading axes; n and m are compared with each other and stay.
    """
    x, y = op.x(), op.y()
    op.otherwise = "a triangle is taken over it"
    op.ties(x.axes[:-2], y.axes[:-2])
    op.zeros("all", 0)


@op_rule("Range", "EyeLike", "NonZero")
def made_whole(op: Op) -> None:
    """y is made from sizes or data as a whole.

    Nothing may go.
    """
    op.otherwise = f"{op.node.op} makes it as a whole"
