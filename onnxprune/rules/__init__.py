"""Operator rules, one file per family. Importing this package registers them all."""

from . import (
    contraction,
    convolution,
    elementwise,
    fused,
    indexing,
    movement,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
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
    "quantization",
    "recurrent",
    "reduction",
    "shapes",
]
