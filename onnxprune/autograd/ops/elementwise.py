"""Elementwise operators: most are one torch function, registered by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch.nn import functional

from ..call import Call, Tensor, torch_functions, torch_op
from ..tensors import dtype_of


def _plain(op: str, function: Callable[..., Any]) -> None:
    """Register a torch function that takes the inputs of the operator and no attributes."""

    def run(_: Call, *inputs: Tensor) -> Tensor:
        return function(*inputs)

    run.__name__ = op
    torch_functions.register(op)(run)


for _op, _function in {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Add": torch.add,
    "And": torch.logical_and,
    "Asin": torch.asin,
    "Atan": torch.atan,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSwish": functional.hardswish,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "Mish": functional.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "Where": torch.where,
    "Xor": torch.logical_xor,
}.items():
    _plain(_op, _function)


@torch_op("Identity")
def identity(_: Call, x: Tensor) -> Tensor:
    """Pass x on."""
    return x


@torch_op("Dropout")
def dropout(_: Call, x: Tensor, *__: Tensor) -> tuple[Tensor, Tensor]:
    """Drop nothing: what runs is never training."""
    return x, torch.ones_like(x, dtype=torch.bool)


@torch_op("Div")
def div(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@torch_op("Mod")
def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """With fmod=1 the sign is that of a, else that of b."""
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


@torch_op("Pow")
def power(_: Call, base: Tensor, exponent: Tensor) -> Tensor:
    """The result has the type of the base. A constant square is a product: its derivative at 0 is not 0 * log 0."""
    if exponent.numel() == 1 and not exponent.requires_grad:
        return torch.pow(base, exponent.item()).reshape(torch.broadcast_shapes(base.shape, exponent.shape))
    return torch.pow(base, exponent).to(base.dtype)


@torch_op("Sum", "Max", "Min", "Mean")
def fold(call: Call, *inputs: Tensor) -> Tensor:
    """Any number of tensors, broadcast against each other."""
    function = {"Max": torch.maximum, "Min": torch.minimum}.get(call.op, torch.add)
    total = reduce(function, inputs)
    return total / len(inputs) if call.op == "Mean" else total


@torch_op("Clip")
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds are attributes before opset 11."""
    low = call.get("min") if low is None else low.item()
    high = call.get("max") if high is None else high.item()
    return x if low is None and high is None else torch.clamp(x, low, high)


@torch_op("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """A slope below zero."""
    return functional.leaky_relu(x, call.get("alpha", 0.01))


@torch_op("PRelu")
def prelu(_: Call, x: Tensor, slope: Tensor) -> Tensor:
    """A slope below zero that is broadcast to x."""
    return torch.where(x < 0, x * slope, x)


@torch_op("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    """Exponential below zero."""
    return functional.elu(x, call.get("alpha", 1.0))


@torch_op("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    """Exponential below zero, smooth for every alpha."""
    return functional.celu(x, call.get("alpha", 1.0))


@torch_op("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    """Scaled Elu; the default factors are those of the operator."""
    alpha, gamma = call.get("alpha", 1.6732632423543772), call.get("gamma", 1.0507009873554805)
    return gamma * functional.elu(x, alpha)


@torch_op("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    """Zero up to alpha."""
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


@torch_op("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """Slope `alpha` (0.2) and offset `beta` (0.5), cut to [0, 1]."""
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


@torch_op("Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    """x sigmoid(alpha x)."""
    return x * torch.sigmoid(call.get("alpha", 1.0) * x)


@torch_op("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    """Exact, or approximate="tanh"."""
    return functional.gelu(x, approximate=call.get("approximate", "none"))


@torch_op("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    """Floats of 16 bits stay 32 wide here."""
    return x.to(dtype_of(call.get("to")))


@torch_op("CastLike")
def cast_like(_: Call, x: Tensor, like: Tensor) -> Tensor:
    """Take the type of another tensor."""
    return x.to(like.dtype)


@torch_op("CumSum")
def cumsum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """Running sums along one axis."""
    along = int(axis.item())
    if call.get("reverse", 0):
        x = x.flip(along)
    total = torch.cumsum(x, along, dtype=x.dtype)
    if call.get("exclusive", 0):
        total = total - x
    return total.flip(along) if call.get("reverse", 0) else total
