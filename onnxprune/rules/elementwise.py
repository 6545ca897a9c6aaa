"""Operators that work element by element: every axis of an input is the output's axis, aligned right."""

from __future__ import annotations

from ..axes.collect import op_rule
from ..axes.op import Op

KEEPS_ZERO = (
    "Abs", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Elu", "Erf", "Floor", "Gelu", "HardSwish", "IsNaN",
    "LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Shrink", "Sign", "Sin", "Sinh", "Softsign", "Sqrt", "Swish",
    "Tan", "Tanh", "ThresholdedRelu", "Cast", "Identity", "NaNToNum", "IsInf",
)  # fmt: skip
MOVES_ZERO = (
    "Acos", "Acosh", "BitwiseNot", "Cos", "Cosh", "Exp", "HardSigmoid", "Log", "Not", "Reciprocal", "Sigmoid",
    "Softplus", "CastLike",
)  # fmt: skip


@op_rule(*KEEPS_ZERO)
def unary_keeping_zero(op: Op) -> None:
    """x: (...)  y: (...), with f(0) = 0.

    Tie every axis.
    """
    op.broadcast(slots=[0])
    op.zeros("all", 0)


@op_rule(*MOVES_ZERO)
def unary(op: Op) -> None:
    """x: (...)  y: (...), with f(0) != 0.

    Tie every axis.
    """
    op.broadcast(slots=[0])
    for slot in range(1, len(op.inputs)):
        for axis in op.x(slot).axes:
            op.free(axis)


@op_rule("Dropout")
def dropout(op: Op) -> None:
    """x: (...)  y, mask: (...).

    Tie every axis; ratio and training mode are numbers. In training a random mask is drawn over all of it.
    """
    for k, y in enumerate(op.outputs):
        if y is not None:
            op.broadcast(slots=[0], output=k)
    if op.given(2) and op.fixed_ints(2) not in ((0,), (False,)):
        _drawn(op)
    op.zeros("all", 0)


@op_rule("Bernoulli")
def bernoulli(op: Op) -> None:
    """p: (...)  y: (...), drawn with the probabilities p.

    Tie every axis; with fewer numbers drawn, each entry gets another one.
    """
    op.broadcast(slots=[0])
    _drawn(op)
    op.zeros("all", 0)


def _drawn(op: Op) -> None:
    for axis in op.x().axes:
        op.mix(axis, f"{op.node.op} draws random numbers over it")


@op_rule("Clip")
def clip(op: Op) -> None:
    """x: (...)  y: (...), with two bounds.

    Tie every axis. Zero stays zero when the bounds enclose it.
    """
    op.broadcast(slots=[0])
    low = op.attr("min") if "min" in op.node.attrs else _number(op, 1)
    high = op.attr("max") if "max" in op.node.attrs else _number(op, 2)
    if (low is None or low <= 0) and (high is None or high >= 0):
        op.zeros("all", 0)


def _number(op: Op, slot: int) -> float | None:
    """Give a bound's value: None without one, and one that excludes zero where it is not known."""
    if not op.given(slot):
        return None
    known = op.numbers(slot)
    if not known:
        return 1.0 if slot == 1 else -1.0
    return known[0]


@op_rule("Add", "Sub", "Sum", "Mean", "Max", "Min", "Or", "Xor", "BitwiseOr", "BitwiseXor")
def additive(op: Op) -> None:
    """a: (...)  b: (...)  y: broadcast of both.

    Tie every axis. Zero where all operands are.
    """
    op.broadcast()
    op.zeros("all", *range(len(op.inputs)))
    for slot in range(len(op.inputs)):
        _vector_is_parameter(op, slot)


@op_rule("Mul", "And", "BitwiseAnd")
def multiplicative(op: Op) -> None:
    """a: (...)  b: (...)  y: broadcast of both.

    Tie every axis. Zero where any operand is.
    """
    op.broadcast()
    op.zeros("any", 0, 1)
    for slot in (0, 1):
        _vector_is_parameter(op, slot)


@op_rule("Div", "Mod", "Pow", "BitShift")
def first_operand_decides(op: Op) -> None:
    """a: (...)  b: (...)  y: broadcast of both.

    Tie every axis. Zero where the first operand is; the second is no size that a zero could replace. A power is zero
    there only for exponents above zero.
    """
    op.broadcast()
    if op.node.op != "Pow" or min(op.numbers(1), default=0.0) > 0:
        op.zeros("all", 0)
    _vector_is_parameter(op, 1)


@op_rule("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "PRelu")
def comparison(op: Op) -> None:
    """a: (...)  b: (...)  y: broadcast of both.

    Tie every axis. PRelu's slope is a parameter along the axes it has.
    """
    op.broadcast()
    if op.node.op == "PRelu":
        op.zeros("all", 0)
    _vector_is_parameter(op, 1)


@op_rule("Where")
def where(op: Op) -> None:
    """condition, a, b: (...)  y: broadcast of the three.

    Tie every axis. Zero where both branches are.
    """
    op.broadcast()
    op.zeros("all", 1, 2)


def _vector_is_parameter(op: Op, slot: int) -> None:
    """Call the axes of a constant operand parameters, unless a rule that knows better has named them."""
    value = op.inputs[slot]
    if value is not None and value.constant:
        for axis in value.axes:
            op.role(axis, "parameter")
