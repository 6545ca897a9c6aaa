"""From matched chains to the initializers whose units they let go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .constants import constants_behind
from .graphview import operator_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_graphsurgeon as gs

    from .matcher import Match

#: Operators that are layers, and the first and last input that is a parameter of theirs.
LAYERS: Final[dict[str, tuple[int, int]]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "com.microsoft::FusedConv": (1, 2),
    "Gemm": (1, 2),
    "com.microsoft::FusedGemm": (1, 2),
    "MatMul": (0, 1),
    "com.microsoft::FusedMatMul": (0, 1),
    "LSTM": (1, 7),
    "GRU": (1, 5),
    "RNN": (1, 5),
}


def chain_weights(matches: Iterable[Match]) -> set[str]:
    """Give the names of the parameters (weights and biases) of every layer on the chains but the last of each.

    The last layer only consumes what the others produce, so a chain that ends at a graph output gives none. A name
    stands for the layer as a producer: a group is on a chain when its `output` members are among the names, not when
    its `input` members are, since those belong to the layer before. Constants behind DequantizeLinear, Transpose,
    Identity, Cast, Reshape or a weight norm are given by their own names.
    """
    names: set[str] = set()
    for hit in matches:
        layers = [node for node in hit.nodes if operator_name(node) in LAYERS and _parameters(node)]
        for node in layers[:-1]:
            names.update(_parameters(node))
    return names


def _parameters(node: gs.Node) -> list[str]:
    first, last = LAYERS[operator_name(node)]
    values = [value for value in node.inputs[first : last + 1] if not value.is_empty()]
    return [constant.name for value in values for constant in constants_behind(value)]
