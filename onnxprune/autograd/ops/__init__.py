"""Torch functions of the ONNX operators, one module per family. Importing the folder registers them."""

from . import (
    contraction,
    convolution,
    elementwise,
    fused,
    indexing,
    movement,
    normalization,
    pooling,
    recurrent,
    reduction,
    resize,
    shapes,
)

__all__ = [
    "contraction",
    "convolution",
    "elementwise",
    "fused",
    "indexing",
    "movement",
    "normalization",
    "pooling",
    "recurrent",
    "reduction",
    "resize",
    "shapes",
]
