"""Reductions: sums are exact where zeros add nothing, everything else over an axis is a statistic."""

from __future__ import annotations

from ..axes.collect import op_rule
from ..axes.op import Op, Unruly

SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
STATISTICS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")


@op_rule(*SUMS, *STATISTICS)
def reduce(op: Op) -> None:
    """x: (a..., r..., b...)  y: (a..., b...), or with ones for r.

    Tie what stays. A sum over r is exact when its zeros are; any other reduction mixes.
    """
    x, y = op.x(), op.y()
    if op.given(1):
        op.reads_sizes(1)
        op.plain_integers(1)
    given = op.axes_argument(1)
    if given is None or not given:
        gone = set() if op.attr("noop_with_empty_axes", 0) else set(range(x.ndim))
    else:
        gone = {a % x.ndim for a in given}
    for k in gone:
        if op.node.op in SUMS:
            op.contract(x[k])
        else:
            op.mix(x[k], f"{op.node.op} takes a statistic over it")
    kept = [a for k, a in enumerate(x.axes) if k not in gone]
    left = [a for k, a in enumerate(y.axes) if k not in gone] if op.attr("keepdims", 1) else list(y.axes)
    op.ties(kept, left)
    if op.node.op not in ("ReduceLogSum", "ReduceLogSumExp"):
        op.zeros("all", 0)


@op_rule("ArgMax", "ArgMin")
def arg_reduce(op: Op) -> None:
    """x: (a..., r, b...)  y: (a..., b...); y holds indices along r.

    Tie what stays; r may not go.
    """
    x, y = op.x(), op.y()
    at = int(op.attr("axis", 0)) % x.ndim
    op.freeze(x[at], "positions along it are an output")
    kept = [a for k, a in enumerate(x.axes) if k != at]
    op.ties(kept, [a for k, a in enumerate(y.axes) if k != at] if op.attr("keepdims", 1) else y.axes)


@op_rule("CumSum", "CumProd")
def along_axis(op: Op) -> None:
    """x: (..., r, ...)  y: (..., r, ...); order along r matters.

    Tie the others; r may not go.
    """
    x = op.x()
    known = op.fixed_ints(1)
    if not known:
        raise Unruly(f"the axis of {op.node.op} is computed")
    at = known[0] % x.ndim
    op.otherwise = "its order matters"
    op.plain_integers(1)
    for k, axis in enumerate(x.axes):
        if k != at:
            op.tie(axis, op.y()[k])
    op.zeros("all", 0)
