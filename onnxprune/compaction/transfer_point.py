"""Transfers of operators that work element by element, and of normalizations with parameters per channel."""

from __future__ import annotations

import numpy as np

from .facts import Step, transfer
from .known import Known, known_or_none

_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu",
    "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_JOINED = (
    "Add", "Sub", "Sum", "Mean", "Max", "Min", "Pow", "Mod", "PRelu", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Or", "Xor", "BitwiseOr", "BitwiseXor", "BitShift",
)  # fmt: skip
_SAFE = 1.0


@transfer(*_UNARY)
@transfer("Gelu", "QuickGelu", "FastGelu", "BiasGelu", domain="com.microsoft")
@transfer(*_JOINED)
def pointwise(step: Step) -> Known | None:
    """Known where all operands are."""
    return _joined(step, zero_wins=())


@transfer("Mul", "And", "BitwiseAnd")
def product(step: Step) -> Known | None:
    """Known where both operands are, and zero where one is."""
    return _joined(step, zero_wins=(0, 1))


@transfer("Div")
def quotient(step: Step) -> Known | None:
    """Known where both operands are, and zero where the first is."""
    return _joined(step, zero_wins=(0,))


def _joined(step: Step, zero_wins: tuple[int, ...]) -> Known | None:
    slots = [k for k in range(len(step.op.inputs)) if step.op.given(k)]
    found = [step.blank(k) for k in slots]
    operands = [k for k in found if k is not None]
    if len(operands) < len(slots) or not any(k.mask.any() for k in operands):
        return None
    rank = max(len(k.shape) for k in operands)
    # PRelu and Clip take no operand wider than the first, which may be stored shorter than it is.
    shape = np.broadcast_shapes(*(k.shape for k in operands))
    wide = [k.stretched(shape) if len(k.shape) == rank else k for k in operands]
    mask = np.ones(shape, dtype=bool)
    for known in operands:
        mask = mask & known.mask
    for slot in zero_wins:
        mask = mask | operands[slot].zero
    if not mask.any():
        return None
    arrays = iter([k.filled(_SAFE) for k in wide])
    value = step.run([next(arrays) if k in slots else None for k in range(len(step.op.inputs))])
    return None if value is None else known_or_none(mask, value)


@transfer("Dropout")
def dropout(step: Step) -> Known | None:
    """What is known of the input, outside of training."""
    training = step.constant(2)
    if step.op.given(2) and (training is None or bool(training)):
        return None
    return step.x()


@transfer("Where")
def where(step: Step) -> Known | None:
    """Known where the chosen branch is, or where both are and agree."""
    a, b = step.blank(1), step.blank(2)
    if a is None or b is None:
        return None
    mask = a.mask & b.mask & (a.value == b.value)
    value = np.where(a.mask, a.value, b.value)
    condition = step.x()
    if condition is not None:
        yes, no = condition.mask & condition.value, condition.mask & ~condition.value
        mask = np.where(yes, a.mask, np.where(no, b.mask, mask))
        value = np.where(yes, a.value, np.where(no, b.value, value))
    return known_or_none(mask, value)


@transfer("Join", domain="onnxprune")
def join(step: Step) -> Known | None:
    """Known where all that come in are and agree: the branches of If."""
    found = [step.x(k) for k in range(len(step.op.inputs))]
    rows = [k for k in found if k is not None]
    if len(rows) < len(found) or not rows:
        return None
    first = rows[0]
    mask, value = first.mask, first.value
    for other in rows[1:]:
        mask = mask & other.mask & (value == other.value)
    return known_or_none(np.asarray(mask), value)


@transfer("BatchNormalization")
def batch_norm(step: Step) -> list[Known | None]:
    """Known where the channel is, and the shift where its scale is zero."""
    parameters = [step.constant(k) for k in range(1, 5)]
    if any(p is None for p in parameters) or step.op.attr("training_mode", 0):
        return [None]
    x = step.blank(0)
    if x is None:
        return [None]
    scale, shift = parameters[0], parameters[1]
    assert scale is not None
    assert shift is not None
    x = _with_channels(x, 1, step.shape()[1])
    value = step.run([x.filled(_SAFE), *parameters])
    if value is None:
        return [None]
    along = _along(1, value.ndim)
    off = scale.reshape(along) == 0
    return [known_or_none(x.mask | off, np.where(off, shift.reshape(along).astype(value.dtype), value))]


def _with_channels(x: Known, axis: int, size: int) -> Known:
    return x.stretched([size if k == axis else d for k, d in enumerate(x.shape)])


def _along(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(-1 if k == axis else 1 for k in range(rank))


@transfer("InstanceNormalization")
def instance_norm(step: Step) -> Known | None:
    """The shift, where the scale is zero or the channel constant over all positions."""
    scale, shift = step.constant(1), step.constant(2)
    if scale is None or shift is None:
        return None
    rank = step.op.x().ndim
    along = _along(1, rank)
    mask = scale.reshape(along) == 0
    x = step.x()
    if x is not None and all(d == 1 for d in x.shape[2:]):
        mask = mask | x.mask
    return known_or_none(mask, shift.reshape(along))


@transfer("GroupNormalization")
def group_norm(step: Step) -> Known | None:
    """The shift, where the scale is zero."""
    scale, shift = step.constant(1), step.constant(2)
    if scale is None or shift is None or scale.shape != (step.shape()[1],):
        return None
    along = _along(1, step.op.x().ndim)
    return known_or_none(scale.reshape(along) == 0, shift.reshape(along))


@transfer("LayerNormalization", "RMSNormalization")
def layer_norm(step: Step) -> list[Known | None]:
    """The shift, or zero without one, where the scale is zero."""
    scale = step.constant(1)
    shift = step.constant(2)
    if scale is None or (step.op.given(2) and shift is None):
        return [None]
    rank = step.op.x().ndim
    lead = (1,) * (rank - scale.ndim)
    value = np.zeros_like(scale) if shift is None else np.broadcast_to(shift, scale.shape)
    return [known_or_none((scale == 0).reshape(lead + scale.shape), value.reshape(lead + scale.shape))]


@transfer("QuantizeLinear", "DequantizeLinear")
def quantize(step: Step) -> Known | None:
    """Known where the input is; scales and zero points may run along one axis."""
    x, scale = step.x(), step.constant(1)
    zero_point = step.constant(2)
    if x is None or scale is None or (step.op.given(2) and zero_point is None) or scale.ndim > 1:
        return None
    if scale.ndim == 1 and scale.size > 1:
        axis = int(step.op.attr("axis", 1)) % len(x.shape)
        x = _with_channels(x, axis, step.shape()[axis])
    value = step.run([x.filled(0.0), scale, *([zero_point] if zero_point is not None else [])])
    return None if value is None else known_or_none(x.mask, value)
