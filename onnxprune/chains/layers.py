"""The layers, pools and shape changes that chains are made of, each in every spelling that exporters give it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .constants import array, constant_at, constants_behind, is_constant, reads, reads_vector
from .pattern import Branch, OneOf, Op, Optional, Part, Repeat
from .registry import register_part

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

MATRIX = 2


def _is_linear(node: gs.Node) -> bool:
    """Input 1 is a constant matrix; a constant of higher rank is a batched product, not a linear layer."""
    found = constants_behind(node.inputs[1])
    return len(found) != 0 and (len(found) > 1 or len(found[0].shape) == MATRIX or found[0].inputs != [])


def _reduced_axes(node: gs.Node) -> list[int]:
    """Give the axes of a reduction, from its attribute (opset 1) or input (18); none where they are not constant."""
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and is_constant(node.inputs[1]):
        axes = array(constants_behind(node.inputs[1])[0]).reshape(-1).tolist()
    return [int(axis) for axis in axes or ()]


def _pools_space(node: gs.Node) -> bool:
    """All reduced axes are spatial, counted from either end; batch and channels stay."""
    axes = _reduced_axes(node)
    rank = len(node.inputs[0].shape or ()) or 4
    return bool(axes) and all(axis % rank >= MATRIX for axis in axes)


def _keeps_rank(node: gs.Node) -> bool:
    return bool(node.attrs.get("keepdims", 1))


_RESHAPE = Op("Reshape", input=0)
_SPACE = ("ReduceMean", "ReduceMax")

Linear: Final = register_part(
    Part(
        "linear",
        OneOf(
            (
                Optional(_RESHAPE),
                Op("Gemm", "com.microsoft::FusedGemm", input=0, where=constant_at(1)),
                Optional(_RESHAPE),
            ),
            (
                Op("MatMul", "com.microsoft::FusedMatMul", input=0, where=_is_linear),
                Optional(Op("Add", where=reads_vector)),
            ),
        ),
    )
)
#: A convolution that hands on its plain sum; ONNX Runtime's fused one only receives, its activation is a step too.
Plain: Final = Part("conv", Op("Conv", input=0))
Convolution: Final = register_part(Part("conv", Op("Conv", "com.microsoft::FusedConv", input=0)))
Pool: Final = register_part(
    Part("pool", OneOf(Op("MaxPool", input=0), (Optional(Op("Pad", input=0)), Op("AveragePool", input=0))))
)
AdaptivePool: Final = register_part(
    Part(
        "adaptive_pool",
        OneOf(
            Op("GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", input=0, output=0),
            Op(*_SPACE, input=0, where=lambda node: _pools_space(node) and _keeps_rank(node)),
        ),
    )
)
Flatten: Final = register_part(Part("flatten", Op("Flatten", "Reshape", "Squeeze", input=0)))

#: Average over space without keeping the axes: what the pool and the flatten become when an optimizer joins them.
PooledFlat: Final = Part("adaptive_pool", Op(*_SPACE, input=0, where=lambda n: _pools_space(n) and not _keeps_rank(n)))

_MOVES = Repeat(Op("Squeeze", "Transpose", "Reshape", input=0), 0, 4)
_CELL = (Op("LSTM", input=0, output=0, where=constant_at(1)), _MOVES)
LSTM: Final = register_part(Part("lstm", Optional(Repeat(_CELL, 1, 7)), _CELL))

_SQUARED = OneOf(Op("Pow", input=0, where=reads(2.0)), (Branch((), ()), "Mul"))
_DEVIATION = (_SQUARED, "ReduceMean", "Add", "Sqrt")
LayerNorm: Final = register_part(
    Part(
        "layernorm",
        OneOf(
            Op("LayerNormalization", input=0),
            (
                Branch((), ("ReduceMean",), ordered=True),
                "Sub",
                OneOf((Branch((), _DEVIATION, ordered=True), "Div"), (Branch((), (*_DEVIATION, "Reciprocal")), "Mul")),
                Optional(Op("Mul", where=reads_vector)),
                Optional(Op("Add", where=reads_vector)),
            ),
        ),
    )
)
Norm: Final = register_part(
    Part(
        "norm",
        OneOf(
            LayerNorm,
            Op(
                *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"),
                *("com.microsoft::SimplifiedLayerNormalization", "SimplifiedLayerNormalization"),
                input=0,
            ),
        ),
    )
)
