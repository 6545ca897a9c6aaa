"""Operators that move elements without computing: reshape, transpose, split into and join from factors."""

from __future__ import annotations

import math

from ..axes.collect import op_rule
from ..axes.op import Op, Unruly


@op_rule("Transpose")
def transpose(op: Op) -> None:
    """x: (a0, a1, ...)  y: (a_perm0, a_perm1, ...).

    Tie each output axis to the input axis it is.
    """
    x, y = op.x(), op.y()
    perm = op.attr("perm", tuple(reversed(range(x.ndim))))
    op.ties((x[p] for p in perm), y.axes)
    op.zeros("all", 0)


@op_rule("Reshape")
def reshape(op: Op) -> None:
    """x and y enumerate the same elements.

    Regroup all axes; each target integer is the size of its axis, -1 and 0 included.
    """
    x, y = op.x(), op.y()
    if math.prod(x.shape) != math.prod(y.shape):
        raise Unruly(f"it reshapes {list(x.shape)} to {list(y.shape)}: the model does not allow these input shapes")
    op.regroup(x.axes, y.axes)
    if "shape" in op.node.attrs:
        for k, axis in enumerate(y.axes):
            op.size("shape", axis, item=k)
    else:
        _free_shape(op, 1)
        if op.ints(1) is None:
            for axis in y.axes:
                op.freeze(axis, "the target shape is computed from data")
        else:
            for k, axis in enumerate(y.axes):
                op.size(1, axis, item=k)
    op.zeros("all", 0)


def _free_shape(op: Op, slot: int) -> None:
    op.reads_sizes(slot)
    op.plain_integers(slot)


@op_rule("Flatten")
def flatten(op: Op) -> None:
    """x: (a..., b...)  y: (a*, b*), split before `axis`.

    Regroup both halves.
    """
    x, y = op.x(), op.y()
    at = int(op.attr("axis", 1))
    at += x.ndim if at < 0 else 0
    op.regroup(x.axes[:at], [y[0]])
    op.regroup(x.axes[at:], [y[1]])
    op.zeros("all", 0)


@op_rule("Squeeze", "Unsqueeze")
def squeeze(op: Op) -> None:
    """x and y differ in axes of one.

    Tie the others in order.
    """
    if op.given(1):
        _free_shape(op, 1)
    axes = op.axes_argument(1)
    x, y = op.x(), op.y()
    if op.node.op == "Squeeze":
        gone = {a % x.ndim for a in axes} if axes is not None else {k for k, d in enumerate(x.shape) if d == 1}
        op.ties((a for k, a in enumerate(x.axes) if k not in gone), y.axes)
    else:
        new = {a % y.ndim for a in axes or ()}
        op.ties(x.axes, (a for k, a in enumerate(y.axes) if k not in new))
    op.zeros("all", 0)


@op_rule("Expand")
def expand(op: Op) -> None:
    """x: (...)  y: broadcast of x and the target shape.

    Tie the axes x has; an axis stretched from one shrinks on its own. Target integers are sizes.
    """
    y = op.y()
    _free_shape(op, 1)
    op.broadcast(slots=[0])
    op.free(*y.axes)
    target = op.ints(1)
    if target is None:
        raise Unruly("the target shape is computed from data")
    for k in range(len(target)):
        axis = y[k - len(target)]
        if target[k] != 1:
            op.size(1, axis, item=k)
    op.zeros("all", 0)


@op_rule("Tile")
def tile(op: Op) -> None:
    """x: (a, ...)  y: (r*a, ...).

    Regroup a repeated axis into (r a); r shrinks on its own.
    """
    x, y = op.x(), op.y()
    repeats = op.ints(1)
    _free_shape(op, 1)
    if repeats is None:
        raise Unruly("the repeats are computed from data")
    for k, r in enumerate(repeats):
        if r == 1:
            op.tie(x[k], y[k])
        else:
            times, same = op.local(r, x.shape[k])
            op.regroup([times, same], [y[k]])
            op.tie(x[k], same)
            op.size(1, times, item=k)
    op.zeros("all", 0)


@op_rule("DepthToSpace")
def depth_to_space(op: Op) -> None:
    """x: (n, (r s c) | (c r s), h, w)  y: (n, c, h*r, w*s), by mode DCR | CRD.

    Split x's channels, y's height and width; the block stays whole.
    """
    x, y = op.x(), op.y()
    _blocks(op, x, y, int(op.attr("blocksize")), depth_last=op.attr("mode", "DCR") == "DCR")


@op_rule("SpaceToDepth")
def space_to_depth(op: Op) -> None:
    """x: (n, c, h*r, w*s)  y: (n, (r s c), h, w).

    Split y's channels, x's height and width; the block stays whole.
    """
    _blocks(op, op.y(), op.x(), int(op.attr("blocksize")), depth_last=True)


def _blocks(op: Op, deep, wide, size: int, depth_last: bool) -> None:  # type: ignore[no-untyped-def]
    r, s, c = op.local(size, size, wide.shape[1])
    op.tie(deep[0], wide[0])
    op.regroup([deep[1]], [r, s, c] if depth_last else [c, r, s])
    op.tie(c, wide[1])
    op.regroup([deep[2], r], [wide[2]])
    op.regroup([deep[3], s], [wide[3]])
    for block in (r, s):
        op.freeze(block, "the block size is fixed")
    op.zeros("all", 0)
