"""Operators that pick, join and cut: which index of the output is which index of the input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..axes.collect import op_rule
from ..axes.op import Op, Unruly
from ..axes.relations import Axis


@op_rule("Concat")
def concat(op: Op) -> None:
    """x_i: (..., c_i, ...)  y: (..., sum c_i, ...).

    Each input is its range of the joined axis; tie the others.
    """
    join(op, [k for k, v in enumerate(op.inputs) if v is not None])


def join(op: Op, slots: Sequence[int]) -> None:
    """Describe the concatenation of the inputs in these slots."""
    y = op.y()
    at = int(op.attr("axis", 1)) % y.ndim
    start = 0
    # A vector without elements adds no index.
    for slot in (slot for slot in slots if op.x(slot).shape[at]):
        value = op.x(slot)
        for k, axis in enumerate(value.axes):
            if k != at:
                op.tie(axis, y[k])
        op.select(y[at], range(start, start + value.shape[at]), value[at])
        start += value.shape[at]
    if all(op.x(slot).shape[at] == 1 for slot in slots):
        op.freeze(y[at], "one part of a stack for each of its indices")
    op.zeros("all", *slots)


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

    A cut axis selects its range; tie the others. Starts and ends count kept indices. Bounds known only at run time
    freeze the axis they cut.
    """
    x, y = op.x(), op.y()
    for slot in range(1, len(op.inputs)):
        if op.given(slot):
            op.plain_integers(slot)
    in_attributes = "starts" in op.node.attrs
    starts = op.axes_argument(1, "starts") if in_attributes else op.ints(1)
    ends = op.axes_argument(2, "ends") if in_attributes else op.ints(2)
    axes = op.axes_argument(3)
    if axes is None:
        count = len(starts) if starts is not None else op.x(1).shape[0]
        axes = tuple(range(count))
    steps = op.fixed_ints(4) if op.given(4) else (1,) * len(axes)
    cut = {a % x.ndim: k for k, a in enumerate(axes)}
    for j, axis in enumerate(x.axes):
        if j not in cut:
            op.tie(axis, y[j])
        elif starts is None or ends is None or steps is None or not _bounds_hold(op, cut[j], in_attributes):
            for side in (axis, y[j]):
                op.freeze(side, "a slice cuts it at bounds known only at run time")
            for slot in (1, 2):
                op.hold_sizes(slot, cut[j])
        else:
            k = cut[j]
            _cut(op, axis, y[j], (starts[k], ends[k], steps[k]), k, in_attributes)
    for slot in range(1, len(op.inputs)):
        if op.given(slot) and starts is not None and ends is not None:
            op.reads_sizes(slot)
    op.zeros("all", 0)


def _bounds_hold(op: Op, item: int, in_attributes: bool) -> bool:
    """Say whether a start and an end are the same at every run."""
    return in_attributes or not (op.varies(1, item) or op.varies(2, item))


def _cut(op: Op, axis: Axis, target: Axis, bounds: tuple[int, int, int], item: int, in_attributes: bool) -> None:
    """Describe one cut axis: a range, every n-th index, or the whole axis backwards."""
    start, end, step = bounds
    size = axis.size
    index = np.arange(size)[slice(start, None if step < 0 and end < -size else end, step)]
    if len(index) != target.size:
        raise Unruly("the slice does not give the size that shape inference found")
    if not len(index):
        raise Unruly("the slice leaves nothing")
    if step == 1:
        op.select(axis, index, target)
        if len(index) < size:
            op.size("starts" if in_attributes else 1, axis, item=item, upto=int(index[0]))
            op.size("ends" if in_attributes else 2, axis, item=item, upto=int(index[-1]) + 1)
    elif step == -1 and len(index) == size and (start == -1 or start >= size - 1) and end < -size:
        op.select(axis, index, target)
        if start == size - 1:
            # What stays before the last index: the last one that stays, or one past it, which is cut back to it.
            op.size("starts" if in_attributes else 1, axis, item=item, upto=start)
    elif step > 1 and size % step == 0 and len(index) == size // step and 0 <= start < step and end >= size:
        whole, part = op.local(size // step, step)
        op.regroup([axis], [whole, part])
        op.tie(whole, target)
        op.freeze(part, f"a slice takes every {step}th index")
    else:
        for side in (axis, target):
            op.freeze(side, f"a slice takes every {step}th index of a part of it")


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

    Each input axis is its range of the padded one, for padding with a constant; the widths of the padding count what
    stays of it. Other modes freeze a padded axis.
    """
    x, y = op.x(), op.y()
    op.otherwise = "it is padded with its own values"
    for slot in (1, 3):
        if op.given(slot):
            op.reads_sizes(slot)
            op.plain_integers(slot)
    pads = op.axes_argument(1, "pads")
    axes = op.fixed_ints(3) if op.given(3) else tuple(range(x.ndim))
    if pads is None or axes is None:
        raise Unruly("the padding is computed")
    where = "pads" if "pads" in op.node.attrs else 1
    padding = {a % x.ndim: (k, pads[k], pads[k + len(axes)]) for k, a in enumerate(axes)}
    for j, axis in enumerate(x.axes):
        k, before, after = padding.get(j, (0, 0, 0))
        if not before and not after:
            op.tie(axis, y[j])
        elif str(op.attr("mode", "constant")) == "constant" and before >= 0 and after >= 0:
            op.select(y[j], range(before, before + axis.size), axis)
            op.size(where, y[j], item=k, upto=before)
            op.size(where, y[j], item=k + len(axes), since=before + axis.size)
    if _pads_with_zero(op):
        op.zeros("all", 0)


def _pads_with_zero(op: Op) -> bool:
    if "value" in op.node.attrs or not op.given(2):
        return float(op.attr("value", 0.0)) == 0
    known = op.numbers(2)
    return bool(known) and not any(known)


@op_rule("ScatterND")
def scatter_nd(op: Op) -> None:
    """x, y: (k..., r...)  i: (j..., |k|)  updates: (j..., r...).

    Tie the trailing axes that are written whole; freeze what is picked from.
    """
    x, index, updates, y = op.x(0), op.x(1), op.x(2), op.y()
    taken = index.shape[-1]
    op.otherwise = "indices pick from it"
    op.ties(x.axes[taken:], y.axes[taken:])
    op.ties(updates.axes[index.ndim - 1 :], y.axes[taken:])
    op.zeros("all", 0, 2)


@op_rule("ReverseSequence")
def reverse_sequence(op: Op) -> None:
    """x, y: (t, n, ...)  lengths: (n); each sequence is reversed up to its length.

    Tie n and the rest; t may not go.
    """
    x, y = op.x(), op.y()
    time = int(op.attr("time_axis", 0)) % x.ndim
    op.otherwise = "sequences are reversed along it"
    for k, axis in enumerate(x.axes):
        if k != time:
            op.tie(axis, y[k])
    op.tie(op.x(1)[0], x[int(op.attr("batch_axis", 1)) % x.ndim])
    op.zeros("all", 0)


@op_rule("Compress")
def compress(op: Op) -> None:
    """x: (a..., c, b...)  y: (a..., as many as the condition takes, b...).

    Tie a and b. Without an axis everything is flattened, and nothing may go.
    """
    x, y = op.x(), op.y()
    op.otherwise = "a condition picks from it"
    if op.attr("axis") is None:
        return
    for k, axis in enumerate(x.axes):
        if k != int(op.attr("axis")) % x.ndim:
            op.tie(axis, y[k])
    op.zeros("all", 0)
