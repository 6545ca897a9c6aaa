"""Operators that pick, join and cut: which index of the output is which index of the input."""

from __future__ import annotations

import numpy as np

from ..axes.collect import op_rule
from ..axes.op import Op, Unruly


@op_rule("Concat")
def concat(op: Op) -> None:
    """x_i: (..., c_i, ...)  y: (..., sum c_i, ...).

    Each input is its range of the joined axis; tie the others.
    """
    y = op.y()
    at = int(op.attr("axis", 1)) % y.ndim
    start = 0
    for value in op.inputs:
        if value is None:
            continue
        for k, axis in enumerate(value.axes):
            if k != at:
                op.tie(axis, y[k])
        op.select(y[at], range(start, start + value.shape[at]), value[at])
        start += value.shape[at]
    op.zeros("all", *(k for k, v in enumerate(op.inputs) if v is not None))


@op_rule("Split")
def split(op: Op) -> None:
    """x: (..., sum c_i, ...)  y_i: (..., c_i, ...).

    Each output is its range of the cut axis; tie the others. The split sizes are sizes.
    """
    x = op.x()
    at = int(op.attr("axis", 0)) % x.ndim
    if op.given(1):
        op.plain_integers(1)
        op.reads_sizes(1)
    start = 0
    for k, y in enumerate(op.outputs):
        if y is None:
            raise Unruly("an output of the split is not used")
        for j, axis in enumerate(y.axes):
            if j != at:
                op.tie(x[j], axis)
        op.select(x[at], range(start, start + y.shape[at]), y[at])
        start += y.shape[at]
        if op.given(1):
            op.size(1, y[at], item=k)
        else:
            op.size("split", y[at], item=k)
    op.zeros("all", 0)


@op_rule("Slice")
def slice_(op: Op) -> None:
    """x: (..., a, ...)  y: (..., a[start:end:step], ...).

    A cut axis selects its range; tie the others. Starts and ends count kept indices.
    """
    x, y = op.x(), op.y()
    for slot in range(1, len(op.inputs)):
        if op.given(slot):
            op.reads_sizes(slot)
            op.plain_integers(slot)
    starts, ends = op.axes_argument(1, "starts"), op.axes_argument(2, "ends")
    if starts is None or ends is None:
        raise Unruly("the bounds of the slice are missing")
    axes = op.axes_argument(3) or tuple(range(len(starts)))
    steps = op.fixed_ints(4) if op.given(4) else (1,) * len(starts)
    if steps is None:
        raise Unruly("the steps of the slice are computed")
    cut = {a % x.ndim: (k, s, e, t) for k, (a, s, e, t) in enumerate(zip(axes, starts, ends, steps, strict=True))}
    for j, axis in enumerate(x.axes):
        if j not in cut:
            op.tie(axis, y[j])
            continue
        k, s, e, t = cut[j]
        index = np.arange(axis.size)[slice(s, None if t < 0 and e < -axis.size else e, t)]
        if len(index) != y.shape[j]:
            raise Unruly("the slice does not give the size that shape inference found")
        op.select(axis, index, y[j])
        if len(index) == axis.size and t == 1:
            continue
        if t != 1:
            op.freeze(axis, f"a slice takes every {t}th index")
            op.freeze(y[j], f"a slice takes every {t}th index")
        else:
            op.size("starts" if "starts" in op.node.attrs else 1, axis, item=k, upto=int(index[0]))
            op.size("ends" if "ends" in op.node.attrs else 2, axis, item=k, upto=int(index[-1]) + 1)
    op.zeros("all", 0)


@op_rule("Gather")
def gather(op: Op) -> None:
    """x: (a..., k, b...)  i: (j...)  y: (a..., j..., b...).

    Tie a and b. Constant indices select from k, in the order of j; a table (constant x) and computed indices freeze
    k: it is a vocabulary.
    """
    x, index, y = op.x(0), op.x(1), op.y()
    at = int(op.attr("axis", 0)) % x.ndim
    picked = y.axes[at : at + index.ndim]
    op.ties(x.axes[:at], y.axes[:at])
    op.ties(x.axes[at + 1 :], y.axes[at + index.ndim :])
    where = None if x.constant else op.constant_integers(1)
    if where is None:
        op.freeze(x[at], "indices computed from data pick from it" if not x.constant else "it is a table's vocabulary")
        op.ties(index.axes, picked)
    elif not picked:
        op.freeze(x[at], "a single index of it is taken")
    else:
        (flat,) = op.local(where.size)
        op.select(x[at], where.ravel() % x.shape[at], flat)
        op.regroup([flat], picked)
        op.ties(index.axes, picked)
        op.indices(1, x[at], flat)
    if x.constant and not index.constant:
        for k, a in enumerate(x.axes):
            if k != at:
                op.role(a, "output")
                op.hint(a, "embedding")
    op.zeros("all", 0)


@op_rule("GatherND")
def gather_nd(op: Op) -> None:
    """x: (b..., k..., r...)  i: (b..., j..., |k|)  y: (b..., j..., r...).

    Tie the trailing axes that are taken whole; freeze what is picked from.
    """
    x, index, y = op.x(0), op.x(1), op.y()
    taken = int(op.attr("batch_dims", 0)) + index.shape[-1]
    op.otherwise = "indices pick from it"
    rest = x.ndim - taken
    if rest > 0:
        op.ties(x.axes[taken:], y.axes[y.ndim - rest :])
    op.zeros("all", 0)


@op_rule("GatherElements")
def gather_elements(op: Op) -> None:
    """x, i, y: (...); y picks along one axis, index by index.

    Nothing may go: the indices name positions one by one.
    """
    op.otherwise = "indices pick from it element by element"


@op_rule("Pad")
def pad(op: Op) -> None:
    """x: (a...)  y: (before + a + after...).

    Tie axes that are not padded; a padded one is frozen.
    """
    x, y = op.x(), op.y()
    op.otherwise = "it is padded"
    for slot in (1, 3):
        if op.given(slot):
            op.reads_sizes(slot)
            op.plain_integers(slot)
    pads = op.axes_argument(1, "pads")
    axes = op.fixed_ints(3) if op.given(3) else tuple(range(x.ndim))
    if pads is None or axes is None:
        raise Unruly("the padding is computed")
    padded = {a % x.ndim for k, a in enumerate(axes) if pads[k] or pads[k + len(axes)]}
    for k, axis in enumerate(x.axes):
        if k not in padded:
            op.tie(axis, y[k])
    op.zeros("all", 0)
