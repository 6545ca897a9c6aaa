"""Matrix products: axes that run together and are summed away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..axes.collect import op_rule
from ..axes.op import Op, Value
from ..axes.relations import Axis


@op_rule("MatMul")
def matmul(op: Op) -> None:
    """a: (..., m, k)  b: (..., k, n)  y: (..., m, n); a lone axis is k.

    Contract k; tie m, n and the batch axes. Two computed operands are attention: their batch axes are heads.
    """
    product(op, op.x(0), op.x(1))
    op.zeros("any", 0, 1)


def product(
    op: Op, left: Value, right: Value, a: Sequence[Axis] | None = None, b: Sequence[Axis] | None = None
) -> None:
    """Describe the product of two operands, whose axes `a` and `b` may come in another order than they lie.

    Zeros are left to the caller.
    """
    a, b, y = left.axes if a is None else a, right.axes if b is None else b, op.y()
    op.contract(a[-1], b[-2] if len(b) > 1 else b[0])
    rest = list(y.axes)
    cost: list[Axis] = [*y.axes, a[-1]]
    if len(b) > 1:
        n = rest.pop()
        op.tie(b[-1], n)
        _roles(op, right, b[-1], b[-2], "features")
    if len(a) > 1:
        m = rest.pop()
        op.tie(a[-2], m)
        _roles(op, left, a[-2], a[-1], "features")
    for operand in (a, b):
        for s, t in zip(reversed(operand[:-2]), reversed(rest), strict=False):
            if s.size == t.size:
                op.tie(s, t)
    if not left.constant and not right.constant:
        for axis in rest:
            op.hint(axis, "heads")
        op.hint(a[-1], "head_dim")
        if len(b) > 1:
            op.hint(b[-1], "head_dim")
    op.macs(*cost)


@op_rule("Gemm")
def gemm(op: Op) -> None:
    """a: (m, k) or transposed  b: (k, n) or transposed  c: broadcast to (m, n)  y: (m, n).

    Contract k; tie m and n. The bias is zero along n when its slice is.
    """
    linear(op, 1, 2)


def linear(op: Op, weight: int, bias: int, *, keeps_zero: bool = True) -> Axis:
    """Describe a general matrix product of input 0 with the operands in these slots; give its axis n.

    `keeps_zero` says that what follows inside the node, such as an activation, maps zero to zero.
    """
    a, b, y = op.x(0), op.x(weight), op.y()
    m, ka = (a[1], a[0]) if op.attr("transA", 0) else (a[0], a[1])
    n, kb = (b[0], b[1]) if op.attr("transB", 0) else (b[1], b[0])
    op.contract(ka, kb)
    op.tie(m, y[0])
    op.tie(n, y[1])
    if op.given(bias):
        op.broadcast(slots=[bias])
        for axis in op.x(bias).axes:
            op.role(axis, "parameter")
    if keeps_zero and op.given(bias):
        op.zeros("all", weight, bias)
    elif keeps_zero:
        op.zeros("any", 0, weight)
    _roles(op, b, n, kb, "features")
    _roles(op, a, m, ka, "features")
    op.macs(m, n, ka)
    return n


def _roles(op: Op, weight: Value, output: Axis, inner: Axis, kind: str) -> None:
    """Name the axes of a constant operand: its free axis produces, its contracted one consumes."""
    if weight.constant:
        op.role(output, "output")
        op.role(inner, "input")
        op.hint(output, kind)


@op_rule("Einsum")
def einsum(op: Op) -> None:
    """The equation's letters are axes: the same letter is the same axis, a letter without output is summed away.

    Ellipses line up from the right.
    """
    equation = str(op.attr("equation")).replace(" ", "")
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if "->" not in equation:
        letters = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        right = ("..." if "..." in left else "") + "".join(letters)
    places: dict[str, list[Axis]] = {}
    constant: dict[str, bool] = {}
    for slot, term in enumerate(terms):
        value = op.x(slot)
        for label, axis in zip(_labels(term, value.ndim), value.axes, strict=True):
            places.setdefault(label, []).append(axis)
            constant[label] = constant.get(label, False) or value.constant
    outputs = dict(zip(_labels(right, op.y().ndim), op.y().axes, strict=True))
    for label, axes in places.items():
        long = [a for a in axes if a.size > 1]
        for other in long[1:]:
            op.contract(long[0], other) if label not in outputs else op.tie(long[0], other)
        if label in outputs and long:
            op.tie(long[0], outputs[label])
        elif len(long) == 1:
            op.contract(long[0])
        for axis in axes:
            op.free(axis)
    for slot, term in enumerate(terms):
        value = op.x(slot)
        if value.constant:
            for label, axis in zip(_labels(term, value.ndim), value.axes, strict=True):
                op.role(axis, "output" if label in outputs else "input")
    _einsum_kinds(op, terms, outputs)
    op.zeros("any", *range(len(terms)))
    op.macs(*(max(axes, key=lambda a: a.size) for axes in places.values()))


def _einsum_kinds(op: Op, terms: Sequence[str], outputs: Mapping[str, Axis]) -> None:
    """Two computed operands are attention, as in a product: what both share and keep are heads, the rest head dims."""
    values = [op.x(slot) for slot in range(len(terms))]
    if len(terms) != 2 or any(value.constant for value in values):
        return
    left, right = (dict(zip(_labels(t, v.ndim), v.axes, strict=True)) for t, v in zip(terms, values, strict=True))
    for label, axis in right.items():
        op.hint(axis, "heads" if label in left and label in outputs else "head_dim")


def _labels(term: str, ndim: int) -> list[str]:
    """Spell one label per axis; the axes of an ellipsis are numbered from the right."""
    if "..." not in term:
        return list(term)
    before, after = term.split("...")
    n = ndim - len(before) - len(after)
    return [*before, *(f"...{n - k}" for k in range(n)), *after]
