"""Mixtures of experts: a router scores the experts, the best k of them compute, and their results are weighed.

An expert that is gone cannot be chosen, while a masked one still is: whole experts go approximately. The width inside
the experts goes exactly. At least k experts stay, since that many are always picked.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..axes.collect import op_rule
from ..axes.op import Op, Unruly
from ..axes.relations import Axis

MICROSOFT = "com.microsoft"


@op_rule("TopK")
def top_k(op: Op) -> None:
    """x: (..., r, ...)  values, positions: (..., k, ...), the k largest or smallest of r and where they are.

    Tie the others; picking mixes r, of which k stay. Whoever reads the positions must follow r, or r is frozen.
    """
    x = op.x()
    op.otherwise = "it counts what is picked"
    if op.given(1):
        op.plain_integers(1)
    at = int(op.attr("axis", -1)) % x.ndim
    for y in op.outputs:
        if y is not None:
            op.ties((a for k, a in enumerate(x.axes) if k != at), (a for k, a in enumerate(y.axes) if k != at))
    count = op.fixed_ints(1) if op.given(1) else (int(op.attr("k", 0)),)
    if not count:
        op.freeze(x[at], "how many of it TopK picks is known only at run time")
        return
    _pick(op, x[at], count[0])
    if len(op.outputs) > 1 and op.outputs[1] is not None:
        op.positions(op.y(1), x[at])


def _pick(op: Op, axis: Axis, count: int) -> None:
    """State that the best `count` indices of an axis are picked: as many must stay."""
    op.mix(axis, f"{op.node.op} picks the best {count} along it")
    if count >= axis.size:
        op.freeze(axis, f"{op.node.op} picks {count} of it")
    else:
        op.at_least(axis, count)


@op_rule("ScatterElements", "Scatter")
def scatter_elements(op: Op) -> None:
    """x, y: (..., r, ...)  positions, updates: (..., k, ...), written to those places of r.

    Tie the others where they are as long. r follows the axis that the positions are of; positions of no axis freeze it.
    """
    x, where, updates, y = op.x(0), op.x(1), op.x(2), op.y()
    at = int(op.attr("axis", 0)) % x.ndim
    op.otherwise = "it is written to element by element"
    for k, axis in enumerate(x.axes):
        if k != at:
            long = [v[k] for v in (where, updates) if v.shape[k] == axis.size]
            op.ties([axis] * (1 + len(long)), [y[k], *long])
    op.tie(x[at], y[at])
    if not op.follow_positions(1, x[at]):
        op.freeze(x[at], "positions that are computed are written to along it")
    op.zeros("all", 0, 2)


@op_rule("OneHot")
def one_hot(op: Op) -> None:
    """positions: (a..., b...)  depth: a number  off, on: (2)  y: (a..., d, b...).

    Tie a and b. d follows the axis that the positions are of, and depth is its size; positions of no axis freeze it.
    """
    where, y = op.x(0), op.y()
    at = int(op.attr("axis", -1)) % y.ndim
    op.otherwise = "positions are spelled out along it"
    op.ties(where.axes, [a for k, a in enumerate(y.axes) if k != at])
    op.plain_integers(2)
    if op.follow_positions(0, y[at]):
        op.reads_sizes(1)
        op.size(1, y[at], item=0)


# Slots of each weight and its bias.
FC1, FC2, FC3 = (2, 3), (4, 5), (6, 7)


@op_rule("MoE", domain=MICROSOFT)
def mixture(op: Op) -> None:
    """x, y: (..., h)  router: (t, e)  w1, b1: (e, f*i, h), (e, f*i)  w2, b2: (e, h, i), (e, h)  w3, b3: as with f = 1.

    t is what is before h. Contract h and i, tie y with w2's h and with x. f is 2 where a gate lies in w1: (i f) when
    fusion is 1, else (f i). Experts go together with the router's columns.
    """
    x, y = op.x(0), op.y()
    _experts(op, [FC1[0], FC2[0], FC3[0]], [FC1[1], FC2[1], FC3[1]])
    w1, w2 = op.x(FC1[0]), op.x(FC2[0])
    inner = w2[2]
    _inner(op, w1[1], inner)
    if op.given(FC1[1]):
        op.tie(op.x(FC1[1])[1], w1[1])
    op.contract(x[-1], w1[2])
    op.tie(w2[1], y[-1])
    op.role(w1[1], "output")
    op.role(w1[2], "input")
    op.role(inner, "input")
    op.role(w2[1], "output")
    if op.given(FC2[1]):
        op.tie(op.x(FC2[1])[1], w2[1])
    if op.given(FC3[0]):
        w3 = op.x(FC3[0])
        op.ties(w3.axes[1:], (inner, x[-1]))
        op.role(w3[1], "output")
        op.role(w3[2], "input")
        if op.given(FC3[1]):
            op.tie(op.x(FC3[1])[1], inner)
    op.hint(inner, "features")
    op.zeros("all", FC2[0], FC2[1])
    matrices = w1.shape[1] // inner.size + 1 + op.given(FC3[0])
    for _ in range(int(op.attr("k", 1)) * matrices):
        op.macs(*x.axes, inner)


@op_rule("QMoE", domain=MICROSOFT)
def quantized_mixture(op: Op) -> None:
    """x, y: (..., h)  router, weights: (t, e)  w1, w2, w3, their scales, zero points and biases: (e, ...).

    As MoE for the experts. Weights are packed along the widths, which stay.
    """
    op.otherwise = "packed weights of experts run along it"
    _experts(op, (2, 5, 8), (3, 4, 6, 7, *range(9, 14), *range(15, 20)))
    if op.given(14):
        op.ties(op.x(14).axes, op.x(1).axes)
    packed = 8 // int(op.attr("fc1_expert_weight_bits", op.attr("expert_weight_bits", 4)))
    for _ in range(int(op.attr("k", 1)) * (2 + op.given(8))):
        op.macs(*op.x(0).axes[:-1], op.x(2)[1], *op.x(2).axes[2:], *op.local(packed))


def _experts(op: Op, weights: Sequence[int], vectors: Sequence[int]) -> None:
    """Tie the experts of the inputs in these slots with the router's columns, and the tokens with its rows."""
    x, router, y = op.x(0), op.x(1), op.y()
    if x.shape != y.shape:
        raise Unruly("its output has another shape than its input")
    op.ties(x.axes, y.axes)
    op.regroup(x.axes[:-1], [router[0]])
    expert = router[1]
    for slot in (*weights, *vectors):
        if op.given(slot) and op.x(slot).ndim and op.x(slot).shape[0] == expert.size:
            op.tie(op.x(slot)[0], expert)
            op.role(op.x(slot)[0], "output" if slot in weights else "parameter")
    op.hint(expert, "groups")
    _pick(op, expert, int(op.attr("k", 1)))


def _inner(op: Op, rows: Axis, inner: Axis) -> None:
    """Tie the rows of the first weight with the width inside: once, or twice where it holds a gate as well."""
    if rows.size == inner.size:
        op.contract(rows, inner)
        return
    (width, part) = op.local(inner.size, rows.size // inner.size)
    op.regroup([rows], [width, part] if int(op.attr("swiglu_fusion", 0)) == 1 else [part, width])
    op.freeze(part, "the gate and the value of an expert")
    op.contract(width, inner)
