"""Which inputs of which operators are weights, and how each turns into matrices.

An arrangement takes the layout of the value in the slot and the node's attributes, and goes on with it to
(matrices, output, input, *kernel): a matrix for each direction, expert or other batch of the weight. It raises
`ValueError` with the reason where there is no such arrangement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .layout import Layout

Attributes = Mapping[str, Any]
Arrangement = Callable[[Layout, Attributes], Layout]

LINEAR, CONVOLUTION, RECURRENT, EMBEDDING = KINDS = ("linear", "convolution", "recurrent", "embedding")
MS = "com.microsoft"


@dataclass(frozen=True)
class Slot:
    """One weight input: its position, arrangement and kind.

    `data` is the input that carries what the weight is multiplied with, None where there is none. `scale` and
    `zero_point` are the inputs that explain integer codes, and `axis` says which axis of the weight a vector of them
    runs along.
    """

    index: int
    arrange: Arrangement
    kind: str
    data: int | None = 0
    scale: int | None = None
    zero_point: int | None = None
    axis: int = 0


def rows_first(layout: Layout, _: Attributes) -> Layout:
    """Arrange (..., output, input)."""
    _needs(layout, 2)
    return layout.reshape(-1, *layout.shape[-2:])


def rows_last(layout: Layout, _: Attributes) -> Layout:
    """Arrange (..., input, output)."""
    _needs(layout, 2)
    return layout.reshape(-1, *layout.shape[-2:]).swap(1, 2)


def second(layout: Layout, attributes: Attributes) -> Layout:
    """Arrange the second operand of Gemm or FusedMatMul: (output, input) with transB, else (input, output)."""
    if attributes.get("transBatchB"):
        raise ValueError("its batch axis lies between those of the product (transBatchB)")
    return (rows_first if attributes.get("transB") else rows_last)(layout, attributes)


def first(layout: Layout, attributes: Attributes) -> Layout:
    """Arrange the first operand as the weight: (output, input), or (input, output) with transA."""
    if attributes.get("transBatchA"):
        raise ValueError("its batch axis lies between those of the product (transBatchA)")
    return (rows_last if attributes.get("transA") else rows_first)(layout, attributes)


def convolution(layout: Layout, _: Attributes) -> Layout:
    """Arrange (output, input of a group, *kernel)."""
    _needs(layout, 3)
    return layout.reshape(1, *layout.shape)


def transposed_convolution(layout: Layout, attributes: Attributes) -> Layout:
    """Arrange (groups * input, output of a group, *kernel)."""
    _needs(layout, 3)
    groups = int(attributes.get("group", 1))
    n_in, n_out, *kernel = layout.shape
    if groups < 1 or n_in % groups:
        raise ValueError(f"its {n_in} inputs do not divide into {groups} groups")
    split = layout.reshape(groups, n_in // groups, n_out, *kernel).swap(1, 2)
    return split.reshape(1, groups * n_out, n_in // groups, *kernel)


def directions(layout: Layout, _: Attributes) -> Layout:
    """Arrange (directions, gates * hidden, input), as ONNX has recurrent weights."""
    _needs(layout, 3, most=3)
    return layout


def directions_last(layout: Layout, _: Attributes) -> Layout:
    """Arrange (directions, input, gates * hidden), as DynamicQuantizeLSTM has them."""
    _needs(layout, 3, most=3)
    return layout.swap(1, 2)


def table(layout: Layout, attributes: Attributes) -> Layout:
    """Arrange a table that is read by rows: each is an output."""
    _needs(layout, 2, most=2)
    if int(attributes.get("axis", 0)) % 2:
        raise ValueError("it is not read by rows")
    return layout.reshape(1, *layout.shape)


def _needs(layout: Layout, least: int, most: int | None = None) -> None:
    rank = len(layout.shape)
    if rank < least or (most is not None and rank > most):
        raise ValueError(f"it has {rank} {'axis' if rank == 1 else 'axes'}")


def einsum(equation: str, slot: int, layout: Layout) -> Layout:
    """Arrange an operand of Einsum by its labels: in both others, a batch; in the other alone, input; else output."""
    operands, _, result = equation.replace(" ", "").partition("->")
    terms = operands.split(",")
    if len(terms) != 2 or not result:
        raise ValueError(f"the equation {equation!r} is not a product of two operands with a stated result")
    labels, other = terms[slot], terms[1 - slot]
    if not labels.isalpha() or len(set(labels)) != len(labels) or len(labels) != len(layout.shape):
        raise ValueError(f"its labels in {equation!r} are not one per axis")
    batch = [k for k, c in enumerate(labels) if c in other and c in result]
    inputs = [k for k, c in enumerate(labels) if c in other and c not in result]
    outputs = [k for k, c in enumerate(labels) if c not in other and c in result]
    if not inputs or not outputs or len(batch) + len(inputs) + len(outputs) != len(labels):
        raise ValueError(f"no axis of it is summed over and none is left in {equation!r}, so it is no matrix")
    sizes = layout.shape
    arranged = layout.transpose(*batch, *outputs, *inputs)
    return arranged.reshape(_product(sizes, batch), _product(sizes, outputs), _product(sizes, inputs))


def _product(sizes: tuple[int, ...], axes: list[int]) -> int:
    n = 1
    for k in axes:
        n *= sizes[k]
    return n


def _einsum(slot: int) -> Arrangement:
    def arrange(layout: Layout, attributes: Attributes) -> Layout:
        equation = attributes.get("equation", b"")
        return einsum(equation.decode() if isinstance(equation, bytes) else str(equation), slot, layout)

    return arrange


# Where either operand can be the weight, the second comes first: a constant first operand beside it is data.
SLOTS: Mapping[tuple[str, str], tuple[Slot, ...]] = {
    ("", "Conv"): (Slot(1, convolution, CONVOLUTION),),
    ("", "DeformConv"): (Slot(1, convolution, CONVOLUTION),),
    ("", "ConvTranspose"): (Slot(1, transposed_convolution, CONVOLUTION),),
    ("", "ConvInteger"): (Slot(1, convolution, CONVOLUTION, zero_point=3),),
    ("", "QLinearConv"): (Slot(3, convolution, CONVOLUTION, scale=4, zero_point=5),),
    (MS, "FusedConv"): (Slot(1, convolution, CONVOLUTION),),
    (MS, "NhwcFusedConv"): (Slot(1, convolution, CONVOLUTION),),
    ("", "MatMul"): (Slot(1, rows_last, LINEAR), Slot(0, rows_first, LINEAR, data=1)),
    ("", "Gemm"): (Slot(1, second, LINEAR), Slot(0, first, LINEAR, data=1)),
    ("", "Einsum"): (Slot(1, _einsum(1), LINEAR), Slot(0, _einsum(0), LINEAR, data=1)),
    ("", "MatMulInteger"): (Slot(1, rows_last, LINEAR, zero_point=3, axis=-1),),
    ("", "QLinearMatMul"): (Slot(3, rows_last, LINEAR, scale=4, zero_point=5, axis=-1),),
    (MS, "FusedMatMul"): (Slot(1, second, LINEAR), Slot(0, first, LINEAR, data=1)),
    (MS, "FusedGemm"): (Slot(1, second, LINEAR), Slot(0, first, LINEAR, data=1)),
    (MS, "GemmFastGelu"): (Slot(1, rows_last, LINEAR),),
    (MS, "MatMulIntegerToFloat"): (Slot(1, rows_last, LINEAR, scale=3, zero_point=5, axis=-1),),
    (MS, "DynamicQuantizeMatMul"): (Slot(1, rows_last, LINEAR, scale=2, zero_point=3, axis=-1),),
    (MS, "QGemm"): (Slot(3, second, LINEAR, scale=4, zero_point=5, axis=-1),),
    (MS, "Attention"): (Slot(1, rows_last, LINEAR),),
    (MS, "QAttention"): (Slot(1, rows_last, LINEAR, scale=4, zero_point=7, axis=-1),),
    ("", "LSTM"): (Slot(1, directions, RECURRENT), Slot(2, directions, RECURRENT, data=5)),
    ("", "GRU"): (Slot(1, directions, RECURRENT), Slot(2, directions, RECURRENT, data=5)),
    ("", "RNN"): (Slot(1, directions, RECURRENT), Slot(2, directions, RECURRENT, data=5)),
    (MS, "DynamicQuantizeLSTM"): (
        Slot(1, directions_last, RECURRENT, scale=8, zero_point=9),
        Slot(2, directions_last, RECURRENT, data=5, scale=10, zero_point=11),
    ),
    ("", "Gather"): (Slot(0, table, EMBEDDING, data=1),),
    (MS, "EmbedLayerNormalization"): tuple(Slot(k, table, EMBEDDING, data=None) for k in (2, 3, 4)),
}

PACKED = {(MS, "MatMulNBits"): 1, (MS, "MatMulBnb4"): 1, (MS, "GatherBlockQuantized"): 0}
