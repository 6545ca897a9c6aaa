"""Quantized tensors: codes that stand for numbers, and where the zero point is that stands for none."""

from __future__ import annotations

# Slot of a quantized weight: slot of its zero point, None for a bias, which has none.
ZERO_POINT_SLOT: dict[tuple[str, int], int | None] = {
    ("DequantizeLinear", 0): 2,
    ("QLinearConv", 3): 5,
    ("QLinearConv", 8): None,
    ("QLinearMatMul", 0): 2,
    ("QLinearMatMul", 3): 5,
    ("ConvInteger", 1): 3,
    ("MatMulInteger", 0): 2,
    ("MatMulInteger", 1): 3,
    ("QGemm", 3): 5,
    ("QGemm", 6): None,
    ("QLinearAdd", 0): 2,
    ("QLinearAdd", 3): 5,
    ("QLinearMul", 0): 2,
    ("QLinearMul", 3): 5,
    ("MatMulIntegerToFloat", 0): 4,
    ("MatMulIntegerToFloat", 1): 5,
    ("DynamicQuantizeMatMul", 1): 3,
    ("DynamicQuantizeLSTM", 1): 9,
    ("DynamicQuantizeLSTM", 2): 11,
}
# Operators whose output holds the codes of their first input.
MOVES_CODES = frozenset(
    (
        "Identity",
        "Transpose",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Expand",
        "Slice",
        "Split",
        "Tile",
        "Gather",
    )
)
