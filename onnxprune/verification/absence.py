"""Where a zero means "absent", and where it would mean something else.

A removed unit is absent when its slice contributes nothing. A zero weight, bias or gain does that. A zero divisor,
scale or variance gives infinities instead, and a quantized weight is absent at its zero point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from ..graph.codes import MOVES_CODES, ZERO_POINT_SLOT
from .tensors import Use


class Meaning(Enum):
    """What zeroing a tensor would do where it is used."""

    ABSENT = "a zero removes the slice"
    NORM = "a zero row makes its own norm, by which it is divided, zero"
    NEEDED = "a zero would divide, or change a code's meaning"


# Slots that hold a divisor, an exponent, a variance, or parameters of a quantized tensor.
_NEEDED_SLOTS: dict[str, frozenset[int]] = {
    "Div": frozenset({1}),
    "Mod": frozenset({1}),
    "Pow": frozenset({1}),
    "Sqrt": frozenset({0}),
    "Reciprocal": frozenset({0}),
    "Log": frozenset({0}),
    "BatchNormalization": frozenset({4}),
    "QuantizeLinear": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "QLinearConv": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearMatMul": frozenset({1, 2, 4, 5, 6, 7}),
    "ConvInteger": frozenset({2, 3}),
    "MatMulInteger": frozenset({2, 3}),
    "QGemm": frozenset({1, 2, 4, 5, 7, 8}),
    "QLinearAdd": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearMul": frozenset({1, 2, 4, 5, 6, 7}),
    "MatMulIntegerToFloat": frozenset({2, 3, 4, 5}),
    "DynamicQuantizeMatMul": frozenset({2, 3}),
    "DynamicQuantizeLSTM": frozenset({8, 9, 10, 11}),
}
_DIVIDES = frozenset({("Div", 1), ("Reciprocal", 0), ("Log", 0), ("Pow", 1)})
_SAME_VALUES = frozenset(
    ("Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Slice", "Split", "Tile")
)
_NORMS = frozenset(("ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare", "ReduceMean", "LpNormalization"))
_INSIDE_NORM = frozenset(("Mul", "Pow", "Abs", "Sqrt", "Add", "Clip", "Max", "Cast", "Unsqueeze", "Reshape", "Expand"))


def code_reader(use: Use, uses: Mapping[str, Sequence[Use]]) -> Use | None:
    """Give the use that reads a tensor as codes of a quantized one: this one, or one behind reshapes and gathers."""
    waiting, seen = [use], {(id(use.node), use.slot)}
    while waiting:
        current = waiting.pop()
        if (current.node.op_type, current.slot) in ZERO_POINT_SLOT:
            return current
        if current.node.op_type in MOVES_CODES and current.slot == 0:
            for further in (u for output in current.node.output for u in uses.get(output, ())):
                if (id(further.node), further.slot) not in seen:
                    seen.add((id(further.node), further.slot))
                    waiting.append(further)
    return None


def meaning(use: Use, uses: Mapping[str, Sequence[Use]]) -> Meaning:
    """Say what a zero means in the slot `use`, looking on through casts, reshapes and norms."""
    if _needed(use):
        return Meaning.NEEDED
    # A norm of the tensor may divide it further on, as in weight normalization: v / ||v||.
    waiting, seen = [(use, False)], {(id(use.node), use.slot, False)}
    while waiting:
        current, normed = waiting.pop()
        op = current.node.op_type
        if normed and (op, current.slot) in _DIVIDES:
            return Meaning.NORM
        if not normed and _needed(current):
            return Meaning.NEEDED
        if op in _NORMS:
            if op == "LpNormalization":
                return Meaning.NORM
            following = True
        elif (normed and op in _INSIDE_NORM) or (op in _SAME_VALUES and current.slot == 0):
            following = normed
        elif op in ("Mul", "Pow", "Abs") and current.slot == 0:
            following = normed
            if not _only_norms(current, uses):
                continue
        else:
            continue
        for output in current.node.output:
            for further in uses.get(output, ()):
                key = (id(further.node), further.slot, following)
                if key not in seen:
                    seen.add(key)
                    waiting.append((further, following))
    return Meaning.ABSENT


def _needed(use: Use) -> bool:
    return use.slot in _NEEDED_SLOTS.get(use.node.op_type, frozenset())


def _only_norms(use: Use, uses: Mapping[str, Sequence[Use]]) -> bool:
    """Say whether a product or power of a tensor exists for a norm only: x*x, x**2, |x|."""
    node = use.node
    squares = node.op_type != "Mul" or len(set(node.input)) == 1
    return squares and all(u.node.op_type in _NORMS for output in node.output for u in uses.get(output, ()))
