"""The 21 activations of torch's structured sparsifier, each in every spelling that exporters give it.

An exporter writes one node where its opset has the operator and a decomposition where not; `activation.NAME` matches
both. Numbers are checked, so that GELU is not taken for `x * (1 + erf(x))`. No two names match the same nodes:

- ReLU6 is Clip to [0, 6], any other Clip with two bounds is Hardtanh, one with the bound 0 below is ReLU;
- RReLU does not exist at inference: LeakyRelu with the mean 11/48 of its default bounds is called `rrelu`, any other
  slope `leaky_relu`; a decomposed PReLU with a single slope is a `leaky_relu` too.

Source: torch 2.x `torch/onnx` symbolics and decompositions, function bodies of the ONNX operator specifications, and
the activations listed in torch/ao/pruning/_experimental/pruner/base_structured_sparsifier.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from .constants import attribute, close, number, reads, reads_scalar, reads_vector
from .pattern import Branch, OneOf, Op, Optional, Part, Step
from .registry import register_part

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

_RRELU_SLOPE = (1 / 8 + 1 / 3) / 2
_HUGE = 1e30


def _add(n: float) -> Step:
    return Op("Add", where=reads(n))


def _scale(n: float) -> Step:
    return OneOf(Op("Mul", where=reads(n)), Op("Div", input=0, where=reads(1 / n)))


def _bound(node: gs.Node, name: str, slot: int) -> float:
    """Give a bound of Clip, as attribute (opset 6) or input (11); infinite where absent and NaN where not constant."""
    value: float | None = math.inf if name == "max" else -math.inf
    if name in node.attrs:
        value = attribute(node, name, 0.0)
    elif len(node.inputs) > slot and not node.inputs[slot].is_empty():
        value = number(node.inputs[slot])
    if value is None:
        return math.nan
    return value if abs(value) < _HUGE else math.copysign(math.inf, value)


def _clips(low: float, high: float) -> Step:
    return Op("Clip", input=0, where=lambda n: _bound(n, "min", 1) == low and _bound(n, "max", 2) == high)


def _is_hardtanh(node: gs.Node) -> bool:
    low, high = _bound(node, "min", 1), _bound(node, "max", 2)
    return math.isfinite(low) and math.isfinite(high) and (low, high) != (0.0, 6.0)


def _random_slope(node: gs.Node) -> bool:
    producers = node.inputs[1].inputs if len(node.inputs) > 1 else []
    return bool(producers) and producers[0].op.startswith("Random")


def _valued(operator: str, name: str, default: float, wanted: float) -> Op:
    """Match an operator whose attribute is about `wanted`; absent, it has the `default` of the specification."""
    return Op(operator, input=0, where=lambda node: close(attribute(node, name, default), wanted))


def _leaky(slope: Step) -> Step:
    """`x` where positive, and `slope` applied to it where not."""
    positive = Op("Greater", "GreaterOrEqual", input=0, where=reads(0.0))
    negative = Op("Less", "LessOrEqual", input=0, where=reads(0.0))
    below = OneOf(_clips(-math.inf, 0.0), Op("Min", where=reads(0.0)), ("Neg", "Relu", "Neg"))
    return OneOf(
        (Branch((positive,), (), (slope,), ordered=True), "Where"),
        (Branch((negative,), (slope,), (), ordered=True), "Where"),
        (Branch(("Relu",), (below, slope)), "Add"),
        (Branch(("Relu",), ("Neg", "Relu", slope), ordered=True), "Sub"),
        (Branch(("Relu",), ("Neg", "Relu", slope, "Neg")), "Add"),
    )


_ZERO_FLOOR = OneOf("Relu", Op("Max", where=reads(0.0)), _clips(0.0, math.inf))
_SIX = OneOf(
    (Optional("Relu"), _clips(0.0, 6.0)),
    (_ZERO_FLOOR, OneOf(Op("Min", where=reads(6.0)), _clips(-math.inf, 6.0))),
    (Op("Min", where=reads(6.0)), _ZERO_FLOOR),
)
_ONE_PLUS_EXP_NEG = ("Neg", "Exp", _add(1))
_SIGMOID = OneOf(
    "Sigmoid", (*_ONE_PLUS_EXP_NEG, OneOf("Reciprocal", Op("Div", input=1, where=reads(1.0)))),
)  # fmt: skip
_LOG1P_EXP = OneOf("Softplus", ("Exp", _add(1), "Log"))
_BETA = Op("Mul", "Div", where=reads_scalar)
_SOFTPLUS = OneOf(
    _LOG1P_EXP,
    (_BETA, _LOG1P_EXP, _BETA),
    (Branch((Optional(_BETA), Op("Greater", input=0, where=reads_scalar)), (),
            (Optional(_BETA), _LOG1P_EXP, Optional(_BETA)), ordered=True), "Where"),
)  # fmt: skip
_HARD_GATE = OneOf(_valued("HardSigmoid", "alpha", 0.2, 1 / 6), (_add(3), _SIX, _scale(1 / 6)))

_SQUARE = OneOf(Op("Pow", input=0, where=reads(2.0)), (Branch((), ()), "Mul"))
_CUBE = OneOf(Op("Pow", input=0, where=reads(3.0)), (Branch((_SQUARE,), ()), "Mul"))
_C = _scale(0.044715)
_ROOT = _scale(math.sqrt(2 / math.pi))
_CX_X = (Branch((_C,), ()), "Mul")
_BEND = OneOf((_SQUARE, _C), _CX_X)
_CUBIC = OneOf(
    (Branch((), OneOf((_CUBE, _C), (Branch((_BEND,), ()), "Mul"))), "Add", _ROOT),
    (Branch((), (_BEND, _add(1))), "Mul", _ROOT),
    (Branch((_ROOT,), (_BEND, _add(1))), "Mul"),
)
_BELL = OneOf((_scale(math.sqrt(0.5)), "Erf"), (_CUBIC, "Tanh"))
_HALF = _scale(0.5)

#: Every spelling of every activation, by the name that it has in `torch.nn.functional`.
SPELLINGS: Final[dict[str, Step]] = {
    "relu": _ZERO_FLOOR,
    "rrelu": OneOf(_valued("LeakyRelu", "alpha", 0.01, _RRELU_SLOPE), Op("PRelu", input=0, where=_random_slope)),
    "hardtanh": OneOf(
        Op("Clip", input=0, where=_is_hardtanh),
        (Op("Max", where=lambda n: reads_scalar(n) and not reads(0.0)(n)), Op("Min", where=reads_scalar)),
        (Op("Max", where=reads(0.0)), Op("Min", where=lambda n: reads_scalar(n) and not reads(6.0)(n))),
        (Op("Min", where=lambda n: reads_scalar(n) and not reads(6.0)(n)), Op("Max", where=reads_scalar)),
        (Op("Min", where=reads(6.0)), Op("Max", where=lambda n: reads_scalar(n) and not reads(0.0)(n))),
    ),
    "relu6": _SIX,
    "sigmoid": _SIGMOID,
    "hardsigmoid": OneOf("HardSigmoid", (_add(3), _SIX, _scale(1 / 6))),
    "tanh": "Tanh",
    "silu": OneOf(
        _valued("Swish", "alpha", 1.0, 1.0),
        _valued("com.microsoft::QuickGelu", "alpha", 1.702, 1.0),
        (Branch((_SIGMOID,), ()), "Mul"),
        (Branch((), _ONE_PLUS_EXP_NEG, ordered=True), "Div"),
    ),
    "mish": OneOf("Mish", (Branch((_SOFTPLUS, "Tanh"), ()), "Mul")),
    "hardswish": OneOf(
        "HardSwish",
        (Branch((_HARD_GATE,), ()), "Mul"),
        (Branch((_add(3), _SIX), ()), "Mul", _scale(1 / 6)),
        (Branch((_add(3), _SIX), (_scale(1 / 6),)), "Mul"),
    ),
    "elu": OneOf(
        "Elu",
        (
            Branch(
                (Op("Greater", input=0, where=reads(0.0)),),
                (),
                ("Exp", Op("Sub", input=0, where=reads(1.0)), Optional(_BETA)),
                ordered=True,
            ),
            "Where",
        ),
    ),
    "celu": OneOf("Celu", (_BETA, _valued("Elu", "alpha", 1.0, 1.0), Op("Mul", where=reads_scalar))),
    "selu": OneOf("Selu", (_valued("Elu", "alpha", 1.0, 1.6732632), _scale(1.0507010))),
    "hardshrink": OneOf(
        _valued("Shrink", "bias", 0.0, 0.0),
        (
            Branch(
                (
                    Branch((Op("Greater", input=0, where=reads_scalar),), (Op("Less", input=0, where=reads_scalar),)),
                    "Or",
                ),
                (),
                ordered=True,
            ),
            Op("Where", where=reads(0.0)),
        ),
        (Branch(("Abs", Op("Greater", input=0, where=reads_scalar)), (), ordered=True), Op("Where", where=reads(0.0))),
        (
            Branch(("Abs", Op("LessOrEqual", "Less", input=0, where=reads_scalar)), ()),
            Op("Where", input=0, where=lambda n: number(n.inputs[1]) == 0.0),
        ),
        (
            Branch(
                (
                    Branch(
                        (Op("GreaterOrEqual", input=0, where=reads_scalar),),
                        (Op("LessOrEqual", input=0, where=reads_scalar),),
                    ),
                    "And",
                ),
                (),
            ),
            Op("Where", input=0, where=lambda n: number(n.inputs[1]) == 0.0),
        ),
    ),
    "leaky_relu": OneOf(
        Op("LeakyRelu", where=lambda n: not close(attribute(n, "alpha", 0.01), _RRELU_SLOPE)),
        _leaky(Op("Mul", where=reads_scalar)),
        (Branch((), (Op("Mul", where=reads_scalar),)), "Max"),
    ),
    "logsigmoid": OneOf(
        (_SIGMOID, "Log"),
        ("Neg", _SOFTPLUS, "Neg"),
        (
            Branch(
                (OneOf(Op("Min", where=reads(0.0)), _clips(-math.inf, 0.0)),), ("Abs", "Neg", _LOG1P_EXP), ordered=True
            ),
            "Sub",
        ),
    ),
    "softplus": _SOFTPLUS,
    "prelu": OneOf(
        Op("PRelu", input=0, where=lambda n: not _random_slope(n)),
        _leaky(Op("Mul", where=lambda n: reads_vector(n) and not reads_scalar(n))),
    ),
    "softsign": OneOf("Softsign", (Branch((), ("Abs", _add(1)), ordered=True), "Div")),
    "tanhshrink": OneOf((Branch((), ("Tanh",), ordered=True), "Sub"), (Branch((), ("Tanh", "Neg")), "Add")),
    "gelu": OneOf(
        "Gelu",
        "com.microsoft::Gelu",
        Op("com.microsoft::FastGelu", where=lambda n: len(n.inputs) == 1),
        (Branch((_BELL, _add(1)), ()), "Mul", _HALF),
        (Branch((_BELL, _add(1)), (_HALF,)), "Mul"),
        (Branch((_BELL, OneOf((_add(1), _HALF), (_HALF, _add(0.5)))), ()), "Mul"),
    ),
}

#: The operator that ONNX Runtime's fused layers name in their `activation` attribute, for what it can only mean.
FUSED: Final = {
    "HardSigmoid": "hardsigmoid",
    "LeakyRelu": "leaky_relu",
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
}

VARIANTS: Final = {name: register_part(Part(f"activation.{name}", spelling)) for name, spelling in SPELLINGS.items()}
Activation: Final = register_part(Part("activation", OneOf(*VARIANTS.values())))
